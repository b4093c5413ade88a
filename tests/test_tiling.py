"""Where tiles lie, and which of them are kept."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import EmptyImage
from pipeline.geometry import grid
from pipeline.image_settings import QualitySettings
from pipeline.images import READ_FAILED, READ_OK
from pipeline.quality import BLACK, KEPT, TISSUE
from pipeline.tiling import tile
from support.images import StandIn


def test_a_grid_in_two_dimensions_goes_row_by_row() -> None:
    assert grid((5, 4), (2, 2), (2, 2)).tolist() == [[0, 0], [2, 0], [0, 2], [2, 2]]


def test_a_grid_in_three_dimensions_goes_slice_by_slice() -> None:
    assert grid((4, 2, 2), (2, 2, 1), (2, 2, 1)).tolist() == [[0, 0, 0], [2, 0, 0], [0, 0, 1], [2, 0, 1]]


def test_whole_slices_are_a_grid_of_one_column() -> None:
    assert grid((512, 400, 3), (512, 400, 1), (512, 400, 1)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]


def test_tiles_overlap_when_the_stride_is_smaller() -> None:
    assert grid((6, 3), (3, 3), (1, 3)).tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]


def test_tiles_leave_gaps_when_the_stride_is_larger() -> None:
    assert grid((7, 2), (2, 2), (5, 2)).tolist() == [[0, 0], [5, 0]]


def test_each_axis_has_its_own_size_and_stride() -> None:
    assert grid((5, 7), (2, 3), (3, 4)).tolist() == [[0, 0], [3, 0], [0, 4], [3, 4]]


def test_a_tile_that_just_fits_is_the_only_one() -> None:
    assert grid((224, 224), (224, 224), (224, 224)).tolist() == [[0, 0]]
    assert grid((447, 224), (224, 224), (224, 224)).tolist() == [[0, 0]]
    assert grid((448, 224), (224, 224), (224, 224)).tolist() == [[0, 0], [224, 0]]


@pytest.mark.parametrize(("extent", "axes"), [((223, 224), 2), ((224, 0), 2), ((4, 4, 0), 3)])
def test_a_tile_larger_than_the_image_gives_no_origin(extent: tuple[int, ...], axes: int) -> None:
    size = (224, 224, 1)[:axes]
    origins = grid(extent, size, size)
    assert origins.shape == (0, axes)
    assert origins.dtype == np.int32


def test_no_origin_comes_twice_and_the_last_axis_is_slowest() -> None:
    origins = [tuple(reversed(origin)) for origin in grid((50, 41, 3), (10, 10, 1), (7, 8, 1)).tolist()]
    assert all(first < second for first, second in pairwise(origins))
    assert len(origins) == 6 * 4 * 3


def test_axes_that_do_not_match_are_our_own_bug() -> None:
    with pytest.raises(ValueError, match="longer"):
        grid((5, 4), (2, 2, 1), (2, 2))


class Painted(StandIn):
    """An image of 6 x 4 pixels in tiles of 2 x 2, with the share of tissue given for each tile."""

    extent = (6, 4)
    min_foreground = 0.25

    def __init__(self, *shares: float) -> None:
        self.shares = np.array(shares, np.float32)

    def foreground(self, origins: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.float32]:
        assert size == self.tile_size
        return self.shares[: len(origins)]

    def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return np.zeros((len(origins), 2, 2, 3), np.uint8), np.full(len(origins), READ_OK, np.uint8)


def test_tiles_with_enough_foreground_are_kept_in_the_order_of_the_grid() -> None:
    tiles = tile(Painted(0.0, 0.25, 0.2499, 1.0, 0.0, 0.5))
    assert tiles.origins.tolist() == [[2, 0], [0, 2], [4, 2]]
    assert tiles.origins.dtype == np.int32
    assert tiles.size == (2, 2)


def test_any_foreground_is_enough_when_no_share_is_asked_for() -> None:
    image = Painted(0.0, 1e-6, 0.5, 0.0, 1.0, 0.0)
    image.min_foreground = 0.0
    assert tile(image).origins.tolist() == [[2, 0], [4, 0], [2, 2]]


def test_what_is_kept_and_what_is_not_is_told_for_the_whole_grid() -> None:
    tiles = tile(Painted(0.0, 0.25, 0.2499, 1.0, 0.0, 0.5))
    assert tiles.grid.tolist() == [[0, 0], [2, 0], [4, 0], [0, 2], [2, 2], [4, 2]]
    assert tiles.reasons.tolist() == [TISSUE, KEPT, TISSUE, KEPT, TISSUE, KEPT]


class Black(Painted):
    """All tiles are black but those that cannot be read."""

    quality = QualitySettings(max_black=0.5)
    broken = (1,)

    def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        pixels, status = super().look(origins, threads)
        status[list(self.broken)] = READ_FAILED
        return pixels, status


def test_filters_remove_tiles_but_none_that_cannot_be_read() -> None:
    """Its failure is counted at `embed`; here it would be hidden."""
    beats: list[tuple[int, int]] = []
    tiles = tile(Black(1.0, 1.0, 0.0, 1.0, 1.0, 1.0), beat=lambda done, of: beats.append((done, of)))
    assert tiles.reasons.tolist() == [BLACK, KEPT, TISSUE, BLACK, BLACK, BLACK]
    assert tiles.origins.tolist() == [[2, 0]] and tiles.removed == "near black 4"
    assert beats == [(5, 5)]


def test_an_image_whose_tiles_are_all_removed_is_empty_and_says_by_what() -> None:
    image = Black(1.0, 1.0)
    image.broken = ()
    image.extent = (4, 2)
    tiles = tile(image)
    assert tiles.empty == "none of 2 tiles of tissue passes the filters (near black 2)"
    assert tiles.reasons.tolist() == [BLACK, BLACK] and len(tiles.origins) == 0


def test_a_padded_grid_has_the_tiles_over_the_far_edge() -> None:
    assert grid((5, 4), (2, 2), (2, 2), pads=True).tolist() == [[0, 0], [2, 0], [4, 0], [0, 2], [2, 2], [4, 2]]
    assert grid((1, 1), (2, 2), (2, 2), pads=True).tolist() == [[0, 0]]
    assert grid((5, 5), (4, 4), (3, 3), pads=True).tolist() == [[0, 0], [3, 0], [0, 3], [3, 3]]


def test_an_image_smaller_than_one_tile_is_empty_and_says_its_size() -> None:
    image = Painted()
    image.extent = (6, 1)
    with pytest.raises(EmptyImage, match="has 6x1 pixels at this resolution, fewer than one tile of 2x2"):
        tile(image)


def test_a_series_too_small_for_its_tile_says_all_its_axes() -> None:
    image = Painted()
    image.extent, image.tile_size, image.tile_stride = (6, 4, 0), (6, 4, 1), (6, 4, 1)
    with pytest.raises(EmptyImage, match="6x4x0 pixels .* one tile of 6x4x1"):
        tile(image)


def test_an_image_without_tissue_is_empty_and_says_what_was_asked_for() -> None:
    assert tile(Painted(*[0.2] * 6)).empty == "none of 6 tiles shows 25% foreground"
    assert tile(Painted(*[0.2] * 5, 1.0)).empty == ""
