"""A series becomes a volume: its values, what is refused, and what is said of it."""

import json

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

import pipeline.images.volume as volume_module

LEAK = "ZZTEST^LEAK"

HEAD = np.full((16, 16), -1000)
HEAD[3:13, 3:13] = 40
HEAD[3, 3:13] = 1200
HEAD[8, 8] = 3000
"""HU of air around tissue, bone and metal."""


def first(volume) -> list[int]:
    """The HU of each slice's first pixel."""
    return volume[:, 0, 0].tolist()


# Hounsfield units


def test_each_slice_has_its_own_slope_and_intercept(write_slice, read_series):
    write_slice("a", z=0, value=100, RescaleSlope=1, RescaleIntercept=-1024)
    write_slice("b", z=1, value=100, RescaleSlope=2, RescaleIntercept=-150)
    write_slice("c", z=2, value=101, RescaleSlope=0.25, RescaleIntercept=0.5)
    write_slice("d", z=3, value=40000, PixelRepresentation=0, RescaleSlope=0.05, RescaleIntercept=-1000)
    volume, properties = read_series()
    assert first(volume) == [-924, 50, 26, 1000] and volume.dtype == np.int16
    assert properties["qc"]["rescale"] == (
        "slope 0.05 intercept -1000, slope 0.25 intercept 0.5, slope 1 intercept -1024 and 1 more"
    )
    assert properties["qc"]["bits"] == "16 of 16 signed, 16 of 16 unsigned"


def test_values_are_kept_between_air_and_dense_bone(write_slice, read_series):
    for z, value in enumerate([-3024, -1101, -1025, -1024, 3071, 3072, 30000]):
        write_slice(f"{z}", z=z, value=value)
    assert first(read_series()[0]) == [-1024, -1024, -1024, -1024, 3071, 3071, 3071]


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelPaddingValue": 500},
        {"PixelPaddingValue": DataElement(0x00280120, "US", 500)},
        {"PixelPaddingValue": 400, "PixelPaddingRangeLimit": 600},
        {"PixelPaddingValue": 600, "PixelPaddingRangeLimit": 400},
    ],
)
def test_padding_becomes_air_and_its_neighbours_do_not(write_slice, read_series, elements):
    values = np.full((16, 16), 7)
    values[0, :3] = [500, 399, 601]
    write_slice("a", value=values, **elements)
    volume, properties = read_series()
    assert volume[0, 0, :4].tolist() == [-1024, 399, 601, 7]
    assert properties["qc"]["padding_source"] == "header"
    assert properties["qc"]["padding"] == ("500" if len(elements) == 1 else "400 to 600")


@pytest.mark.parametrize("stated", [DataElement(0x00280120, "US", 63536), -2000])
def test_padding_stated_in_the_other_signedness_is_understood(write_slice, read_series, stated):
    """63536 is -2000 read as unsigned; with a slope, -2000 would otherwise become -100 HU."""
    values = np.full((16, 16), -2000)
    values[1:] = 0
    write_slice("a", value=values, RescaleSlope=0.05, PixelPaddingValue=stated)
    assert read_series()[0][0, :2, 0].tolist() == [-1024, 0]


def test_padding_that_is_not_named_is_known_by_its_value(write_slice, read_series):
    write_slice("a", value=-2000)
    volume, properties = read_series()
    assert first(volume) == [-1024]
    assert (properties["qc"]["padding"], properties["qc"]["padding_source"]) == ("", "below -1100 HU")


def test_monochrome1_is_not_inverted(write_slice, read_series):
    write_slice("a", value=-700, PhotometricInterpretation="MONOCHROME1")
    assert first(read_series()[0]) == [-700]


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("signed", [0, 1])
def test_values_of_12_and_16_bits_with_and_without_a_sign(write_slice, read_series, bits, signed):
    value = -1000 if signed else 24
    write_slice("a", value=value, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=signed, RescaleIntercept=-500)
    assert first(read_series()[0]) == [max(-1024, value - 500)]


