"""Which pixels stand for a resolution."""

import pytest

from pipeline.errors import ImageError
from pipeline.images.view import choose_view, decodable_sizes, extent_of, picture_view, same_shape

EXTENTS = ((40_000, 20_000), (10_000, 5_000), (2_500, 1_250))
DOWNSAMPLES = (1.0, 4.0, 16.0)
JPEG = {0: (1, 2, 4, 8), 1: (1, 2, 4, 8), 2: (1, 2, 4, 8)}


def chosen(l0_mpp, wanted, tolerance=0.02, factors=JPEG):
    view = choose_view(decodable_sizes(EXTENTS, DOWNSAMPLES, factors), l0_mpp, wanted, tolerance)
    return view.level, view.factor, round(view.scale[0], 4)


@pytest.mark.parametrize(
    ("l0_mpp", "wanted", "expected"),
    [
        (0.25, 0.25, (0, 1, 1.0)),
        (0.25, 1.0, (1, 1, 1.0)),  # the level itself, not level 0 shrunk by four
        (0.25, 0.5, (0, 2, 1.0)),  # shrunk in the decoder: nothing is resampled
        (0.252, 0.5, (0, 2, 1.0)),  # 0.504 is within 2 %
        (0.25, 2.0, (1, 2, 1.0)),  # not level 0 shrunk by eight
        (0.37, 0.5, (0, 1, 1.3514)),  # no bucket: 0.37 is 0.37
        (0.37, 0.37, (0, 1, 1.0)),
        (0.25, 0.7, (0, 2, 1.4)),  # from 0.5, the nearest finer size
        (0.25, 1.5, (1, 1, 1.5)),
        (0.505, 0.5, (0, 1, 1.0)),
        (0.25, 0, (0, 1, 1.0)),  # the slide's finest
        (0.25, 50.0, (2, 8, 1.5625)),
    ],
)
def test_the_nearest_size_that_is_fine_enough(l0_mpp, wanted, expected):
    assert chosen(l0_mpp, wanted) == expected


def test_without_a_decoder_that_shrinks_it_is_resampled():
    assert chosen(0.25, 0.5, factors={}) == (0, 1, 2.0)
    assert chosen(0.25, 0.5, factors={0: (1,)}) == (0, 1, 2.0)


def test_the_tolerance_is_relative_to_what_is_wanted():
    """0.25 is 1.96 % from 0.255."""
    assert chosen(0.25, 0.255, tolerance=0.0195) == (0, 1, 1.02)
    assert chosen(0.25, 0.255, tolerance=0.0197) == (0, 1, 1.0)


def test_a_slide_that_is_too_coarse_is_refused():
    with pytest.raises(ImageError, match="finest resolution is 0.6 µm per pixel, coarser than slide.mpp 0.5: set"):
        chosen(0.6, 0.5)


def test_the_extent_counts_whole_pixels():
    view = choose_view(decodable_sizes(((1001, 777),), (1.0,), {0: (1, 2)}), 0.25, 0.5, 0.02)
    assert extent_of(view) == (500, 388)
    view = choose_view(decodable_sizes(((1001, 777),), (1.0,), {}), 0.25, 0.6, 0.02)
    assert extent_of(view) == (417, 323)  # 1001 / 2.4 = 417.08, 777 / 2.4 = 323.75


def test_levels_of_another_shape_are_not_used():
    """Of a real file: its third level claims to be 11 million pixels high."""
    assert same_shape(((1024, 256), (512, 128), (256, 11206720), (15, 4), (3, 1))) == [0, 1, 3, 4]


def test_ten_levels_with_wrong_sizes_among_them():
    extents = tuple((10_240 >> n, 10_240 >> n if n % 3 else 10_240 >> max(n - 2, 0)) for n in range(10))
    sizes = decodable_sizes(extents, tuple(float(10_240 / width) for width, _ in extents), {})
    assert [view.level for view in sizes] == [0, 1, 2, 4, 5, 7, 8]


@pytest.mark.parametrize(
    ("width", "level", "factor"), [(2_500, 2, 1), (2_400, 2, 1), (1_250, 2, 2), (2_600, 1, 2), (100, 2, 8)]
)
def test_a_picture_comes_from_the_coarsest_size_that_is_fine_enough(width, level, factor):
    view = picture_view(decodable_sizes(EXTENTS, DOWNSAMPLES, JPEG), width, width // 2)
    assert (view.level, view.factor) == (level, factor)
    assert view.scale == pytest.approx((view.extent[0] / width, view.extent[1] / (width // 2)))
