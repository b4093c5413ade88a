"""Hounsfield units of stored values: padding, wrapped values, rescaling, and whether it looks right in the end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.images.decoding import read_stored
from pipeline.images.dicom import Coding, read_file
from pipeline.images.elements import quiet_pydicom
from pipeline.images.hounsfield import (
    AIR,
    HIGHEST,
    WRAP_CUT,
    Shares,
    border_evidence,
    hu_table,
    is_wrapped,
    may_be_wrapped,
    to_hounsfield,
    wrap_evidence,
)

SIGNED = Coding(16, 16, True, 1.0, 0.0, None)
UNSIGNED = Coding(16, 16, False, 1.0, 0.0, None)
RSNA = Coding(16, 12, False, 1.0, 0.0, None)
"""What the header of a wrapped slice says."""

GE = Path("ct_series/neurolabusc__dcm_qa_ct/In/GE")
PHILIPS = Path("ct_series/neurolabusc__dcm_qa_ct/S21570/S2010")
TOTALSEGMENTATOR = Path("ct_series/wasserth__TotalSegmentator/tests/reference_files/example_ct_dicom")
DCMQI = Path("ct_odd/QIICR__dcmqi/data/segmentations/ct-3slice")

Series = list[tuple[NDArray[np.generic], Coding]]


def hounsfield(values: list[float] | NDArray[np.generic], coding: Coding, wrapped_at: int | None = None) -> list[int]:
    kind = f"{'i' if coding.signed else 'u'}{coding.bits_allocated // 8}"
    stored = np.array(values, dtype=kind).reshape(1, -1)
    out = np.full(stored.shape, 77, dtype=np.int16)
    to_hounsfield(stored, coding, out, wrapped_at)
    return out[0].tolist()


def read_series(folder: Path) -> Series:
    series: Series = []
    with quiet_pydicom():
        for path in sorted(folder.iterdir()):
            headers = read_file(path)
            if not isinstance(headers, str):
                assert headers[0].coding is not None
                series.append((read_stored(headers[0], "a slice")[0], headers[0].coding))
    return series


def shares_of(series: Series, wrapped_at: int | None = None) -> Shares:
    shares = Shares()
    for stored, coding in series:
        shares.add(stored, coding, wrapped_at)
    return shares


def as_hounsfield(series: Series, wrapped_at: int | None = None) -> NDArray[np.int16]:
    volume = np.empty((len(series), *series[0][0].shape), dtype=np.int16)
    for (stored, coding), plane in zip(series, volume, strict=True):
        to_hounsfield(stored, coding, plane, wrapped_at)
    return volume


def wrapped(series: Series) -> Series:
    """As a scanner of 12 bits would have stored it that lets values wrap."""
    return [((plane.astype(np.int32) % 4096).astype(np.uint16), RSNA) for plane in as_hounsfield(series)]


def test_values_are_scaled_rounded_half_to_even_and_clipped():
    half = replace(SIGNED, slope=0.5, intercept=-3.0)
    assert hounsfield([0, 1, 2, 3, 5, 7, -1], half) == [-3, -2, -2, -2, 0, 0, -4]  # -2.5, -1.5, -.5, .5, -3.5
    assert hounsfield([-32768, -1025, -1024, 3071, 3072, 32767], SIGNED) == [-1024, -1024, -1024, 3071, 3071, 3071]
    assert (AIR, HIGHEST) == (-1024, 3071)


def test_slope_and_intercept_are_those_of_real_headers():
    lossy = Coding(16, 12, False, 2.0002442, -4047.0, None)
    # 498 * 2.0002442 - 4047 = -3050.878; 2000: -46.512; 2708: 1369.661; 2023.25: 0
    assert hounsfield([498, 2000, 2023, 2024, 2708], lossy) == [-1024, -47, -1, 1, 1370]
    baseline = Coding(8, 8, False, 32.1216, -4047.0, None)
    # 94.122 is -1023.6; 171 * 32.1216 - 4047 = 1445.794
    assert hounsfield([0, 17, 95, 126, 171, 255], baseline) == [-1024, -1024, -995, 0, 1446, 3071]


def test_8_bit_values_keep_their_sign():
    assert hounsfield([-128, -1, 127], Coding(8, 8, True, 1.0, 100.0, None)) == [-28, 99, 227]
    assert hounsfield([0, 128, 255], Coding(8, 8, False, 1.0, 100.0, None)) == [100, 228, 355]


def test_32_bit_values_are_computed_one_by_one():
    wide = Coding(32, 32, True, 0.001, -1000.0, (-(2**31), -(2**31)))
    assert hounsfield([-(2**31), 0, 1_040_000, 2**31 - 1], wide) == [AIR, -1000, 40, HIGHEST]
    assert hounsfield([2**32 - 1], Coding(32, 32, False, 1e-6, -4000.0, None)) == [295]  # 4294.967295 - 4000


@pytest.mark.parametrize("stated", [-2000, 63536 - 65536])
def test_padding_becomes_air(stated):
    coding = replace(SIGNED, intercept=-1024.0, padding=(stated, stated))
    assert hounsfield([-2000, -1999, 1024, 1064], coding) == [AIR, AIR, 0, 40]
    # of a value that would be tissue
    assert hounsfield([0, 30, 31], replace(SIGNED, padding=(30, 30))) == [0, AIR, 31]
    assert hounsfield([-32768, 0], replace(SIGNED, padding=(-32768, -32768))) == [AIR, 0]


def test_padding_can_be_a_range():
    coding = replace(UNSIGNED, intercept=-1000.0, padding=(1010, 1020))
    assert hounsfield([1009, 1010, 1015, 1020, 1021], coding) == [9, AIR, AIR, AIR, 21]


def test_padding_of_high_values_is_no_bone():
    coding = replace(UNSIGNED, intercept=-1024.0, padding=(63536, 63536))
    assert hounsfield([63535, 63536, 63537, 1024], coding) == [HIGHEST, AIR, HIGHEST, 0]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("intercept", [0, 1, -1, -1000, -1024, -8192, 1024, 4000, -40000, 40000, 70000, -0.5])
@pytest.mark.parametrize("padding", [None, (-2000, -2000), (0, 0), (63536, 63536), (-32768, -1500)])
@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_all_ways_to_compute_give_one_result(dtype, intercept, padding, slope):
    """For all 65,536 values, against the rule written down in floating point."""
    stored = np.arange(65536, dtype=np.uint16).view(dtype).reshape(256, 256)
    coding = Coding(16, 16, dtype is np.int16, slope, float(intercept), padding)
    out = np.empty(stored.shape, dtype=np.int16)
    to_hounsfield(stored, coding, out)
    expected = np.clip(np.round(stored.astype(np.float64) * slope + intercept), -1024, 3071)
    if padding:
        expected[(stored.astype(int) >= padding[0]) & (stored.astype(int) <= padding[1])] = -1024
    assert np.array_equal(out, expected)
    table = hu_table(coding, dtype is np.int16, None)
    assert np.array_equal(table, expected.ravel())
    wide = np.empty(stored.shape, dtype=np.int16)
    to_hounsfield(stored.astype(np.int32), replace(coding, bits_allocated=32), wide)
    assert np.array_equal(wide, expected)


def test_the_table_is_computed_once_and_cannot_be_changed():
    table = hu_table(RSNA, False, 1024)
    assert hu_table(RSNA, False, 1024) is table
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1


def test_wrapped_values_are_cut_at_1024():
    values = [0, 24, 1000, 3000, 3071, 3072, 3095, 3096, 4095]
    assert hounsfield(values, RSNA, WRAP_CUT) == [0, 24, 1000, 3000, 3071, -1024, -1001, -1000, -1]
    assert WRAP_CUT == 1024


def test_wrapped_values_can_be_cut_at_1000():
    """3095 stays 3095, which is beyond what is kept."""
    assert hounsfield([0, 24, 1000, 3071, 3095, 3096, 4095], RSNA, 1000) == [0, 24, 1000, 3071, 3071, -1000, -1]


def test_wrapping_is_no_sign_of_12_bits():
    """Two's complement would make dense bone of 3000 HU into air."""
    assert hounsfield([2047, 2048, 3000], RSNA, WRAP_CUT) == [2047, 2048, 3000]