@pytest.mark.parametrize(
    ("unit", "named"),
    [("OD", "rescale type OD"), ("Z_EFF", "rescale type Z_EFF"), (LEAK, "another rescale type")],
)
def test_other_units_are_refused_and_only_known_ones_named(write_slice, refusal, unit, named):
    write_slice("a", z=0)
    write_slice("b", z=1, RescaleType=unit)
    assert refusal() == (
        f"values of 1 of 2 slices are not in Hounsfield units ({named}): use the original CT, or leave this series out"
    )


@pytest.mark.parametrize("absent", ["RescaleSlope", "RescaleIntercept"])
def test_values_without_a_rescale_are_refused(write_slice, refusal, absent):
    write_slice("a", z=0)
    write_slice("b", z=1, **{absent: None})
    assert refusal().startswith("1 of 2 slices state no RescaleSlope and RescaleIntercept, so their values are not in")


def test_a_table_in_place_of_a_rescale_is_refused(write_slice, refusal):
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [2, 0, 16], "HU", bytes(4)
    write_slice("a", ModalityLUTSequence=[table])
    assert "(rescale type table)" in refusal()


def test_a_unit_that_is_not_stated_is_taken_as_hounsfield_and_noted(write_slice, read_series):
    write_slice("a", value=35, RescaleType="US")
    volume, properties = read_series()
    assert first(volume) == [35]
    assert "rescale type US: the unit of its values is not stated, taken as HU" in properties["notes"]


def test_a_series_must_look_like_hounsfield_units(write_slice, refusal, read_series):
    """Of 256 pixels 156 are air and 89 tissue; with an offset of 1024 there is no air left."""
    write_slice("a", z=0, value=HEAD)
    write_slice("b", z=1, value=HEAD)
    _, properties = read_series(hu_check="refuse")
    assert properties["qc"]["air_share"] == round(156 / 256, 4)
    assert properties["qc"]["tissue_share"] == round(89 / 256, 4)
    assert properties["qc"]["tissue_median_hu"] == 40 and properties["notes"] == []
    for name, z in (("a", 0), ("b", 1)):
        write_slice(name, z=z, value=HEAD, RescaleIntercept=1024)
    assert refusal(hu_check="refuse") == (
        "values do not look like Hounsfield units (0.0% of its pixels are air and 60.9% are tissue; usual are more "
        "than 5 % and 1.5 %): check its rescaling, or set series.hu_check to note"
    )
    volume, properties = read_series(hu_check="note")
    assert volume[0, 0, 0] == 24
    assert "does not look like Hounsfield units: 0.0% of its pixels are air and 60.9% are tissue" in properties["notes"]


# 12-bit values that have wrapped

UNSIGNED_12 = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}


@pytest.mark.parametrize("air", [-1000, -1024])
@pytest.mark.parametrize("intercept", [0, 1])
def test_wrapped_values_are_put_right_where_the_border_shows_it(write_slice, read_series, air, intercept):
    head = np.where(HEAD == -1000, air, HEAD)
    for z in range(2):
        write_slice(f"{z}", z=z, value=head % 4096, RescaleIntercept=intercept, **UNSIGNED_12)
    volume, properties = read_series()
    assert np.array_equal(volume, [head, head]) and volume.max() == 3000
    assert properties["qc"]["twelve_bit_fix"] is True
    evidence = "100% of 120 border pixels in 3072..4095"
    assert properties["qc"]["twelve_bit_evidence"] == evidence
    assert f"12-bit values had wrapped and were put right ({evidence})" in properties["notes"]
    assert properties["qc"]["air_share"] == (round(156 / 256, 4))


def test_values_that_have_not_wrapped_are_left_as_they_are(write_slice, read_series):
    """Only the middle has high values, and most of the border of the series has not."""
    inside = np.zeros((16, 16), dtype=int)
    inside[4:12, 4:12] = 3500
    write_slice("a", z=0, value=inside, **UNSIGNED_12)
    write_slice("b", z=1, value=0, **UNSIGNED_12)
    volume, properties = read_series()
    assert volume[0, 5, 5] == 3071 and volume[0, 0, 0] == 0
    assert properties["qc"]["twelve_bit_fix"] is False
    assert properties["qc"]["twelve_bit_evidence"] == "0% of 120 border pixels in 3072..4095"


