"""Slides: resolution, tissue, pixels, and files that are not what they seem."""

import csv
import json
import os
import time

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile
from openslide import OpenSlide

from pipeline.errors import ImageError
from pipeline.geometry import grid
from pipeline.image_settings import SlideSettings
from pipeline.images import READ_FAILED, READ_OK
from pipeline.images.slide import Slide, qupath_origin
from pipeline.quality import KEPT, TISSUE, WHITE
from pipeline.tiling import tile
from support.jpeg_slide import halved, textured, write_jpeg_slide


def settings(mpp: float = 0.5, tissue_mpp: float = 2.0, **others: object) -> SlideSettings:
    return SlideSettings(**{"mpp": mpp, "tile": 64, "stride": 64, "tissue": {"mpp": tissue_mpp}} | others)


def patch_tile(path, level: int, number: int, tag: str, value: int) -> None:
    """Overwrite one entry of TileOffsets or TileByteCounts of a TIFF file."""
    with tifffile.TiffFile(path) as file:
        entry = file.pages[level].tags[tag]
        size = {3: 2, 4: 4, 16: 8}[int(entry.dtype)]
    with path.open("r+b") as file:
        file.seek(entry.valueoffset + number * size)
        file.write(value.to_bytes(size, "little"))


def test_level_pixels_are_openslides_own(write_slide, tissue_pixels):
    path = write_slide(tissue_pixels, levels=2)
    slide = Slide(path, settings(2.0))
    assert slide.extent == (128, 128)
    origins = grid(slide.extent, (64, 64), (64, 64))
    pixels, _ = slide.read(origins, (64, 64))
    own = OpenSlide(path)
    for (x, y), shown in zip(origins.tolist(), pixels, strict=True):
        region = own.read_region((4 * x, 4 * y), 1, (64, 64))
        white = PIL.Image.new("RGBA", region.size, "white")
        assert np.array_equal(shown, np.asarray(PIL.Image.alpha_composite(white, region).convert("RGB")))


def test_level_0_pixels_are_those_that_were_written(write_slide, tissue_pixels):
    slide = Slide(write_slide(tissue_pixels), settings())
    pixels, _ = slide.read(np.array([[100, 300]], dtype=np.int32), (64, 32))
    assert np.array_equal(pixels[0], tissue_pixels[300:332, 100:164])


def test_properties_say_how_the_resolution_came_about(write_slide, tissue_pixels):
    path = write_slide(tissue_pixels, levels=2)
    tissue = {"tissue": "otsu", "outline_extent": [128, 128]}  # of 2 µm
    place = {"l0_extent": [512, 512], "l0_origin": [0.0, 0.0], "notes": []} | tissue
    common = {"factor": 1, "vendor": "generic-tiff", "reader": "openslide (compression 1)"} | place
    exact = {"mpp": 2.0, "mpp_source": "tiff", "mpp_native": 0.5, "level": 1, "downsample": 4.0}
    assert Slide(path, settings(2.0)).properties == exact | common
    between = {"mpp": 1.0, "mpp_source": "tiff", "mpp_native": 0.5, "level": 0, "downsample": 2.0}
    assert Slide(path, settings(1.0)).properties == between | common
    stated = Slide(path, settings(1.0), mpp=0.25).properties
    assert (stated["mpp"], stated["mpp_source"], stated["mpp_native"]) == (1.0, "labels", 0.25)
    assert len(stated["notes"]) == 1  # the file says 0.5


def test_a_slide_of_another_resolution_is_tiled_at_its_own(write_slide, tissue_pixels):
    """0.37 is no "20x": its tiles are of 0.37 when that is asked for, and of 0.5 when that is."""
    path = write_slide(tissue_pixels, (0.37, 0.37))
    assert Slide(path, settings(0.37)).properties["mpp"] == pytest.approx(0.37)
    half = Slide(path, settings(0.5))
    assert half.extent == (378, 378)  # 512 * 0.37 / 0.5 = 378.88
    finest = Slide(path, settings(0))
    assert finest.extent == (512, 512) and finest.properties["mpp"] == pytest.approx(0.37)


