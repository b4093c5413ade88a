"""JPEG tiles decoded by libjpeg-turbo: the same pixels as OpenSlide's, and faults that are not passed on as pixels."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tifffile

from pipeline.images.jpeg_levels import jpeg_levels, unusual
from pipeline.images.jpeg_tiles import JpegReader
from pipeline.images.pyramid import open_pyramid
from pipeline.synthetic.pyramid import YCBCR, StoredLevel, write_levels
from support.jpeg_slide import encode, halved, split_stream, textured, write_jpeg_slide

MODELS = [("rgb", "444"), ("ycbcr", "420"), ("ycbcr", "422"), ("ycbcr", "444"), ("gray", "444")]
CMU = "wsi/libvips__libvips/test/test-suite/images/CMU-1-Small-Region.svs"
BREAST = "wsi/PingjunChen__pyslide/test/data/Slides/CropBreastSlide.tiff"


def reader(path) -> JpegReader:
    pyramid = open_pyramid(path)
    levels, reason = jpeg_levels(path, pyramid)
    assert not reason
    return JpegReader(levels, pyramid)


def read(path, level=0, factor=1, origin=(0, 0), size=None):
    found = reader(path)
    width, height = size or (side // factor for side in found.pyramid.extents[level])
    out = np.empty((height, width, 3), np.uint8)
    return out if found.read(level, factor, origin, out) else None


def psnr(a, b) -> float:
    return float(10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9)))


@pytest.mark.parametrize(("model", "subsampling"), MODELS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("aperio", [True, False])
def test_all_levels_are_what_openslide_decodes(tmp_path, model, subsampling, shared, aperio):
    """Aperio's RGB without a marker, subsampled colour, gray, tables in the file or in each tile."""
    path = write_jpeg_slide(
        tmp_path / "a.tif", textured(150, 200), model=model, subsampling=subsampling, shared_tables=shared,
        aperio=aperio, levels=3,
    )  # fmt: skip
    found = reader(path)
    assert sorted(found.levels) == [0, 1, 2]
    for level, (width, height) in enumerate(found.pyramid.extents):
        assert np.array_equal(read(path, level), found.pyramid.region(level, (0, 0), (width, height)))
    assert found.others == 0


def test_pixels_are_those_that_were_written(tmp_path):
    """Against the encoder's input, which no decoder of ours has touched."""
    pixels = textured(128, 192, sigma=0)
    for model in ("rgb", "ycbcr"):
        path = write_jpeg_slide(tmp_path / f"{model}.svs", pixels, model=model, subsampling="444", quality=98)
        assert np.abs(read(path).astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("origin", [(0, 0), (64, 64), (10, 70), (-20, -5), (150, 100), (1000, 1000)])
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (50, 33), (1, 1)])
@pytest.mark.parametrize("factor", [1, 2])
def test_any_region_is_cut_from_the_whole_and_white_beyond_it(tmp_path, origin, size, factor):
    path = write_jpeg_slide(tmp_path / "a.svs", textured(150, 200))
    whole = read(path, factor=factor)
    far = np.pad(whole, [(1100, 1100), (1100, 1100), (0, 0)], constant_values=255)
    (x, y), (width, height) = origin, size
    expected = far[1100 + y : 1100 + y + height, 1100 + x : 1100 + x + width]
    assert np.array_equal(read(path, factor=factor, origin=origin, size=size), expected)