def test_the_verdict_on_wrapping_is_one_for_the_series(write_slice, read_series):
    """A slice whose border is all tissue has wrapped like the others."""
    filled = np.full((16, 16), 40)
    filled[8, 8] = 4095
    for z, values in enumerate([HEAD % 4096, filled, HEAD % 4096]):
        write_slice(f"{z}", z=z, value=values, **UNSIGNED_12)
    volume, properties = read_series()
    assert volume[1, 8, 8] == -1 and first(volume) == [-1000, 40, -1000]
    assert properties["qc"]["twelve_bit_evidence"] == "67% of 180 border pixels in 3072..4095"


@pytest.mark.parametrize("others", [{"RescaleIntercept": -1024}, {"BitsStored": 16, "HighBit": 15}])
def test_high_values_that_mean_metal_are_left_alone(write_slice, read_series, others):
    write_slice("a", value=3500, **(UNSIGNED_12 | others))
    volume, properties = read_series()
    assert first(volume) == [2476 if "RescaleIntercept" in others else 3071]
    assert (properties["qc"]["twelve_bit_fix"], properties["qc"]["twelve_bit_evidence"]) == (False, "")


# What is refused unless the settings allow it


def test_text_burned_into_pixels_is_refused_unless_allowed(write_slice, refusal, read_series):
    write_slice("a", z=0, value=9, BurnedInAnnotation="YES")
    write_slice("b", z=1, value=9, BurnedInAnnotation="NO")
    assert refusal() == (
        "1 of 2 slices have text burned into their pixels, which may name a patient: use the original CT, or set "
        "series.burned_in to allow"
    )
    assert first(read_series(burned_in="allow")[0]) == [9, 9]


def test_missing_slices_are_noted_or_refused(write_slice, refusal, read_series):
    for z in (0, 5, 10, 20, 25, 30):
        write_slice(f"{z}", z=z)
    note = "1 slice is missing (a gap of 10 mm where 5 mm are usual)"
    _, properties = read_series()
    assert note in properties["notes"]
    assert (properties["qc"]["n_missing"], properties["missing_after"], properties["regular"]) == (1, [2], False)
    assert refusal(missing_slices="refuse") == f"{note}: export this series again, or set series.missing_slices to note"


def test_two_thicknesses_lack_no_slice(write_slice, read_series):
    for z, thickness in [(0, 5), (5, 5), (10, 5), (15, 5), (25, 10), (35, 10), (45, 10)]:
        write_slice(f"{z}", z=z, SliceThickness=thickness)
    _, properties = read_series(missing_slices="refuse")
    assert properties["qc"]["thicknesses"] == [5, 10]
    assert "slice thickness 5 and 10 mm" in properties["notes"]


def test_numbers_give_the_order_where_the_settings_trust_them(write_slice, read_series, refusal):
    for name, number in [("a", 3), ("b", 1), ("c", 2)]:
        write_slice(name, value=number, InstanceNumber=number, ImagePositionPatient=None)
    assert refusal().startswith("none of 3 CT slices states its position: set series.order to instance_number ")
    volume, properties = read_series(order="instance_number")
    assert first(volume) == [1, 2, 3]
    assert (properties["order_source"], properties["z_mm"], properties["affine"]) == (
        "instance number",
        [0, 5, 10],
        None,
    )
    assert properties["notes"][0].startswith("slices in the order of InstanceNumber, no positions are stated")


def test_positions_that_are_stated_give_the_order_whatever_the_settings(write_slice, read_series):
    for name, z, number in [("a", 7.5, 1), ("b", -3.25, 2), ("c", 0.0, 3), ("d", 2.5, 0)]:
        write_slice(name, z=z, value=int(100 * z), InstanceNumber=number)
    for order in ("position", "instance_number"):
        volume, properties = read_series(order=order)
        assert properties["z_mm"] == [-3.25, 0.0, 2.5, 7.5]
        assert first(volume) == [-325, 0, 250, 750]
        assert properties["instance_number"] == [2, 3, 0, 1]