def test_a_level_within_the_tolerance_is_used_as_it_is(write_slide, tissue_pixels):
    path = write_slide(tissue_pixels, (0.505, 0.505))
    near = Slide(path, settings(0.5, mpp_tolerance=0.02))
    assert near.extent == (512, 512)
    assert near.properties["mpp"] == pytest.approx(0.505)
    with pytest.raises(ImageError, match="finest resolution is 0.505 µm per pixel, coarser than slide.mpp 0.5"):
        Slide(path, settings(0.5, mpp_tolerance=0.001))


def test_shrinking_is_antialiased(write_slide):
    """Single pixels of black and white become grey; without a filter they would stay black or white."""
    checkers = np.where(np.indices((256, 256)).sum(axis=0) % 2, 255, 0).astype(np.uint8)
    slide = Slide(write_slide(np.repeat(checkers[..., None], 3, axis=2)), settings(1.0))
    assert slide.extent == (128, 128)
    pixels, _ = slide.read(np.array([[32, 32]], dtype=np.int32), (64, 64))
    assert pixels.min() >= 126 and pixels.max() <= 129


def test_a_shrunk_tile_lies_where_its_origin_says(write_slide):
    """On a ramp of one grey value per pixel, shrunk by two, pixel x shows the mean of 2 x and 2 x + 1."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    slide = Slide(write_slide(np.ascontiguousarray(ramp)), settings(1.0))
    pixels, _ = slide.read(np.array([[40, 0]], dtype=np.int32), (16, 16))
    assert np.abs(pixels[0, 8, :, 0].astype(float) - (2 * np.arange(40, 56) + 0.5)).max() <= 0.5


def test_shrunk_tiles_have_no_seams(write_slide):
    slide = Slide(write_slide(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)), settings(1.8))
    wide, _ = slide.read(np.array([[40, 40]], dtype=np.int32), (64, 32))
    halves, _ = slide.read(np.array([[40, 40], [72, 40]], dtype=np.int32), (32, 32))
    assert np.abs(wide[0].astype(int) - np.concatenate(list(halves), axis=1)).max() <= 1


@pytest.mark.parametrize(
    ("mpp", "message"),
    [((264.583, 264.583), "^mpp 264.583 is implausible"), (None, "^the file states no mpp: ")],
)
def test_an_mpp_that_cannot_be_trusted_is_refused_unless_the_user_states_one(write_slide, tissue_pixels, mpp, message):
    path = write_slide(tissue_pixels, mpp)
    with pytest.raises(ImageError, match=message):
        Slide(path, settings())
    assert Slide(path, settings(), mpp=0.5).properties["mpp"] == 0.5
    for policy in ("override", "assume"):
        assumed = Slide(path, settings(mpp_policy=policy, native_mpp=0.5))
        assert assumed.properties["mpp_source"] == "config" and assumed.extent == (512, 512)


@pytest.mark.parametrize("tissue_mpp", [0.5, 2.0, 3.7])
def test_foreground_is_the_share_of_the_tile_that_is_tissue(write_slide, tissue_pixels, tissue_mpp):
    slide = Slide(write_slide(tissue_pixels, levels=2), settings(tissue_mpp=tissue_mpp))
    origins = np.array([[0, 0], [128, 128], [192, 320], [64, 128], [64, 64]], dtype=np.int32)
    assert slide.foreground(origins, (128, 128)) == pytest.approx([0, 1, 0.5, 0.5, 0.25], abs=0.05)


@pytest.mark.parametrize("noise", [0, 4])
def test_a_white_slide_has_no_tissue(write_slide, noise):
    pixels = 255 - np.random.default_rng(0).integers(0, noise + 1, (256, 256, 3)).astype(np.uint8)
    slide = Slide(write_slide(pixels), settings())
    assert slide.foreground(grid(slide.extent, (64, 64), (64, 64)), (64, 64)).tolist() == [0.0] * 16


def test_a_tile_that_is_missing_in_the_file_is_white(write_slide):
    path = write_slide(np.zeros((256, 256, 3), dtype=np.uint8))
    patch_tile(path, 0, 1, "TileByteCounts", 0)
    pixels, status = Slide(path, settings()).read(np.array([[0, 0], [128, 0]], dtype=np.int32), (128, 128))
    assert status.tolist() == [READ_OK, READ_OK]
    assert [np.unique(tile).tolist() for tile in pixels] == [[0], [255]]


@pytest.mark.parametrize("threads", [1, 4])
def test_an_undecodable_tile_is_marked_and_spoils_no_other(write_slide, threads, monkeypatch):
    """OpenSlide's handles fail for ever after one failure; the tiles after a bad one are read all the same."""
    path = write_slide(np.full((512, 512, 3), 90, dtype=np.uint8), levels=2)
    patch_tile(path, 0, 1, "TileOffsets", 0x7FFFFFFF)
    slide = Slide(path, settings(tile=128, stride=128))
    opened = []
    monkeypatch.setattr(slide._pyramid, "_open", lambda: opened.append(1) or OpenSlide(path))
    pixels, status = slide.read(grid((512, 512), (128, 128), (128, 128)), (128, 128), threads)
    assert status.tolist() == [READ_OK, READ_FAILED] + [READ_OK] * 14
    assert [np.unique(tile).tolist() for tile in pixels] == [[90], [255]] + [[90]] * 14
    assert threads > 1 or len(opened) == 2  # to be sure of the bad tile, and to replace the handle it spoilt


