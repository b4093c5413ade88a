"""Slides: resolution, tissue, pixels, and files that are not what they seem."""

import numpy as np
import PIL.Image
import pytest
import tifffile
from openslide import OpenSlide

from pipeline.config import SlideSettings
from pipeline.errors import ImageError
from pipeline.geometry import grid
from pipeline.images import READ_FAILED, READ_OK
from pipeline.images.slide import Slide, interpolate, otsu, same_shape

REMEDY = r"state the true one in the `mpp` column of labels.csv$"


def settings(mpp: float = 0.5, **others: float) -> SlideSettings:
    return SlideSettings(**{"mpp": mpp, "tile": 64, "stride": 64, "tissue_mpp": 2.0} | others)


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
    for (x, y), tile in zip(origins.tolist(), pixels, strict=True):
        region = own.read_region((4 * x, 4 * y), 1, (64, 64))
        white = PIL.Image.new("RGBA", region.size, "white")
        assert np.array_equal(tile, np.asarray(PIL.Image.alpha_composite(white, region).convert("RGB")))


def test_level_0_pixels_are_those_that_were_written(write_slide, tissue_pixels):
    slide = Slide(write_slide(tissue_pixels), settings())
    pixels, _ = slide.read(np.array([[100, 300]], dtype=np.int32), (64, 32))
    assert np.array_equal(pixels[0], tissue_pixels[300:332, 100:164])


def test_properties_say_how_the_resolution_came_about(write_slide, tissue_pixels):
    path = write_slide(tissue_pixels, levels=2)
    exact = {"mpp": 2.0, "mpp_source": "openslide", "mpp_native": 0.5, "level": 1, "downsample": 4.0}
    assert Slide(path, settings(2.0)).properties == exact | {"vendor": "generic-tiff"}
    stated = {"mpp": 1.0, "mpp_source": "labels", "mpp_native": 0.25, "level": 1, "downsample": 4.0}
    assert Slide(path, settings(1.0), mpp=0.25).properties == stated | {"vendor": "generic-tiff"}
    between = {"mpp": 1.0, "mpp_source": "openslide", "mpp_native": 0.5, "level": 0, "downsample": 2.0}
    assert Slide(path, settings(1.0)).properties == between | {"vendor": "generic-tiff"}


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
    [
        ((264.583, 264.583), r"^mpp 264.583 is implausible \(0.05 to 10 µm per pixel is plausible\): " + REMEDY),
        ((0.5, 0.6), r"^mpp 0.5 along x and 0.6 along y differ by more than 5 %: " + REMEDY),
        (None, r"^the file states no mpp: " + REMEDY),
    ],
)
def test_an_mpp_that_cannot_be_trusted_is_refused_unless_the_user_states_one(write_slide, tissue_pixels, mpp, message):
    path = write_slide(tissue_pixels, mpp)
    with pytest.raises(ImageError, match=message):
        Slide(path, settings())
    assert Slide(path, settings(), mpp=0.5).properties["mpp"] == 0.5


def test_a_stated_mpp_must_be_plausible_too(write_slide, tissue_pixels):
    with pytest.raises(ImageError, match=r"^mpp 40 is implausible"):
        Slide(write_slide(tissue_pixels), settings(), mpp=40.0)


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


def test_levels_of_another_shape_are_not_used():
    assert same_shape(((1024, 256), (512, 128), (256, 11206720), (15, 4), (3, 1))) == [0, 1, 3, 4]


def test_otsu_divides_two_groups_and_not_one():
    assert otsu(np.array([1, 2, 1, 2, 200, 201], dtype=np.uint8)) == 2
    assert otsu(np.array([7, 7, 7], dtype=np.uint8)) == 0
    assert otsu(np.array([], dtype=np.uint8)) == 0


def test_interpolation_of_an_integral_image_counts_parts_of_pixels():
    integral = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 2]], dtype=float)  # of [[1, 0], [0, 1]]
    x, y = np.array([0.5, 1.5, 2.0]), np.array([0.5, 1.5, 2.0])
    assert interpolate(integral, x, y).tolist() == [0.25, 1.25, 2.0]


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
    monkeypatch.setattr(slide, "_open", lambda: opened.append(1) or OpenSlide(path))
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


@pytest.mark.parametrize("content", [b"", b"II*\0", b"not a slide", b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 300])
def test_what_is_no_slide_gives_one_line_without_its_path(tmp_path, content):
    path = tmp_path / "Doe Jane 1970.svs"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"^cannot be opened as a slide: .+") as caught:
        Slide(path, settings())
    assert "Doe" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_slide_names_no_path(tmp_path, write_slide, tissue_pixels):
    path = write_slide(tissue_pixels, name="Doe Jane.tif")
    path.write_bytes(path.read_bytes()[:-200_000])
    with pytest.raises(ImageError, match=r"^cannot be opened as a slide: .+") as caught:
        Slide(path, settings())
    assert "Doe" not in str(caught.value) and str(tmp_path) not in str(caught.value)


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
    with pytest.raises(ImageError, match=r"^mpp 264.583 is implausible .* labels.csv$"):
        Slide(shared_data / BREAST, SlideSettings())
    assert Slide(shared_data / BREAST, SlideSettings(mpp=1.0), mpp=1.0).extent == (2033, 1525)


def test_real_slide_smaller_than_a_tile_has_none(shared_data):
    slide = Slide(shared_data / SMALL, SlideSettings())
    assert slide.extent == (16, 16)
    assert len(grid(slide.extent, slide.tile_size, slide.tile_stride)) == 0


def test_every_odd_file_opens_or_is_refused_in_one_line(shared_data):
    opened = 0
    for path in sorted(path for path in (shared_data / "wsi_odd").rglob("*") if path.is_file()):
        for mpp in (None, 0.5):
            try:
                slide = Slide(path, settings(), mpp)
                slide.thumbnail(64)
                slide.read(grid(slide.extent, (16, 16), (16, 16))[:2] if max(slide.extent) < 4096 else [], (16, 16))
                opened += 1
            except ImageError as error:
                text = str(error)
                assert "\n" not in text and path.name not in text and str(shared_data) not in text
    assert opened >= 15