# A field of one size


def test_slices_are_cropped_and_padded_around_their_middle(write_slice, read_series):
    """Rows 0.5 mm apart and columns 1 mm: a field of 12 mm has 24 rows and 12 columns of 16 and 16."""
    values = np.arange(256).reshape(16, 16)
    write_slice("a", value=values, PixelSpacing=[0.5, 1.0])
    volume, _ = read_series(field_mm=12)
    assert volume.shape == (1, 24, 12)
    assert np.array_equal(volume[0, 4:20], values[:, 2:14])
    assert set(volume[0, :4].ravel()) == set(volume[0, 20:].ravel()) == {-1024}


@pytest.mark.parametrize(
    ("field_mm", "side", "kept"), [(5, 5, slice(5, 10)), (15, 15, slice(0, 15)), (16, 16, slice(0, 16))]
)
def test_of_an_odd_rest_the_larger_part_lies_behind(write_slice, read_series, field_mm, side, kept):
    values = np.arange(256).reshape(16, 16)
    write_slice("a", value=values, PixelSpacing=[1.0, 1.0])
    volume, _ = read_series(field_mm=field_mm)
    assert volume.shape == (1, side, side) and np.array_equal(volume[0], values[kept, kept])


def test_an_odd_side_is_padded_by_one_more_behind(write_slice, read_series):
    write_slice("a", value=5, PixelSpacing=[1.0, 1.0])
    volume, _ = read_series(field_mm=19)
    assert volume.shape == (1, 19, 19)
    inside = np.argwhere(volume[0] == 5)
    assert inside.min(axis=0).tolist() == [1, 1] and inside.max(axis=0).tolist() == [16, 16]


def test_the_affine_holds_for_the_field(write_slice, read_series):
    """Every pixel stays where it was in the patient: 4 rows more come before, 2 columns less, by hand."""
    for z in (0, 5):
        write_slice(f"{z}", z=z, PixelSpacing=[0.5, 1.0])
    whole, fitted = read_series()[1]["affine"], read_series(field_mm=12)[1]["affine"]
    assert [row[3] for row in whole] == [-4, -4, 0, 1]
    assert [row[3] for row in fitted] == [-4 + 2 * 1.0, -4 - 4 * 0.5, 0, 1]
    assert [row[:3] for row in fitted] == [row[:3] for row in whole]


def test_a_field_needs_a_spacing_that_can_be(write_slice, refusal):
    write_slice("a", PixelSpacing=None)
    assert refusal(field_mm=200).startswith("no PixelSpacing is stated, which series.field_mm needs: ")
    for tiny in (1e-6, 1e-320, 5e-324):
        write_slice("a", PixelSpacing=[tiny, tiny])
        assert refusal(field_mm=200).startswith("no PixelSpacing is stated, which series.field_mm needs: ")
    write_slice("a", PixelSpacing=[0.002, 0.002])
    assert refusal(field_mm=200).startswith("a field of 200 mm has 100000 x 100000 pixels: ")


# What is said of it


