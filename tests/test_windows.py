"""Windows: every HU gets the brightness that the standard says, names mean their numbers, neighbours lie close."""

from fractions import Fraction

import numpy as np
import pytest
from highdicom.pixels import apply_voi_window

from pipeline.windows import NAMED, describe, neighbours, resolve, window, window_table

HOUNSFIELD = [-1000, -20, 0, 20, 30, 39, 40, 60, 79, 80, 100, 180, 230, 1000, 2000]
# Computed by hand from the definition of LINEAR_EXACT, to six digits.
# fmt: off
GOLDEN = {
    (40, 80): [0, 0, 0, 0.25, 0.375, 0.4875, 0.5, 0.75, 0.9875, 1, 1, 1, 1, 1, 1],
    (80, 200): [0, 0, 0.1, 0.2, 0.25, 0.295, 0.3, 0.4, 0.495, 0.5, 0.6, 1, 1, 1, 1],
    (40, 380): [0, 0.342105, 0.394737, 0.447368, 0.473684, 0.497368, 0.5, 0.552632, 0.602632, 0.605263, 0.657895,
               0.868421, 1, 1, 1],
    (600, 2800): [0, 0.278571, 0.285714, 0.292857, 0.296429, 0.299643, 0.3, 0.307143, 0.313929, 0.314286, 0.321429,
                  0.35, 0.367857, 0.642857, 1],
    (40, 40): [0, 0, 0, 0, 0.25, 0.475, 0.5, 1, 1, 1, 1, 1, 1, 1, 1],
    (30, 30): [0, 0, 0, 0.166667, 0.5, 0.8, 0.833333, 1, 1, 1, 1, 1, 1, 1, 1],
}
# fmt: on
CLIPPED = {
    "brain": (0, 80),
    "subdural": (-20, 180),
    "soft_tissue": (-150, 230),
    "bone": (-800, 2000),
    "stroke": (20, 60),
    "narrow_stroke": (28, 36),
    "blood": (-32.5, 182.5),
    "wide_brain": (0, 100),
    "sa_dmil": (15, 45),
    "lung": (-1350, 150),
    "mediastinum": (-150, 250),
    "liver": (-20, 140),
}
"""Lowest and highest HU of each name, as radiologists state them."""

ALL_HOUNSFIELD = np.arange(-1024, 3072)


@pytest.mark.parametrize("shown", GOLDEN)
def test_the_brightness_of_published_windows_is_known(shown: tuple[float, float]) -> None:
    assert window(HOUNSFIELD, shown) == pytest.approx(GOLDEN[shown], abs=1e-6)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_window_is_the_standards_linear_exact(name: str) -> None:
    expected = apply_voi_window(ALL_HOUNSFIELD, *NAMED[name], voi_lut_function="LINEAR_EXACT")
    assert window(ALL_HOUNSFIELD, NAMED[name]) == pytest.approx(expected, abs=1e-12)


def test_the_standards_other_functions_show_something_else() -> None:
    """At HU 20 in 40/80: LINEAR (20 - 39.5) / 79 + 0.5, SIGMOID 1 / (1 + e)."""
    others = [apply_voi_window(np.array([20]), 40, 80, voi_lut_function=name)[0] for name in ("LINEAR", "SIGMOID")]
    assert others == pytest.approx([0.253165, 0.268941], abs=1e-6)
    assert window(20, (40, 80)) == 0.25


def test_brightness_keeps_the_shape_of_what_it_is_of() -> None:
    assert window([[0, 20, 40], [60, 80, 100]], (40, 80)).tolist() == [[0, 0.25, 0.5], [0.75, 1, 1]]


@pytest.mark.parametrize("name", NAMED)
def test_the_table_is_exact_arithmetic_rounded_half_to_even(name: str) -> None:
    centre, width = (Fraction(number) for number in NAMED[name])
    shares = [(int(value) - centre + width / 2) / width for value in ALL_HOUNSFIELD]
    # Python rounds a fraction half to even.
    expected = [round(255 * min(max(share, Fraction(0)), Fraction(1))) for share in shares]
    assert window_table([NAMED[name]])[:, 0].tolist() == expected