def test_wrapped_values_have_no_slope_and_intercept():
    assert hounsfield([0, 3096], replace(RSNA, slope=2.0, intercept=1.0), WRAP_CUT) == [0, -1000]


def test_padding_is_found_before_values_are_unwrapped():
    """-2000 would become 2096."""
    coding = replace(RSNA, signed=True, padding=(-2000, -2000))
    assert hounsfield([-2000, -1000, 40], coding, WRAP_CUT) == [AIR, -1000, 40]
    assert hounsfield([-2000], replace(coding, padding=None), WRAP_CUT) == [2096]


def test_the_border_is_the_outermost_rows_and_columns():
    stored = np.zeros((4, 5), dtype=np.uint16)
    stored[0], stored[3], stored[1:3, 0], stored[1:3, 4], stored[1:3, 1:4] = 3072, 3071, 4095, 4096, 3500
    assert border_evidence(stored, RSNA) == (5 + 2, 14)
    assert border_evidence(stored, replace(RSNA, padding=(3072, 3080))) == (2, 9)
    assert border_evidence(stored, replace(RSNA, padding=(0, 65535))) == (0, 0)


@pytest.mark.parametrize(("shape", "border"), [((1, 5), 5), ((5, 1), 5), ((2, 2), 4), ((1, 1), 1), ((2, 5), 10)])
def test_each_pixel_of_the_border_counts_once(shape, border):
    assert border_evidence(np.full(shape, 3100, dtype=np.uint16), RSNA) == (border, border)