def test_shrinking_in_the_decoder_is_near_the_average_of_squares(tmp_path):
    """On structure as tissue has it. Pure noise comes out worse, which the benchmark's page says."""
    for model, subsampling in MODELS:
        path = write_jpeg_slide(
            tmp_path / "a.svs", textured(256, 256, sigma=0.5), model=model, subsampling=subsampling, tile=128
        )
        whole = read(path)
        for factor in (2, 4, 8):
            shrunk = read(path, factor=factor)
            area = cv2.resize(whole, (256 // factor, 256 // factor), interpolation=cv2.INTER_AREA)
            assert psnr(shrunk, area) >= 33
            assert abs(shrunk.mean() - area.mean()) <= 0.5


def test_a_missing_tile_is_openslides(tmp_path):
    path = write_jpeg_slide(tmp_path / "a.tif", textured(128, 192), aperio=False, spoil={1: b""})
    found = reader(path)
    out = np.empty((128, 192, 3), np.uint8)
    assert found.read(0, 1, (0, 0), out)
    assert np.array_equal(out, found.pyramid.region(0, (0, 0), (192, 128)))
    assert (out[:64, 64:128] == 255).all() and found.others == 1


def test_a_missing_tile_of_a_shrunk_level_is_white_in_its_place(tmp_path):
    path = write_jpeg_slide(tmp_path / "a.tif", textured(128, 192), aperio=False, spoil={1: b""})
    whole = read(write_jpeg_slide(tmp_path / "b.tif", textured(128, 192), aperio=False), factor=2)
    whole[:32, 32:64] = 255
    assert np.array_equal(read(path, factor=2), whole)


def stream_of(pixels, model="rgb", quality=80):
    return split_stream(encode(pixels, model, "420", quality))


def test_an_unusual_tile_is_openslides(tmp_path):
    """With an APP14 marker of its own, which may say another colour transform than the TIFF."""
    pixels = textured(64, 128)
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    _, rest = stream_of(pixels[:, 64:])
    path = write_jpeg_slide(tmp_path / "a.svs", pixels, spoil={1: b"\xff\xd8" + marker + rest[2:]})
    found = reader(path)
    out = np.empty((64, 128, 3), np.uint8)
    assert found.read(0, 1, (0, 0), out) and found.others == 1
    assert np.array_equal(out, found.pyramid.region(0, (0, 0), (128, 64)))


def test_a_jfif_tile_in_an_rgb_slide_is_openslides(tmp_path):
    """libjpeg would take it for YCbCr; OpenSlide believes the TIFF."""
    pixels = textured(64, 128)
    jfif = encode(pixels[:, 64:], "ycbcr", "444", 80)
    assert b"JFIF" in jfif
    path = write_jpeg_slide(tmp_path / "a.svs", pixels, spoil={1: jfif})
    found = reader(path)
    out = np.empty((64, 128, 3), np.uint8)
    assert found.read(0, 1, (0, 0), out) and found.others == 1
    assert np.array_equal(out, found.pyramid.region(0, (0, 0), (128, 64)))


def test_bytes_after_the_pixels_are_damage_unless_it_is_the_writers_way(tmp_path):
    """A flipped bit can end a tile's pixels early; the rest then looks like padding."""
    pixels = textured(128, 128)
    padded = {}
    for number in range(4):
        y, x = divmod(number, 2)
        _, rest = stream_of(pixels[64 * y : 64 * y + 64, 64 * x : 64 * x + 64])
        padded[number] = rest[:-2] + b"\0" * 8 + rest[-2:]
    one = write_jpeg_slide(tmp_path / "one.svs", pixels, spoil={1: padded[1]})
    assert read(one, origin=(64, 0), size=(64, 64)) is None and read(one, size=(64, 64)) is not None
    every = reader(write_jpeg_slide(tmp_path / "all.svs", pixels, spoil=padded))
    out = np.empty((128, 128, 3), np.uint8)
    assert every.read(0, 1, (0, 0), out) and every.others == 4
    assert np.array_equal(out, read(write_jpeg_slide(tmp_path / "whole.svs", pixels)))


def test_levels_above_a_hole_are_openslides(tmp_path):
    """For Aperio it draws them anew from the finer level, whatever is stored."""
    path = write_jpeg_slide(tmp_path / "a.svs", textured(256, 256), levels=3, spoil={5: b""})
    levels, _ = jpeg_levels(path, open_pyramid(path))
    assert list(levels) == [0]
    path = write_jpeg_slide(tmp_path / "b.tif", textured(256, 256), levels=3, spoil={5: b""}, aperio=False)
    found = reader(path)
    assert list(found.levels) == [0, 1, 2]
    for level, (width, height) in enumerate(found.pyramid.extents):
        assert np.array_equal(read(path, level), found.pyramid.region(level, (0, 0), (width, height)))


def test_two_pages_of_one_size_are_left_to_openslide(tmp_path):
    """Which of them it reads cannot be told from outside."""
    one = textured(64, 64)
    extent = {"extent": (64, 64), "mpp": 0.5, "tile": 64, "photometric": YCBCR}
    levels = [StoredLevel(streams=[encode(pixels, "ycbcr", "420", 80)], **extent) for pixels in (one, 255 - one)]
    write_levels(tmp_path / "a.tif", levels)
    pyramid = open_pyramid(tmp_path / "a.tif")
    assert jpeg_levels(tmp_path / "a.tif", pyramid) == ({}, "its levels are not found in the file")


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, "swapped", "garbage"])
def test_a_damaged_tile_is_no_pixels(tmp_path, cut):
    """Where other readers give grey from the damage on, and say nothing."""
    pixels = textured(64, 192)
    _, rest = stream_of(pixels[:, 64:128])
    if cut == "garbage":
        other = bytes(np.random.default_rng(0).integers(0, 256, len(rest), dtype=np.uint8))
    elif cut == "swapped":  # entropy-coded bytes overwritten, the ends whole
        middle = len(rest) // 2
        other = rest[:middle] + b"\xff\xd3" * 20 + rest[middle + 40 :]
    else:
        other = rest[: int(cut * len(rest))]
    path = write_jpeg_slide(tmp_path / "a.svs", pixels, spoil={1: other})
    assert read(path, origin=(64, 0), size=(64, 64)) is None
    assert read(path, origin=(32, 0), size=(64, 64)) is None
    whole = write_jpeg_slide(tmp_path / "b.svs", pixels)
    beside = {"origin": (128, 0), "size": (64, 64)}
    assert np.array_equal(read(path, **beside), read(whole, **beside))