def test_what_the_overview_cannot_show_is_offered_as_tissue(write_slide):
    """So that its tiles are read, fail and are counted, and the slide is not silently smaller."""
    path = write_slide(np.full((512, 512, 3), 255, dtype=np.uint8), levels=2)
    patch_tile(path, 0, 0, "TileOffsets", 0x7FFFFFFF)
    slide = Slide(path, settings(tissue_mpp=0.5))
    assert slide.foreground(np.array([[0, 0]], dtype=np.int32), (64, 64)).tolist() == [1.0]
    assert slide.thumbnail(64).shape == (64, 64, 3)


def jpeg_slide(tmp_path, pixels, **options):
    return write_jpeg_slide(tmp_path / "slide.svs", pixels, **options)


def test_half_the_resolution_is_shrunk_in_the_decoder(tmp_path):
    """0.5 µm out of 0.25, in any order and by any number of threads."""
    pixels = textured(300, 400, sigma=0.5)
    path = jpeg_slide(tmp_path, pixels, mpp=0.25)
    slide = Slide(path, settings(0.5))
    found = slide.properties
    assert (found["factor"], found["reader"], found["mpp"], slide.extent) == (2, "libjpeg-turbo", 0.5, (200, 150))
    origins = grid(slide.extent, (48, 48), (40, 40))
    tiles, status = slide.read(origins, (48, 48), threads=3)
    assert (status == READ_OK).all()
    area = halved(pixels)
    for (x, y), shown in zip(origins.tolist(), tiles, strict=True):
        assert np.abs(shown.astype(int) - area[y : y + 48, x : x + 48]).mean() < 2.5
    backwards, _ = slide.read(origins[::-1], (48, 48))
    assert np.array_equal(backwards[::-1], tiles)


def test_shrinking_in_the_decoder_can_be_turned_off(tmp_path):
    path = jpeg_slide(tmp_path, textured(300, 400), mpp=0.25)
    slide, other = Slide(path, settings(0.5, reduced_decoding=False)), Slide(path, settings(0.5))
    assert slide.properties["factor"] == 1 and slide.extent == (200, 150)
    a, b = (found.read(np.array([[20, 30]], dtype=np.int32), (64, 64))[0] for found in (slide, other))
    assert 0 < np.abs(a.astype(int) - b).mean() < 3


def test_what_lies_beyond_the_slide_is_white(tmp_path):
    path = jpeg_slide(tmp_path, np.full((100, 100, 3), 90, np.uint8), mpp=0.25)
    for mpp, side in ((0.25, 100), (0.5, 50), (0.4, 62)):
        slide = Slide(path, settings(mpp))
        assert slide.extent == (side, side)
        pixels, _ = slide.read(np.array([[side - 20, side - 20]], dtype=np.int32), (64, 64))
        assert np.abs(pixels[0, :18, :18].astype(int) - 90).max() <= 2
        assert (pixels[0, 23:] == 255).all() and (pixels[0, :, 23:] == 255).all()


def test_tiles_over_the_edge_count_when_they_are_padded(tmp_path):
    path = jpeg_slide(tmp_path, textured(150, 200))
    none = {"method": "none"}
    assert len(tile(Slide(path, settings(tissue=none))).origins) == 3 * 2
    padded = Slide(path, settings(tissue=none | {"min_share": 0.0}, edge="pad"))
    assert len(tile(padded).origins) == 4 * 3