@pytest.mark.parametrize(
    ("change", "high", "wraps"),
    [
        ({}, 51, True),
        ({}, 50, False),  # no more than half
        ({"intercept": 1.0}, 51, True),
        ({"intercept": -99.0}, 51, True),
        ({"intercept": -100.0}, 100, False),
        ({"intercept": -1024.0}, 100, False),
        ({"bits_stored": 16}, 100, False),
        ({"signed": True}, 100, False),
    ],
)
def test_values_have_wrapped_when_header_and_border_say_so(change, high, wraps):
    assert (may_be_wrapped(replace(RSNA, **change)) and is_wrapped(high, 100)) is wraps


def test_a_border_that_is_all_padding_is_no_evidence():
    assert not is_wrapped(0, 0)
    assert wrap_evidence(0, 0) == "none of 0 border pixels in 3072..4095"
    assert wrap_evidence(1210, 1234) == "98% of 1,234 border pixels in 3072..4095"


def test_shares_are_of_all_pixels_and_leave_out_the_limits():
    stored = np.array([[-1050, -1049, -901, -900, -30, -29, 0, 119, 120, 500]], dtype=np.int16)
    shares = shares_of([(stored, SIGNED)])
    assert (shares.pixels, shares.air, shares.tissue, shares.tissue_median) == (10, 0.2, 0.3, 0.0)