def test_a_table_has_a_column_for_each_window_and_a_row_for_each_hounsfield_unit() -> None:
    table = window_table([(40, 80), (80, 200), (40, 380)])
    assert (table.shape, table.dtype) == ((4096, 3), np.uint8)
    # 255 times 0.5, 0.3, 0.5 is 127.5, 76.5, 127.5.
    assert table[1024 + 40].tolist() == [128, 76, 128]
    assert table[0].tolist() == [0, 0, 0]
    assert table[-1].tolist() == [255, 255, 255]


def test_a_table_begins_and_ends_where_it_is_told_to() -> None:
    assert window_table([(1, 2)], -1, 3).tolist() == [[0], [0], [128], [255], [255]]


def test_each_name_shows_the_range_that_it_is_known_for() -> None:
    shown = {name: (centre - width / 2, centre + width / 2) for name, (centre, width) in NAMED.items()}
    assert shown == CLIPPED


def test_a_name_becomes_its_numbers_and_numbers_stay_what_they_are() -> None:
    assert resolve("subdural") == (80, 200)
    assert resolve((37.5, 75)) == (37.5, 75)
    assert resolve([40, 80]) == (40, 80)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no window is called `brian`: use one of brain, subdural, .*, liver, or"):
        resolve("brian")


@pytest.mark.parametrize("width", [0, -80])
def test_a_window_without_width_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=f"a window of width {width}: use a width above 0 HU"):
        resolve((40, width))


@pytest.mark.parametrize("value", [(40,), (40, 80, 3), (), (float("nan"), 80), (40, float("nan")), (40, float("inf"))])
def test_what_is_no_centre_and_width_is_refused(value: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="two numbers"):
        resolve(value)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ((40, 80), "brain 0 to 80 HU"),
        ((40.0, 380.0), "soft tissue -150 to 230 HU"),
        ((75, 215), "blood -32.5 to 182.5 HU"),
        ((40, 81), "-0.5 to 80.5 HU"),
        ((0.1, 0.2), "0 to 0.2 HU"),
        ((1500, 5000), "-1000 to 4000 HU"),
    ],
)
def test_a_window_is_told_by_its_range_and_by_its_name_if_it_has_one(shown: tuple[float, float], text: str) -> None:
    assert describe(shown) == text


def test_at_the_ends_the_end_slice_is_its_own_neighbour() -> None:
    assert neighbours([0, 5, 10, 15]).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_short_stacks_have_neighbours_too() -> None:
    assert neighbours([]).tolist() == []
    assert neighbours([7.5]).tolist() == [[0, 0, 0]]
    assert neighbours([0, 5]).tolist() == [[0, 0, 1], [0, 1, 1]]


def test_across_a_wide_gap_a_slice_is_its_own_neighbour() -> None:
    z = [0, 5, 10, 30, 35, 40]
    assert neighbours(z).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 4], [3, 4, 5], [4, 5, 5]]


def test_a_slice_between_two_wide_gaps_stands_alone() -> None:
    assert neighbours([0, 1, 2, 12, 22, 23, 24]).tolist()[3] == [3, 3, 3]


def test_the_direction_of_z_does_not_matter() -> None:
    z = np.array([0, 5, 10, 30, 35, 40])
    assert np.array_equal(neighbours((-z).tolist()), neighbours(z.tolist()))


def test_thicker_slices_in_a_part_of_the_stack_are_neighbours() -> None:
    """As in a tilted head scan of two thicknesses; the median distance is 4.002 mm."""
    z = np.cumsum([0, *[4.002] * 13, 1.081, *[6.999] * 13])
    expected = [[max(k - 1, 0), k, min(k + 1, 27)] for k in range(28)]
    assert neighbours(z.tolist()).tolist() == expected


@pytest.mark.parametrize("noise", [-1e-4, 0, 1e-4])
def test_one_missing_slice_is_bridged_whatever_the_last_digit_of_its_position(noise: float) -> None:
    """Its gap is twice the median, and a slice is alone from more than twice on."""
    assert neighbours([0, 5, 10, 20 + noise, 25, 30]).tolist()[2:4] == [[1, 2, 3], [2, 3, 4]]
    assert neighbours([0, 5, 10, 20.5, 25, 30]).tolist()[2:4] == [[1, 2, 2], [3, 3, 4]]
