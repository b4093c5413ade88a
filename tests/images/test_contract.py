"""What every image promises, asked of a slide at its own level, a slide that is resampled, and a series."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.geometry import grid
from pipeline.image_settings import SeriesSettings, SlideSettings, TissueSettings
from pipeline.images import READ_OK, Image, open_image, reopen_image


@pytest.fixture(params=["slide", "slide resampled", "series"])
def image(request, tmp_path, write_slide, write_slice, tissue_pixels) -> Image:
    if request.param == "series":
        for z in range(12):
            write_slice(f"{z}.dcm", z=z, value=np.arange(256).reshape(16, 16) - 20 * z)
        return open_image(tmp_path / "series", SeriesSettings(hu_check="note"))
    native = 0.5 if request.param == "slide" else 0.3
    path = write_slide(tissue_pixels, (native, native), levels=2)
    return open_image(path, SlideSettings(mpp=0.5, tile=64, stride=48, tissue=TissueSettings(mpp=2)))


@pytest.fixture
def origins(image):
    return grid(image.extent, image.tile_size, image.tile_stride)


def test_the_grid_fills_the_extent(image, origins):
    expected = {(512, 512): 10 * 10, (307, 307): 6 * 6, (16, 16, 12): 12}
    assert len(origins) == expected[image.extent]


def test_read_gives_one_tile_per_origin_in_three_channels(image, origins):
    width, height = image.tile_size[:2]
    pixels, status = image.read(origins, image.tile_size)
    assert pixels.shape == (len(origins), height, width, 3) and pixels.dtype == np.uint8
    assert status.tolist() == [READ_OK] * len(origins)


def test_a_batch_equals_its_tiles_read_one_by_one(image, origins):
    batch, _ = image.read(origins, image.tile_size)
    for number in range(len(origins)):
        single, _ = image.read(origins[number : number + 1], image.tile_size)
        assert np.array_equal(single[0], batch[number])


def test_tiles_can_be_read_into_room_that_is_used_again(image, origins):
    width, height = image.tile_size[:2]
    room = np.full((len(origins) + 2, height, width, 3), 7, np.uint8)
    expected, _ = image.read(origins, image.tile_size)
    for _ in range(2):
        filled, _ = image.read(origins, image.tile_size, out=room)
        assert np.shares_memory(filled, room) and np.array_equal(filled, expected)
    assert (room[len(origins) :] == 7).all()


def test_tiles_come_in_the_order_asked_for(image, origins):
    forward, _ = image.read(origins, image.tile_size)
    backward, _ = image.read(origins[::-1], image.tile_size)
    assert np.array_equal(forward[::-1], backward)
    assert not np.array_equal(forward, backward)


def test_threads_change_nothing(image, origins):
    one, _ = image.read(origins, image.tile_size, threads=1)
    four, _ = image.read(origins, image.tile_size, threads=4)
    assert np.array_equal(one, four)


def test_no_origins_give_no_tiles(image, origins):
    pixels, status = image.read(origins[:0], image.tile_size)
    assert len(pixels) == len(status) == len(image.foreground(origins[:0], image.tile_size)) == 0


def test_foreground_is_a_share_per_tile(image, origins):
    share = image.foreground(origins, image.tile_size)
    assert share.shape == (len(origins),) and share.dtype == np.float32
    assert share.min() >= 0 and share.max() == 1


def test_thumbnail_has_the_longest_side_asked_for(image):
    assert image.thumbnail(100).shape == (100, 100, 3)
    assert image.thumbnail(100).dtype == np.uint8


def test_reopened_from_its_arrays_it_shows_the_same_pixels(image, origins, tmp_path):
    settings = (
        SeriesSettings()
        if len(image.extent) == 3
        else SlideSettings(mpp=0.5, tile=64, stride=48, tissue=TissueSettings(mpp=2))
    )
    again = reopen_image(tmp_path / "slide.tif", settings, image.arrays(), image.properties)
    assert again.extent == image.extent
    assert np.array_equal(again.read(origins, image.tile_size)[0], image.read(origins, image.tile_size)[0])


def test_properties_are_json_and_name_nobody(image, tmp_path: Path):
    import json

    text = json.dumps(image.properties, allow_nan=False)
    for secret in ("Doe", "MRN0815", "1.2.3", str(tmp_path), "slide.tif", "0.dcm"):
        assert secret not in text