def test_a_damaged_tile_is_marked_on_the_fast_path_too(tmp_path):
    path = jpeg_slide(tmp_path, textured(256, 256), spoil={5: b"\xff\xd8 damaged"})
    slide = Slide(path, settings(0.5, tissue={"method": "none"}))
    pixels, status = slide.read(grid((256, 256), (64, 64), (64, 64)), (64, 64))
    assert status.tolist() == [READ_FAILED if n == 5 else READ_OK for n in range(16)]
    assert (pixels[5] == 255).all() and pixels[4].mean() < 220
    assert slide.reading()["tiles_left_to_openslide"] == 1  # which refuses it too


def test_tiles_left_to_openslide_are_counted(tmp_path):
    path = write_jpeg_slide(tmp_path / "a.tif", textured(256, 256), aperio=False, spoil={3: b"", 9: b""})
    slide = Slide(path, settings(0.5))
    pixels, status = slide.read(grid((256, 256), (64, 64), (64, 64)), (64, 64))
    assert (status == READ_OK).all() and (pixels[[3, 9]] == 255).all()
    said = slide.reading()
    assert (said["reader"], said["tiles_left_to_openslide"]) == ("libjpeg-turbo", 2)


def test_waits_for_the_disk_are_told_apart_from_decoding(tmp_path, monkeypatch):
    slide = Slide(write_jpeg_slide(tmp_path / "a.tif", textured(256, 256), aperio=False), settings(0.5))
    before = slide.reading()["read_seconds"]
    pread = os.pread

    def slow(file, length, offset):
        time.sleep(0.01)
        return pread(file, length, offset)

    monkeypatch.setattr(os, "pread", slow)
    slide.read(grid((256, 256), (64, 64), (64, 64)), (64, 64))
    assert 0.16 <= slide.reading()["read_seconds"] - before < 5  # sixteen tiles


def test_a_quality_filter_removes_tiles_and_says_so(tmp_path):
    pixels = textured(256, 256)
    pixels[:64, :128] = 255
    slide = Slide(jpeg_slide(tmp_path, pixels), settings(tissue={"method": "none"}, quality={"max_white": 0.5}))
    tiles = tile(slide, threads=2)
    assert tiles.reasons.tolist() == [WHITE, WHITE] + [KEPT] * 14
    assert len(tiles.origins) == 14 and tiles.removed == "near white 2"


def test_reasons_tell_tissue_from_glass(write_slide, tissue_pixels):
    tiles = tile(Slide(write_slide(tissue_pixels), settings(tile=128, stride=128)))
    assert tiles.reasons.tolist() == [KEPT if n in (5, 6, 9, 10) else TISSUE for n in range(16)]
    assert tiles.origins.tolist() == [[128, 128], [256, 128], [128, 256], [256, 256]] and tiles.removed == ""


