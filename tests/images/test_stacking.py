"""The order of CT slices, and the geometry of their stack."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from highdicom.spatial import get_series_volume_positions
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from pipeline.errors import ImageError
from pipeline.images.dicom import Coding, SliceHeader
from pipeline.images.stacking import measure, notes, stack

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)  # normal (-1, 0, 0)
TILT = math.radians(18.5)
GANTRY = (1.0, 0.0, 0.0, 0.0, math.cos(TILT), -math.sin(TILT))  # normal (0, .3173, .94832)


def header(position=(0.0, 0.0, 0.0), **others) -> SliceHeader:
    values = {
        "path": Path("slice.dcm"), "frame": 0, "frames": 1, "patient": "", "study": "", "series": "", "number": 1,
        "instance": -1, "sop": "", "phase": (), "syntax": UID("1.2.840.10008.1.2.1"), "pixels_at": None,
        "extent": (16, 16), "position": position, "orientation": AXIAL if position else (), "spacing": (0.5, 0.5),
        "thickness": 5.0, "tilt": None, "coding": Coding(16, 16, True, 1.0, 0.0, None), "unit": "HU",
        "words": ("ORIGINAL", "PRIMARY", "AXIAL"), "kernel": "", "contrast": False, "burned_in": False, "lossy": False,
        "kvp": None, "maker": "", "missing": (),
    }  # fmt: skip
    return SliceHeader(**values | others)


def axial(z, thickness=5.0, **others):
    """Headers at these places; one thickness for all, or one for each."""
    each = thickness if isinstance(thickness, list) else [thickness] * len(z)
    return [header((-10.0, -20.0, at), thickness=thick, **others) for at, thick in zip(z, each, strict=True)]


def by_gaps(gaps, thickness=5.0):
    return measure(stack(axial([float(at) for at in np.cumsum([0, *gaps])], thickness)))


def tilted(count=6):
    """The table moves 2.5 mm up from slice to slice, and the gantry leans by 18.5 degrees."""
    return [
        header((-100.0, -80.0, 700.0 + 2.5 * k), orientation=GANTRY, tilt=-18.5, thickness=2.5) for k in range(count)
    ]


def dataset(of: SliceHeader) -> Dataset:
    found = Dataset()
    found.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    found.SOPInstanceUID, found.SeriesInstanceUID, found.FrameOfReferenceUID = f"1.{of.position[2]:.0f}", "1.2", "1.3"
    found.ImagePositionPatient, found.ImageOrientationPatient = list(of.position), list(of.orientation)
    found.PixelSpacing, found.Rows, found.Columns = list(of.spacing), *of.extent
    return found


def read(path: Path) -> SliceHeader:
    """Only what says where a slice lies."""
    found = dcmread(path, stop_before_pixels=True)
    return header(
        tuple(map(float, found.ImagePositionPatient)),
        path=path,
        orientation=tuple(map(float, found.ImageOrientationPatient)),
        spacing=tuple(map(float, found.PixelSpacing)),
        thickness=float(found.SliceThickness),
        tilt=float(found.GantryDetectorTilt),
        extent=(found.Columns, found.Rows),
        instance=int(found.InstanceNumber),
    )


def largest_miss(headers, affine) -> float:
    """Largest distance between where an affine puts the corners of slices (in order), and where their headers do."""
    worst = 0.0
    for k, of in enumerate(headers):
        for column, row in ((0, 0), (of.extent[0] - 1, 0), (0, of.extent[1] - 1), (7, 11)):
            right, down = np.array(of.orientation[:3]), np.array(of.orientation[3:])
            stated = np.array(of.position) + right * of.spacing[1] * column + down * of.spacing[0] * row
            reached = np.array(affine) @ [column, row, k, 1]
            worst = max(worst, float(np.abs(reached[:3] - stated).max()))
    return worst


# --- order ---


def test_slices_lie_in_order_along_the_normal_whatever_the_order_of_files_and_numbers():
    headers = [header((0.0, 0.0, 5.0 * k), instance=100 - k, path=Path(f"{k * 7 % 10}.dcm")) for k in range(10)]
    shuffled = random.Random(0).sample(headers, 10)
    found = stack(shuffled)
    assert found.z == (0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0, 40.0, 45.0)
    assert [one.instance for (one,) in found.slices] == list(range(100, 90, -1))
    assert found.normal == (0.0, 0.0, 1.0)
    assert found.source == "position"


def test_sagittal_slices_lie_in_order_from_left_to_right():
    found = stack([header((x, 3.0, 4.0), orientation=SAGITTAL) for x in (10.0, -10.0, 0.0)])
    assert found.normal == (-1.0, 0.0, 0.0)
    assert found.z == (-10.0, 0.0, 10.0)
    assert [one.position[0] for (one,) in found.slices] == [10.0, 0.0, -10.0]


def test_oblique_slices_lie_along_their_normal_and_are_not_tilted():
    half = math.sqrt(0.5)
    orientation = (half, half, 0.0, 0.0, 0.0, -1.0)  # normal (-half, half, 0)
    headers = [header((-2 * k * half, 2 * k * half, 9.0), orientation=orientation, thickness=2.0) for k in (2, 0, 1)]
    geometry = measure(stack(headers))
    assert geometry.normal == pytest.approx((-half, half, 0.0))
    assert geometry.z_mm == pytest.approx((0.0, 2.0, 4.0))
    assert geometry.tilt_deg == pytest.approx(0.0, abs=1e-6)
    assert geometry.regular


def test_slices_at_one_position_stay_together():
    found = stack(axial([5.0, 0.0, 5.009, 10.0, 5.011]))
    assert found.z == (0.0, 5.0, 5.011, 10.0)
    assert [len(slices) for slices in found.slices] == [1, 2, 1, 1]


def test_one_slice_is_a_stack():
    geometry = measure(stack([header((1.0, 2.0, 3.0), thickness=None)]))
    assert (geometry.z_mm, geometry.gap_mm, geometry.gap_median_mm) == ((3.0,), (), None)
    assert (geometry.regular, geometry.n_missing, geometry.tilt_deg, geometry.thicknesses) == (True, 0, None, ())
    assert geometry.affine == ((0.5, 0, 0, 1), (0, 0.5, 0, 2), (0, 0, 1, 3), (0, 0, 0, 1))  # 1 mm for no thickness
    assert measure(stack([header()])).affine[2][2] == 5.0
    assert notes(geometry) == []


def test_without_positions_the_order_is_refused_unless_numbers_may_give_it():
    headers = [header(instance=1), header((), instance=2), header((), instance=3)]
    with pytest.raises(ImageError) as refusal:
        stack(headers)
    assert str(refusal.value) == (
        "no position in 2 of 3 slices: leave those out, or set series.order to instance_number"
    )


def test_numbers_give_the_order_and_the_thickness_the_distances():
    headers = [header((), instance=number, thickness=3.0) for number in (12, 10, 2)]
    found = stack(headers, by_number=True)
    assert [one.instance for (one,) in found.slices] == [2, 10, 12]
    assert (found.z, found.source, found.normal) == ((0.0, 3.0, 6.0), "instance number", ())
    geometry = measure(found)
    assert (geometry.regular, geometry.affine, geometry.tilt_deg, geometry.n_missing) == (False, None, None, 0)
    assert notes(geometry) == [
        "slices in the order of InstanceNumber, no positions are stated: their distances are a guess"
    ]
    assert stack([header((), instance=k, thickness=None) for k in (1, 2)], by_number=True).z == (0.0, 1.0)


def test_positions_that_are_stated_go_before_numbers():
    headers = [header((0.0, 0.0, z), instance=number) for z, number in ((0.0, 3), (5.0, 2), (10.0, 1))]
    assert [one.instance for (one,) in stack(headers, by_number=True).slices] == [3, 2, 1]


def test_numbers_that_are_absent_or_repeated_give_no_order():
    headers = [header((), instance=number) for number in (1, 2, 2, -1)]
    with pytest.raises(ImageError, match="InstanceNumber is absent or repeated in 3 of 4 slices: "):
        stack(headers, by_number=True)


def test_slices_of_different_sizes_are_refused():
    with pytest.raises(ImageError) as refusal:
        stack([header(extent=(16, 16)), header(extent=(16, 12)), header(extent=(16, 16))])
    assert str(refusal.value) == "slices differ in size (16 x 12: 1, 16 x 16: 2): keep those of one size"


@pytest.mark.parametrize(("sine", "refused"), [(0.003, False), (0.0032, True)])
def test_slices_that_look_in_different_directions_are_refused(sine, refused):
    headers = [header(), header((0.0, 0.0, 5.0), orientation=(1.0, 0.0, 0.0, 0.0, 1.0, sine))]
    if refused:
        with pytest.raises(ImageError, match="slices differ in orientation"):
            stack(headers)
    else:
        assert len(stack(headers).z) == 2


# --- geometry ---


def test_an_ordinary_stack_is_regular_and_there_is_nothing_to_say():
    geometry = measure(stack(axial([0.0, 5.0, 10.01, 15.0], tilt=0.0)))
    assert geometry.gap_mm == pytest.approx((5.0, 5.01, 4.99))
    assert geometry.gap_min_mm == pytest.approx(4.99)
    assert geometry.gap_median_mm == pytest.approx(5.0)
    assert geometry.gap_max_mm == pytest.approx(5.01)
    assert geometry.regular
    assert (geometry.thicknesses, geometry.mixed_thickness) == ((5.0,), False)
    assert (geometry.tilt_deg, geometry.tilt_tag_deg) == (0.0, 0.0)
    assert geometry.order_source == "position"
    assert notes(geometry) == []


@pytest.mark.parametrize(
    ("gaps", "regular"),
    [
        ([1, 1, 1.049, 1], True),  # 0.05 mm
        ([1, 1, 1.06, 1], False),
        ([10, 10, 10.19, 10], True),  # 2 %
        ([10, 10, 10.21, 10], False),
    ],
)
def test_gaps_are_regular_within_a_twentieth_of_a_millimetre_or_two_percent(gaps, regular):
    assert by_gaps(gaps).regular is regular


def test_the_affine_of_an_upright_stack_is_that_computed_by_hand():
    geometry = measure(stack([header((-10.0, -20.0, z), spacing=(0.5, 0.25)) for z in (30.0, 32.0, 34.0)]))
    # One column to the right is 0.25 mm of x, one row down 0.5 mm of y.
    assert geometry.affine == ((0.25, 0, 0, -10), (0, 0.5, 0, -20), (0, 0, 2, 30), (0, 0, 0, 1))


def test_a_tilted_stack_has_a_sheared_affine_that_puts_every_slice_in_its_place():
    headers = tilted()
    geometry = measure(stack(headers[::-1]))
    assert geometry.normal == pytest.approx((0.0, 0.3173047, 0.9483237), abs=1e-6)
    assert geometry.gap_mm == pytest.approx([2.3708] * 5, abs=1e-4)  # 2.5 cos 18.5
    assert geometry.tilt_deg == pytest.approx(18.5, abs=1e-6)
    assert geometry.tilt_tag_deg == -18.5
    assert geometry.regular
    assert [row[2] for row in geometry.affine[:3]] == pytest.approx([0.0, 0.0, 2.5])
    assert largest_miss(headers, geometry.affine) < 1e-9
    assert largest_miss(headers, geometry.properties()["affine"]) < 1e-5
    assert notes(geometry) == ["gantry tilt 18.5 degrees"]


def test_a_tilt_that_only_the_tag_knows_is_told():
    assert notes(measure(stack(axial([0.0, 5.0, 10.0], tilt=12.0)))) == [
        "the header states a gantry tilt of 12.0 degrees, the positions 0.0: these are taken"
    ]


def test_slices_that_are_moved_within_their_plane_have_no_affine_to_believe():
    headers = [header((40.0 if k > 2 else 0.0, 0.0, 5.0 * k)) for k in range(6)]
    geometry = measure(stack(headers))
    assert geometry.gap_mm == (5.0,) * 5
    assert not geometry.regular
    assert any("moved within their plane" in note for note in notes(geometry))


def test_without_spacing_there_is_no_affine_and_a_note():
    geometry = measure(stack(axial([0.0, 5.0], spacing=())))
    assert (geometry.affine, geometry.spacing, geometry.regular) == (None, (), True)
    assert notes(geometry) == ["no PixelSpacing is stated: lengths within a slice are not known"]


def test_properties_are_plain_rounded_values():
    found = measure(stack(axial([1 / 3, 16 / 3], spacing=(0.48828125, 0.48828125), tilt=-0.00001))).properties()
    assert json.loads(json.dumps(found)) == found
    assert found["z_mm"] == [0.3333, 5.3333]
    assert found["gap_mm"] == [5.0]
    assert found["spacing"] == [0.48828125, 0.48828125]
    assert found["normal"] == [0.0, 0.0, 1.0]
    assert math.copysign(1, found["tilt_tag_deg"]) == 1  # no minus zero
    assert (found["regular"], found["n_missing"], found["order_source"]) == (True, 0, "position")
    assert len(found["affine"]) == 4
    assert found["affine"][3] == [0.0, 0.0, 0.0, 1.0]


# --- missing slices, and gaps that are meant so ---


@pytest.mark.parametrize(
    ("gaps", "missing_after"),
    [
        ([5, 5, 5, 10, 5, 5], [3]),
        ([10, 5, 5, 5, 5], [0]),  # the second of all slices
        ([5, 5, 5, 5, 10], [4]),
        ([10, 5, 5], [0]),
        ([5, 10, 5, 5, 5, 10, 5], [1, 5]),
        ([5, 5, 10, 10, 5, 5, 5], [2, 3]),
        ([5, 5, 10, 15, 10, 5, 5, 5, 5], [2, 3, 3, 4]),
        ([5, 5, 5, 20, 5, 5, 5], [3, 3, 3]),  # three in a row
        ([5, 5, 5, 5, 100, 5, 5, 5], [4] * 19),  # a whole block
        ([0.625] * 6 + [1.25] + [0.625] * 6, [6]),
        ([0.626, 0.624, 0.625, 1.249, 0.626, 0.624], [3]),
        ([2.5, 2.51, 2.49, 5.06, 2.5, 2.48], [3]),
        ([4.9, 5.1, 5.0, 10.3, 5.1, 4.9], [3]),
    ],
)
def test_a_lone_gap_that_is_a_multiple_of_what_is_usual_tells_of_missing_slices(gaps, missing_after):
    geometry = by_gaps(gaps)
    assert list(geometry.missing_after) == missing_after
    assert geometry.n_missing == len(missing_after)
    assert not geometry.regular


def test_overlapping_slices_can_be_missing_too():
    assert by_gaps([2, 2, 2, 4, 2, 2, 2], thickness=3.0).missing_after == (3,)


def test_the_thickness_need_not_be_stated():
    assert by_gaps([2, 2, 2, 4, 2, 2, 2], thickness=None).missing_after == (3,)


@pytest.mark.parametrize(
    "gaps",
    [
        [],
        [5],
        [5, 5],
        [5, 10],  # which of them is usual?
        [5] * 6 + [10] * 4,  # a run of three and more is meant so
        [5] * 6 + [10] * 3 + [5] * 6,
        [5] * 4 + [2.5, 2.5] + [5],  # one too many, and none too few
        [5, 2.5, 2.5] + [5] * 4,
        [5, 5, 5, 7.5, 5, 5],
        [5, 5, 5, 1.081, 5, 5],
        [5, 5, 5, 36.5, 5, 5, 5],  # 7.3 times: two blocks of one series
        [1, 4] * 8,  # two stacks, one between the other
        [2, 3] * 8,
        [5, 5.04, 4.96, 5.02, 4.98],
        [4.7, 5.0, 5.3, 4.8, 5.2],
    ],
)
def test_other_gaps_do_not(gaps):
    assert by_gaps(gaps).missing_after == ()


@pytest.mark.parametrize("boundary", [1.081, 5.0, 7.5, 10.0])
@pytest.mark.parametrize("thick", [2, 3, 10])
def test_a_protocol_of_two_thicknesses_lacks_no_slice(boundary, thick):
    geometry = by_gaps([5.0] * 9 + [boundary] + [10.0] * (thick - 1), [5.0] * 10 + [10.0] * thick)
    assert geometry.n_missing == 0
    assert (geometry.thicknesses, geometry.mixed_thickness) == ((5.0, 10.0), True)
    assert notes(geometry)[1:] == ["slice thickness 5 and 10 mm"]


def test_a_protocol_of_two_thicknesses_can_lack_slices_in_both_parts():
    gaps = [4, 4, 4, 8, 4, 4, 5.5, 7, 7, 14, 14, 7, 7, 7]
    geometry = by_gaps(gaps, [4.0] * 7 + [7.0] * 8)
    assert geometry.missing_after == (3, 9, 10)
    assert notes(geometry) == [
        "3 slices are missing (3 gaps of 8 to 14 mm where 4 to 7 mm are usual)",
        "gaps of 4 to 14 mm",
        "slice thickness 4 and 7 mm",
    ]


def test_thicknesses_that_differ_by_rounding_are_one():
    geometry = by_gaps([0.6, 0.6, 1.2, 0.6, 0.6], [0.625, 0.62, 0.625, 0.62, 0.625, 0.625])
    assert (geometry.missing_after, geometry.mixed_thickness) == ((2,), False)


@pytest.mark.parametrize(
    ("gaps", "note"),
    [
        ([5, 5, 10, 5, 5], "1 slice is missing (a gap of 10 mm where 5 mm are usual)"),
        ([5, 5, 20, 5, 5], "3 slices are missing (a gap of 20 mm where 5 mm are usual)"),
        ([5, 10, 5, 5, 5, 10, 5], "2 slices are missing (2 gaps of 10 mm where 5 mm are usual)"),
        ([2, 2, 4, 2, 2, 6, 2], "3 slices are missing (2 gaps of 4 to 6 mm where 2 mm are usual)"),
        ([5, 5, 5, 7.5, 5, 5], "gaps of 5 to 7.5 mm"),
    ],
)
def test_the_note_on_gaps_is_for_a_reader(gaps, note):
    assert notes(by_gaps(gaps)) == [note]


# --- real series, and an independent implementation ---


def test_the_ge_series_has_a_tilt_two_thicknesses_and_all_its_slices(shared_data):
    headers = [read(path) for path in sorted((shared_data / "ct_series/neurolabusc__dcm_qa_ct/In/GE").glob("*.dcm"))]
    found = stack(random.Random(1).sample(headers, len(headers)))
    geometry = measure(found)
    assert [one.path.name for (one,) in found.slices] == [f"{k:02}.dcm" for k in range(1, 29)]
    assert (geometry.z_mm[0], geometry.z_mm[-1]) == pytest.approx((-33.6655, 110.4228), abs=1e-3)
    assert geometry.gap_mm == pytest.approx([4.002] * 13 + [1.081] + [6.999] * 13, abs=2e-3)
    assert geometry.normal == pytest.approx((0, 0.3173, 0.94832), abs=1e-4)
    assert geometry.tilt_deg == pytest.approx(18.5, abs=0.05)
    assert (geometry.regular, geometry.n_missing, geometry.thicknesses) == (False, 0, (4.0, 7.0))
    assert [row[2] for row in geometry.affine[:3]] == pytest.approx([0, 0, 5.62741], abs=1e-5)
    assert notes(geometry) == ["gaps of 1.081 to 6.999 mm", "slice thickness 4 and 7 mm", "gantry tilt 18.5 degrees"]
    assert measure(stack([header(one.position, orientation=GANTRY, thickness=None) for one in headers])).n_missing == 0


@pytest.mark.parametrize("left_out", [1, 5, 12, 15, 20, 26])
def test_the_ge_series_without_a_slice_lacks_that_slice(shared_data, left_out):
    files = sorted((shared_data / "ct_series/neurolabusc__dcm_qa_ct/In/GE").glob("*.dcm"))
    geometry = measure(stack([read(path) for k, path in enumerate(files) if k != left_out]))
    assert geometry.missing_after == (left_out - 1,)


def test_the_philips_series_is_regular(shared_data):
    folder = shared_data / "ct_series/neurolabusc__dcm_qa_ct/S21570/S2010"
    headers = [read(path) for path in folder.glob("I*")]
    geometry = measure(stack(headers))
    assert geometry.z_mm == pytest.approx([696.21 + 5 * k for k in range(28)], abs=1e-3)
    assert geometry.regular
    assert (geometry.n_missing, geometry.tilt_deg, geometry.thicknesses) == (0, pytest.approx(0, abs=1e-6), (5.0,))
    assert notes(geometry) == []
    in_order = sorted(headers, key=lambda one: one.position[2])
    assert largest_miss(in_order, geometry.affine) < 1e-3
    assert largest_miss(in_order, geometry.properties()["affine"]) < 1e-3
    spacing, numbers = get_series_volume_positions([dataset(one) for one in headers])
    assert spacing == pytest.approx(geometry.gap_median_mm)
    assert_same_order(headers, numbers, stack(headers))


def test_highdicom_finds_the_same_order_and_distance_in_a_tilted_stack():
    headers = random.Random(2).sample(tilted(12), 12)
    datasets = [dataset(one) for one in headers]
    assert get_series_volume_positions(datasets) == (None, None)  # it has to be told to bear the tilt
    spacing, numbers = get_series_volume_positions(datasets, perpendicular_tol=0.1)
    assert spacing == pytest.approx(2.3708, abs=1e-4)
    assert measure(stack(headers)).gap_mm == pytest.approx([spacing] * 11)
    assert_same_order(headers, numbers, stack(headers))


def assert_same_order(headers, numbers, found):
    """highdicom counts along the normal, or against it, as its convention of axes has it."""
    theirs = [one.position for _, one in sorted(zip(numbers, headers, strict=True), key=lambda pair: pair[0])]
    ours = [one.position for (one,) in found.slices]
    assert theirs in (ours, ours[::-1])
