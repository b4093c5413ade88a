"""Pictures of attention: right colour at the right place."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.explain import (
    GAP,
    attention_picture,
    colours,
    png_bytes,
    relative_attention,
    series_picture,
    tile_map,
)

# Ends and middle of matplotlib's viridis, as published: #440154, #21918c (between two table entries), #fde725.
DARK, MIDDLE, BRIGHT = (68, 1, 84), (33, 145, 140), (253, 231, 37)


def test_uniform_attention_is_one_everywhere() -> None:
    assert relative_attention([0.25, 0.25, 0.25, 0.25]).tolist() == [1, 1, 1, 1]


def test_attention_counts_all_instances_of_the_bag_not_only_those_shown() -> None:
    assert relative_attention([0.5, 0.125], instances=8).tolist() == [4, 1]


def test_tiles_are_drawn_at_their_place_x_first() -> None:
    """Extent 40 x 20 on a thumbnail of 8 x 4: five pixels of the slide are one of the thumbnail."""
    found = tile_map((4, 8), (40, 20), np.array([[0, 0], [30, 10]]), (10, 10), np.array([2.0, 3.0]))
    expected = np.full((4, 8), np.nan)
    expected[0:2, 0:2] = 2
    expected[2:4, 6:8] = 3
    np.testing.assert_array_equal(found, expected)


def test_overlapping_tiles_show_their_mean() -> None:
    found = tile_map((1, 3), (3, 1), np.array([[0, 0], [1, 0]]), (2, 1), np.array([1.0, 4.0]))
    assert found.tolist() == [[1, 2.5, 4]]


def test_neighbouring_tiles_leave_no_seam_whatever_the_scale() -> None:
    origins = np.array([[x, 0] for x in range(0, 700, 7)])
    found = tile_map((1, 333), (700, 7), origins, (7, 7), np.ones(100))
    assert found.tolist() == [[1.0] * 333]


def test_tiles_smaller_than_a_pixel_of_the_thumbnail_are_still_seen() -> None:
    found = tile_map((2, 2), (1000, 1000), np.array([[990, 990]]), (10, 10), np.array([5.0]))
    assert found[1, 1] == 5
    assert np.isnan(found).sum() == 3


def test_colours_are_logarithmic_around_uniform_and_end_at_a_tenth_and_ten() -> None:
    found = colours(np.array([0.0, 0.1, 1.0, 10.0, 500.0])).round()
    np.testing.assert_allclose(found, [DARK, DARK, MIDDLE, BRIGHT, BRIGHT], atol=1.5)


def test_a_slide_stands_beside_its_attention() -> None:
    """Left the thumbnail untouched; right grey where no tile is, and 0.6 colour + 0.4 grey where one is."""
    thumbnail = np.full((60, 80, 3), 200, dtype=np.uint8)
    thumbnail[0, 0] = (200, 0, 0)  # grey: 0.299 * 200 = 59.8
    origins = np.array([[40, 0], [0, 30]])
    picture = attention_picture(thumbnail, (80, 60), origins, (40, 30), [0.5, 0.5])
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 60
    np.testing.assert_array_equal(picture[:, :80], thumbnail)
    assert (picture[:, 80 : 80 + GAP] == 255).all()
    overlay = picture[:, 80 + GAP : 160 + GAP]
    assert overlay[0, 0].tolist() == [60, 60, 60]
    assert overlay[10, 10].tolist() == [200, 200, 200]
    uniform = [0.6 * part + 80 for part in MIDDLE]
    np.testing.assert_allclose(overlay[10, 60], uniform, atol=2)
    np.testing.assert_allclose(overlay[50, 10], uniform, atol=2)


def test_the_thumbnail_itself_is_left_alone() -> None:
    thumbnail = np.full((20, 20, 3), 7, dtype=np.uint8)
    thumbnail.flags.writeable = False
    attention_picture(thumbnail, (20, 20), np.array([[0, 0]]), (20, 20), [1.0])


def test_the_colour_bar_is_bright_on_top_and_dark_below() -> None:
    picture = attention_picture(
        np.zeros((300, 100, 3), dtype=np.uint8), (100, 300), np.array([[0, 0]]), (10, 10), [1.0]
    )
    bar = picture[:, 200 + 2 * GAP].astype(int)
    np.testing.assert_allclose(bar[0], [0.6 * part + 76 for part in BRIGHT], atol=2)
    np.testing.assert_allclose(bar[-1], [0.6 * part + 76 for part in DARK], atol=2)


def test_as_many_attentions_as_tiles_are_wanted() -> None:
    with pytest.raises(ValueError, match="zip"):
        attention_picture(
            np.zeros((9, 9, 3), dtype=np.uint8), (9, 9), np.array([[0, 0], [3, 3]]), (3, 3), np.array([1.0])
        )


def test_a_series_shows_chosen_slices_above_and_their_attention_in_orange() -> None:
    slices = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    slices[0], slices[1] = (10, 200, 10), (10, 10, 200)
    attention = [0.1, 0.1, 0.4, 0.2, 0.2]
    picture = series_picture(slices, attention, [2, 3], [0, 5, 10, 15, 20])
    assert picture.dtype == np.uint8
    assert picture.ndim == 3 and picture.shape[2] == 3
    first = np.nonzero((picture == (10, 200, 10)).all(axis=2))[1]
    second = np.nonzero((picture == (10, 10, 200)).all(axis=2))[1]
    assert len(first) > 10_000 and len(second) > 10_000
    assert first.max() < second.min()
    orange, grey = _count(picture, (0xD5, 0x5E, 0x00)), _count(picture, (0x9A, 0xA7, 0xB1))
    assert orange / grey == pytest.approx(0.6 / 0.4, rel=0.05)


@pytest.mark.parametrize("z_mm", [[20, 15, 10], [0, 0, 7.5]], ids=["downwards", "twice the same"])
def test_z_may_run_downwards_or_repeat(z_mm: list[float]) -> None:
    slices = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    assert series_picture(slices, [0.2, 0.3, 0.5], [2], z_mm).shape[2] == 3


def test_a_series_of_one_slice_has_a_picture() -> None:
    assert series_picture(np.zeros((1, 8, 8, 3), dtype=np.uint8), [1.0], [0], [3.5]).shape[2] == 3


def test_a_png_holds_the_same_pixels_and_has_the_same_bytes_twice() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    content = png_bytes(picture)
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content == png_bytes(picture)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(content))), picture)


def _count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == np.array(colour)).all(axis=2).sum())