def geojson(*corners: tuple[int, int]) -> str:
    ring = [list(corner) for corner in (*corners, corners[0])]
    return json.dumps({"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}})


@pytest.mark.parametrize("name", ["slide.geojson", "slide.tif.geojson"])
def test_a_users_own_mask_beside_the_slide_comes_before_any_method(write_slide, tissue_pixels, name):
    path = write_slide(tissue_pixels)
    (path.parent / name).write_text(geojson((0, 0), (128, 0), (128, 256), (0, 256)))
    slide = Slide(path, settings(tile=128, stride=128))
    assert tile(slide).origins.tolist() == [[0, 0], [0, 128]]
    assert slide.properties["tissue"] == "geojson"


def test_a_mask_counts_from_where_qupath_shows_the_slide_to_begin():
    """It crops to the stated bounds, when these are smaller along both axes."""

    class Bounded:
        extents = ((1000, 2000),)
        facts: dict[str, str] = {}  # noqa: RUF012

    assert qupath_origin(Bounded()) == (0, 0)
    bounds = {"bounds-x": "100", "bounds-y": "300", "bounds-width": "800", "bounds-height": "1500"}
    Bounded.facts = {f"openslide.{name}": value for name, value in bounds.items()}
    assert qupath_origin(Bounded()) == (100, 300)
    Bounded.facts["openslide.bounds-width"] = "1000"
    assert qupath_origin(Bounded()) == (0, 0)


def test_a_mask_that_is_none_is_refused(write_slide, tissue_pixels):
    path = write_slide(tissue_pixels)
    path.with_suffix(".geojson").write_text("not a mask")
    with pytest.raises(ImageError, match="geojson|GeoJSON|JSON"):
        tile(Slide(path, settings()))


def test_a_slide_of_which_nothing_can_be_decoded_is_refused(tmp_path):
    path = jpeg_slide(tmp_path, textured(64, 64), spoil={0: b"\xff\xd8 damaged"})
    with pytest.raises(ImageError, match="no part of it can be decoded: is the file whole?"):
        tile(Slide(path, settings()))


def test_one_damaged_tile_costs_the_overview_that_tile_alone(tmp_path):
    pixels = np.full((1024, 1024, 3), 255, np.uint8)
    path = jpeg_slide(tmp_path, pixels, tile=128, spoil={18: b"\xff\xd8 damaged"})
    slide = Slide(path, settings(tile=128, stride=128, tissue={"mpp": 1.0}))
    assert tile(slide).origins.tolist() == [[256, 256]]  # glass, but for what nobody could see


def test_colours_follow_the_slides_profile_when_asked(tmp_path):
    """A profile whose red and green are swapped, so that what it does can be seen."""
    path = tmp_path / "a.png"
    pixels = np.full((64, 64, 3), (200, 40, 40), np.uint8)
    pixels[:32] = 255
    PIL.Image.fromarray(pixels).save(
        path, icc_profile=PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    )
    same, _ = Slide(path, settings(icc=True), mpp=0.5).read(np.array([[0, 0]], dtype=np.int32), (64, 64))
    assert np.abs(same[0].astype(int) - pixels).max() <= 1
    linear = linear_profile()
    PIL.Image.fromarray(pixels).save(path, icc_profile=linear)
    off, _ = Slide(path, settings(), mpp=0.5).read(np.array([[0, 0]], dtype=np.int32), (64, 64))
    assert np.array_equal(off[0], pixels)
    on, _ = Slide(path, settings(icc=True), mpp=0.5).read(np.array([[0, 0]], dtype=np.int32), (64, 64))
    # sRGB's curve of 200 / 255 = 0.7843 of light is 0.8977, 228.9; of 40 / 255 = 0.1569 it is 0.4330, 110.4.
    assert np.abs(on[0, 32:].astype(int) - (229, 110, 110)).max() <= 2
    assert (on[0, :32] == 255).all()


def test_a_profile_that_is_none_is_noted_and_nothing_else(tmp_path):
    path = tmp_path / "a.tif"
    pixels = textured(64, 64)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", metadata=None, iccprofile=b"garbage" * 50)
    slide = Slide(path, settings(icc=True), mpp=0.5)
    assert np.array_equal(slide.read(np.array([[0, 0]], dtype=np.int32), (64, 64))[0][0], pixels)
    assert slide.properties["notes"] == ["its colours stay as they are: cannot open profile from string"]


def test_a_slide_longer_than_any_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = jpeg_slide(tmp_path, textured(64, 640))
    assert Slide(path, settings(0), mpp=5.0).extent == (640, 64)
    monkeypatch.setattr("pipeline.images.slide.LONGEST_MM", 3)
    with pytest.raises(ImageError, match="^it would be 3 mm long: is its mpp 5 true, and the file whole?"):
        Slide(path, settings(0), mpp=5.0)


def test_a_picture_that_no_memory_holds_is_refused_before_it_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.images.slide.PICTURE_PIXELS", 1000)
    slide = Slide(jpeg_slide(tmp_path, textured(64, 64)), settings(0.5, tissue_mpp=0.5))
    with pytest.raises(ImageError, match="^its picture at slide.tissue.mpp 0.5 would have 64 by 64 pixels"):
        tile(slide)


def linear_profile() -> bytes:
    """sRGB's primaries with values that are light itself: its three curves replaced by a gamma of 1."""
    content = bytearray(PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(content[128:132], "big")):
        entry = 132 + 12 * number
        if content[entry : entry + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            at = int.from_bytes(content[entry + 4 : entry + 8], "big")
            content[at : at + 12] = b"curv\0\0\0\0\0\0\0\0"  # a curve without points: what goes in comes out
    return bytes(content)


# Real slides

CMU = "wsi/libvips__libvips/test/test-suite/images/CMU-1-Small-Region.svs"
CMU_DICOM = "wsi/cytomine__cytomine/app-engine/src/test/resources/artifacts/images/image"
BREAST = "wsi/PingjunChen__pyslide/test/data/Slides/CropBreastSlide.tiff"
SMALL = "wsi/openslide__openslide-python/tests/fixtures/small.svs"


def test_real_aperio_slide(shared_data):
    slide = Slide(shared_data / CMU, SlideSettings(mpp=0.5))
    assert slide.extent == (2220, 2967)
    assert slide.properties["mpp"] == 0.499
    origins = grid(slide.extent, slide.tile_size, slide.tile_stride)
    pixels, status = slide.read(origins[[30, 60]], slide.tile_size, threads=2)
    own = OpenSlide(shared_data / CMU).read_region(tuple(origins[60].tolist()), 0, (224, 224)).convert("RGB")
    assert np.array_equal(pixels[1], np.asarray(own)) and status.tolist() == [READ_OK, READ_OK]
    assert 0.2 < slide.foreground(origins, slide.tile_size).mean() < 0.5


def test_real_dicom_slide_has_the_same_size_and_tissue_as_its_aperio_original(shared_data):
    first = min((shared_data / CMU_DICOM).glob("*.dcm"))
    slide, original = Slide(first, SlideSettings()), Slide(shared_data / CMU, SlideSettings())
    assert slide.extent == (2220, 2967)
    origins = grid(slide.extent, (224, 224), (224, 224))
    difference = slide.foreground(origins, (224, 224)) - original.foreground(origins, (224, 224))
    assert np.abs(difference).mean() < 0.02


def test_real_slide_with_an_implausible_mpp_opens_when_it_is_stated(shared_data):
    with pytest.raises(ImageError, match=r"^mpp 264.583 is implausible .*96 pixels per inch.*labels.csv"):
        Slide(shared_data / BREAST, SlideSettings())
    assert Slide(shared_data / BREAST, SlideSettings(mpp=1.0), mpp=1.0).extent == (2033, 1525)


def test_real_slide_smaller_than_a_tile_has_none(shared_data):
    slide = Slide(shared_data / SMALL, SlideSettings())
    assert slide.extent == (16, 16)
    assert len(grid(slide.extent, slide.tile_size, slide.tile_stride)) == 0


def verified(shared_data) -> list[dict[str, str]]:
    with (shared_data / "VERIFY_WSI.tsv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file, delimiter="\t") if row["set"] == "shared"]


def test_every_real_file_opens_and_reads_or_is_refused_as_was_verified(shared_data):
    """With a stated mpp: what OpenSlide reads is read, from its first and its last tile; all else is one line."""
    read = 0
    for row in verified(shared_data):
        path = shared_data / row["file"]
        try:
            slide = Slide(path, settings(0, tile=16, stride=16), mpp=0.5)
        except ImageError as error:
            text = str(error)
            assert "\n" not in text and path.name not in text and str(shared_data) not in text
            assert row["read"] != "['ok']", (row["file"], text)
            continue
        assert row["dims0"] in ("", str(list(slide.extent))), row["file"]
        assert slide.thumbnail(64).shape[-1] == 3
        last = np.maximum(np.array(slide.extent) - 16, 0)
        pixels, status = slide.read(np.array([[0, 0], last], dtype=np.int32), (16, 16))
        if row["read"] == "['ok']":
            assert status[0] == READ_OK, row["file"]
            read += 1
        elif row["read"] != "[]":  # else: OpenSlide does not open it, and it is a plain image
            assert status.tolist() == [READ_FAILED, READ_FAILED], row["file"]
            assert (pixels == 255).all()
    assert read >= 40


def test_every_real_mpp_is_read_as_verified_or_refused(shared_data):
    """Plausible ones are taken as the file states them; the others ask for an override."""
    taken = 0
    for row in verified(shared_data):
        if row["read"] != "['ok']" or not row["mpp"]:
            continue
        try:
            slide = Slide(shared_data / row["file"], settings(0))
        except ImageError as error:
            assert "mpp" in str(error) and "labels.csv" in str(error), row["file"]
            assert row["mpp"] == "None" or not 0.05 <= float(row["mpp"]) <= 10, row["file"]
            continue
        assert slide.properties["mpp"] == pytest.approx(float(row["mpp"]), rel=1e-3), row["file"]
        taken += 1
    assert taken >= 12