def test_a_tile_of_another_size_than_the_tag_says_is_not_taken_here(tmp_path):
    pixels = textured(64, 128)
    _, rest = stream_of(textured(32, 32))
    path = write_jpeg_slide(tmp_path / "a.svs", pixels, spoil={1: rest})
    found = reader(path)
    out = np.empty((64, 64, 3), np.uint8)
    found.read(0, 1, (64, 0), out)
    assert found.others == 1


def test_many_threads_read_what_one_reads(tmp_path):
    path = write_jpeg_slide(tmp_path / "a.svs", textured(400, 400))
    one, many = reader(path), reader(path)
    origins = list(itertools.product(range(0, 340, 30), repeat=2))

    def at(found, origin):
        out = np.empty((60, 60, 3), np.uint8)
        assert found.read(0, 1, origin, out)
        return out

    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda origin: at(many, origin), origins))
    assert all(np.array_equal(at(one, origin), found) for origin, found in zip(origins, parallel, strict=True))


def test_the_cache_keeps_to_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.images.jpeg_tiles.CACHE", 5 * 64 * 64 * 3)
    found = reader(write_jpeg_slide(tmp_path / "a.svs", textured(300, 300)))
    out = np.empty((300, 300, 3), np.uint8)
    assert found.read(0, 1, (0, 0), out)
    assert len(found._cache) == 5 and found._bytes == 5 * 64 * 64 * 3


def write_tiff(path, **options):
    pixels = np.zeros((128, 128, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", metadata=None, **options)
    return path


def test_other_formats_are_left_to_openslide_and_the_reason_is_told(tmp_path):
    path = write_tiff(tmp_path / "raw.tif")
    assert jpeg_levels(path, open_pyramid(path)) == ({}, "compression 1")


@pytest.mark.parametrize("value", [0, 2, 6, 9])
def test_a_slide_that_is_not_upright_is_left_to_openslide(tmp_path, value):
    path = write_jpeg_slide(tmp_path / "a.tif", textured(64, 64), aperio=False)
    content = path.read_bytes()
    photometric = content.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")  # tag 262, a SHORT: becomes 274
    path.write_bytes(content[:photometric] + b"\x12\x01" + content[photometric + 2 : photometric + 8]
                     + bytes([value, 0]) + content[photometric + 10 :])  # fmt: skip
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        assert unusual(page) == "orientation"


# Real slides


def test_real_aperio_slide_is_openslides_pixel_by_pixel(shared_data):
    """6,586,740 pixels, none different: the figure of the specification."""
    found = reader(shared_data / CMU)
    assert found.pyramid.extents == ((2220, 2967),)
    assert int((read(shared_data / CMU) != found.pyramid.region(0, (0, 0), (2220, 2967))).any(axis=-1).sum()) == 0


@pytest.mark.parametrize("name", [CMU, BREAST])
@pytest.mark.parametrize("quality", [30, 50, 75, 95])
@pytest.mark.parametrize(("subsampling", "least"), [("420", 35), ("444", 35), ("422", 33)])
def test_real_content_shrunk_in_the_decoder(shared_data, tmp_path, name, quality, subsampling, least):
    """Per tile of the file, against the average of squares of two."""
    pixels = read(shared_data / name, size=(960, 960))
    path = write_jpeg_slide(
        tmp_path / "a.tif", pixels, model="ycbcr", subsampling=subsampling, quality=quality, tile=240, aperio=False
    )
    area, shrunk = halved(read(path)), read(path, factor=2)
    for y, x in itertools.product(range(0, 480, 120), repeat=2):
        part = np.s_[y : y + 120, x : x + 120]
        assert psnr(area[part], shrunk[part]) >= least
    assert abs(float(area.mean()) - float(shrunk.mean())) <= 0.5


@pytest.mark.parametrize("name", [CMU, BREAST])
def test_real_slides_shrunk_in_the_decoder(shared_data, name):
    area, shrunk = halved(read(shared_data / name)), read(shared_data / name, factor=2)
    for y in range(0, shrunk.shape[0] - 119, 120):
        for x in range(0, shrunk.shape[1] - 119, 120):
            assert psnr(area[y : y + 120, x : x + 120], shrunk[y : y + 120, x : x + 120]) >= 35