def test_shares_are_of_hounsfield_units_of_each_slice():
    """As -1000, 40 and 41 HU, however stored."""
    hu = np.array([[-1000, -1000, 40, 41, 40]])
    series: Series = [
        (hu.astype(np.int16), SIGNED),
        ((hu + 1024).astype(np.uint16), replace(UNSIGNED, intercept=-1024.0)),
        ((hu * 2 + 2048).astype(np.uint16), replace(UNSIGNED, slope=0.5, intercept=-1024.0)),
        ((-hu).astype(np.int16), replace(SIGNED, slope=-1.0)),
        ((hu * 1000).astype(np.int32), Coding(32, 32, True, 0.001, 0.0, None)),
        (((hu + 1000) // 5).astype(np.uint8), Coding(8, 8, False, 5.0, -1000.0, None)),
    ]
    for stored, coding in series:
        shares = shares_of([(stored, coding)])
        assert (shares.air, shares.tissue, shares.tissue_median) == (0.4, 0.6, 40.0)
    assert shares_of(series).pixels == 30
    assert shares_of(series).air == pytest.approx(0.4)
    assert shares_of(series).tissue == pytest.approx(0.6)


def test_padding_is_no_tissue_and_air_where_its_value_is():
    stored = np.array([[0, 0, 24, 1024 + 40, 1024 + 50]], dtype=np.uint16)
    coding = replace(UNSIGNED, intercept=-1024.0)
    assert shares_of([(stored, replace(coding, padding=(0, 0)))]).air == pytest.approx(0.6)
    assert shares_of([(stored, replace(coding, intercept=-3000.0, padding=(0, 0)))]).air == 0.0
    shares = shares_of([(stored, replace(coding, padding=(1064, 1064)))])
    assert (shares.tissue, shares.tissue_median) == (pytest.approx(0.2), 50.0)


@pytest.mark.parametrize(("wrapped_at", "air"), [(None, -1000), (WRAP_CUT, 3096)])
def test_air_is_enough_as_a_share_of_what_was_scanned(wrapped_at, air):
    """A patient who fills the scanned circle leaves to the air 4.4 % of the square, and 5.6 % of the circle.

    What is below -1100 HU was not scanned, whether the header calls it padding or not.
    """
    values = np.full((1, 1000), 40, dtype=np.int16)
    values[0, :44], values[0, 44:256] = air, -2000
    coding = replace(RSNA if wrapped_at else SIGNED, intercept=0.0)
    for padding in ((-2000, -2000), None) if wrapped_at is None else ((-2000, -2000),):
        shares = shares_of([(values, replace(coding, padding=padding))], wrapped_at)
        assert (shares.air, shares.looks_like_hu) == (pytest.approx(0.044), True)
    values[0, 44:256] = 500
    assert not shares_of([(values, coding)], wrapped_at).looks_like_hu


def test_shares_of_wrapped_values_are_of_unwrapped_ones():
    stored = np.array([[3096, 3072, 40, 4095, 2000]], dtype=np.uint16)  # -1000, -1024, 40, -1
    shares = shares_of([(stored, RSNA)], WRAP_CUT)
    assert (shares.air, shares.tissue, shares.tissue_median) == (pytest.approx(0.4), pytest.approx(0.4), -1.0)
    padded = shares_of([(stored, replace(RSNA, padding=(40, 40)))], WRAP_CUT)
    assert (padded.pixels, padded.tissue) == (5, pytest.approx(0.2))


@pytest.mark.parametrize(("slope", "intercept"), [(0.0, 40.0), (1e-300, 0.5), (1e300, -1e300), (1e13, 5e17)])
def test_absurd_rescales_give_no_error(slope, intercept):
    stored = np.arange(-500, 500, dtype=np.int16).reshape(10, 100)
    shares = shares_of([(stored, replace(SIGNED, slope=slope, intercept=intercept))])
    assert shares.pixels == 1000 and not shares.looks_like_hu


def test_nothing_counted_is_nothing():
    shares = Shares()
    assert (shares.air, shares.tissue, shares.tissue_median, shares.looks_like_hu) == (0.0, 0.0, None, False)


@pytest.mark.parametrize(
    ("air", "tissue", "looks"), [(51, 16, True), (50, 16, False), (51, 15, False), (900, 0, False)]
)
def test_hounsfield_units_show_air_and_tissue(air, tissue, looks):
    stored = np.full(1000, 2000, dtype=np.int16)
    stored[:air], stored[air : air + tissue] = -1000, 40
    assert shares_of([(stored.reshape(40, 25), SIGNED)]).looks_like_hu is looks


@pytest.mark.parametrize(
    ("folder", "slices", "air", "tissue", "median"),
    [
        (GE, 28, 0.318, 0.245, (31, 40)),
        (PHILIPS, 28, 0.810, 0.026, (84, 93)),
        (TOTALSEGMENTATOR, 20, 0.607, 0.216, (63, 63)),
        (DCMQI, 3, 0.227, 0.235, (31, 40)),
    ],
)
def test_real_series_look_like_hounsfield_units_and_damaged_ones_do_not(
    shared_data, folder, slices, air, tissue, median
):
    """Shares and medians measured by another program; the damage: inverted, shifted either way, wrapped."""
    series = read_series(shared_data / folder)
    shares = shares_of(series)
    assert len(series) == slices
    assert (round(shares.air, 3), round(shares.tissue, 3)) == (air, tissue)
    assert shares.tissue_median is not None and median[0] <= shares.tissue_median <= median[1]
    assert shares.looks_like_hu
    top = max(int(stored.max()) for stored, _ in series) + min(int(stored.min()) for stored, _ in series)
    for damaged in (
        [((top - stored.astype(np.int32)).astype(stored.dtype), coding) for stored, coding in series],
        [(stored, replace(coding, intercept=coding.intercept + 1024)) for stored, coding in series],
        [(stored, replace(coding, intercept=coding.intercept - 1024)) for stored, coding in series],
        wrapped(series),
    ):
        assert not shares_of(damaged).looks_like_hu


@pytest.mark.parametrize("folder", [GE, PHILIPS, TOTALSEGMENTATOR, DCMQI])
def test_wrapped_series_are_found_and_put_right_wholly(shared_data, folder):
    series = read_series(shared_data / folder)
    high, border = np.sum([border_evidence(stored, coding) for stored, coding in wrapped(series)], axis=0).tolist()
    assert high > 0.97 * border and is_wrapped(high, border)
    assert np.array_equal(as_hounsfield(wrapped(series), WRAP_CUT), as_hounsfield(series))
    assert not any(may_be_wrapped(coding) for _, coding in series)


def test_a_cut_at_1000_would_make_metal_of_the_air_of_a_real_series(shared_data):
    """29.4 % of its pixels, as another program found."""
    series = read_series(shared_data / PHILIPS)
    right, cut_at_1000 = as_hounsfield(series), as_hounsfield(wrapped(series), 1000)
    wrong = right != cut_at_1000
    assert wrong.mean() == pytest.approx(0.294, abs=5e-4)
    assert (right[wrong] < -1000).all() and (cut_at_1000[wrong] == HIGHEST).all()


@pytest.mark.parametrize(
    ("folder", "mean", "limits"),
    [
        (GE, -548.8229, (-1024, 2121)),
        (PHILIPS, -830.6064, (-1024, 782)),
        (TOTALSEGMENTATOR, -624.1259, (-1024, 1839)),
    ],
)
def test_hounsfield_units_of_real_series_are_those_of_another_program(shared_data, folder, mean, limits):
    volume = as_hounsfield(read_series(shared_data / folder))
    assert volume.mean(dtype=np.float64) == pytest.approx(mean, abs=5e-5)
    assert (volume.min(), volume.max()) == limits