def test_the_record_and_the_properties_are_these(write_slice, read_series, tmp_path):
    for z in range(2):
        write_slice(
            f"{z}", z=5.0 * z, value=HEAD, PatientBirthDate="19700101", StudyDate="20200101", SeriesNumber=4, KVP=120,
            Manufacturer="GE MEDICAL SYSTEMS", InstanceNumber=z + 1, StudyInstanceUID="1.2", BitsStored=12, HighBit=11,
        )  # fmt: skip
    write_slice("other", SeriesInstanceUID="1.2.9", SeriesNumber=5)
    write_slice("mr", Modality="MR")
    (tmp_path / "series/text").write_text("Doe^Jane")
    _, properties = read_series()
    qc = properties.pop("qc")
    assert properties == {
        "z_mm": [0.0, 5.0],
        "gap_mm": [5.0],
        "gap_min_mm": 5.0,
        "gap_median_mm": 5.0,
        "gap_max_mm": 5.0,
        "regular": True,
        "n_missing": 0,
        "missing_after": [],
        "thicknesses": [5.0],
        "mixed_thickness": False,
        "normal": [0.0, 0.0, 1.0],
        "tilt_deg": 0.0,
        "tilt_tag_deg": None,
        "spacing": [0.5, 0.75],
        "affine": [[0.75, 0.0, 0.0, -4.0], [0.0, 0.5, 0.0, -4.0], [0.0, 0.0, 5.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
        "order_source": "position",
        "instance_number": [1, 2],
        "sop_hash": properties["sop_hash"],
        "notes": ["other CT series in the folder left out: 1 slices: not preferred by most_slices"],
    }
    assert qc == {
        "n_files": 5,
        "n_read": 2,
        "excluded": {"modality is not CT": 1, "not DICOM": 1},
        "other_series": ["1 slices: not preferred by most_slices"],
        "duplicates": 0,
        "other_volumes": 0,
        "n_missing": 0,
        "gap_min_mm": 5.0,
        "gap_median_mm": 5.0,
        "gap_max_mm": 5.0,
        "regular": True,
        "thicknesses": [5.0],
        "tilt_deg": 0.0,
        "tilt_tag_deg": None,
        "spacing": [0.5, 0.75],
        "order_source": "position",
        "transfer_syntax": "Explicit VR Little Endian",
        "lossy": False,
        "bits": "12 of 16 signed",
        "rescale": "slope 1 intercept 0",
        "padding": "",
        "padding_source": "below -1100 HU",
        "series_number": 4,
        "kvp": 120.0,
        "maker": "GE",
        "contrast": False,
        "missing_attributes": [],
        "decoder": "native",
        "twelve_bit_fix": False,
        "twelve_bit_evidence": "",
        "constant_slices": 0,
        "air_share": round(156 / 256, 4),
        "tissue_share": round(89 / 256, 4),
        "tissue_median_hu": 40.0,
        "warnings": 0,
    }
    assert json.loads(json.dumps(qc)) == qc


def test_slices_of_two_acquisitions_that_lie_among_one_another_are_told(write_slice, read_series):
    """Contrast came between them, and the table did not stop in the same places."""
    for z in range(8):
        write_slice(f"{z}", z=2.5 * z, value=z, AcquisitionNumber=1 + z % 2)
    said = "slices of 2 acquisitions lie among one another (AcquisitionNumber): are they phases?"
    assert said in read_series()[1]["notes"]


def test_acquisitions_that_follow_one_another_are_nothing_to_tell(write_slice, read_series):
    for z in range(8):
        write_slice(f"{z}", z=2.5 * z, value=z, AcquisitionNumber=1 + z // 2)
    assert not any("acquisitions" in note for note in read_series()[1]["notes"])


def test_padding_that_may_be_tissue_is_told(write_slice, read_series):
    write_slice("a", value=7, PixelPaddingValue=0)
    said = "the stated padding has values of tissue: pixels of these values were taken for air"
    assert said in read_series()[1]["notes"]
    write_slice("a", value=7, PixelPaddingValue=-2000)
    assert said not in read_series()[1]["notes"]


def test_a_series_larger_than_any_is_not_begun(write_slice, refusal, monkeypatch):
    monkeypatch.setattr(volume_module, "MOST_VOXELS", 500)
    for z in range(2):
        write_slice(f"{z}", z=z)
    assert refusal() == "2 slices of 16 x 16 pixels are no CT series: leave this folder out"


def test_a_file_of_more_frames_than_can_be_read_may_have_been_of_the_series(write_slice, read_series):
    write_slice("a")
    write_slice("b", z=1, NumberOfFrames=1_000_000)
    said = "left out, though they may be slices: 1 more frames than can be read"
    assert said in read_series()[1]["notes"]
