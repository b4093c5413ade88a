"""Which series of a folder is read, and what is said of the others."""

from collections import Counter
from itertools import chain, permutations
from pathlib import Path

import pytest
from pydicom.uid import UID

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images import selection
from pipeline.images.dicom import Coding, SliceHeader
from pipeline.images.selection import PREFERENCES, Choice, choose, refuse_dump
from pipeline.images.vocabulary import is_sharp
from pipeline.store import digest

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SORT = "`python -m pipeline sort-dicom` gives each series a folder of its own"


def header(z: float = 0.0, **others) -> SliceHeader:
    values = {
        "path": Path("slice.dcm"), "frame": 0, "frames": 1, "patient": "P", "study": "1.2", "series": "1.2.3",
        "number": None, "instance": -1, "sop": "", "phase": (), "syntax": UID("1.2.840.10008.1.2.1"), "pixels_at": None,
        "extent": (16, 16), "position": (0.0, 0.0, z), "orientation": AXIAL, "spacing": (0.5, 0.5), "thickness": 5.0,
        "tilt": None, "coding": Coding(16, 16, True, 1.0, 0.0, None), "unit": "HU",
        "words": ("ORIGINAL", "PRIMARY", "AXIAL"), "kernel": "", "contrast": False, "burned_in": False, "lossy": False,
        "kvp": None, "maker": "", "missing": (),
    }  # fmt: skip
    return SliceHeader(**values | others)


def series(uid: str, slices: int = 3, **others) -> list[SliceHeader]:
    return [header(float(z), series=uid, **others) for z in range(slices)]


def pick(*many: list[SliceHeader], wanted: str = "", **settings) -> Choice:
    return choose(list(chain(*many)), Counter(), SeriesSettings(**({"min_slices": 1} | settings)), wanted)


def chosen(*many: list[SliceHeader], **asked) -> str:
    """The UID of the series that is read."""
    (uid,) = {found.series for found in pick(*many, **asked).headers}
    return uid


def refused(*many: list[SliceHeader], **asked) -> str:
    with pytest.raises(ImageError) as caught:
        pick(*many, **asked)
    message = str(caught.value)
    assert "\n" not in message and not any(found.series in message for found in chain(*many) if "." in found.series)
    return message


# Preferences

BETTER = {
    "original": ({"words": ("ORIGINAL", "PRIMARY")}, {"words": ("DERIVED", "PRIMARY")}),
    "no_contrast": ({}, {"contrast": True}),
    "contrast": ({"contrast": True}, {}),
    "soft_kernel": ({"kernel": "H30s"}, {"kernel": "H60s"}),
    "sharp_kernel": ({"kernel": "BONE"}, {"kernel": "STANDARD"}),
    "thickness": ({"thickness": 4.0}, {"thickness": 1.0}),
    "most_slices": ({"slices": 4}, {"slices": 3}),
    "lowest_number": ({"number": 2}, {"number": 10}),
}
"""What a series has that each rule prefers, and what the other has."""


@pytest.mark.parametrize("rule", BETTER)
def test_each_rule_prefers_what_its_name_says(rule):
    better, worse = BETTER[rule]
    for uids in (("1", "2"), ("2", "1")):
        many = series(uids[0], **better), series(uids[1], **worse)
        assert chosen(*many, prefer=(rule,)) == uids[0]
        slices = worse.get("slices", 3)
        assert pick(*many, prefer=(rule,)).rejected == (f"{slices} slices: not preferred by {rule}",)


def test_every_rule_is_tested():
    assert set(BETTER) == set(PREFERENCES)


@pytest.mark.parametrize("order", list(permutations(("original", "thickness", "most_slices"))))
def test_the_first_rule_that_tells_series_apart_decides(order):
    many = {
        "original": series("1", 3, thickness=1.0),
        "thickness": series("2", 3, words=("DERIVED",)),
        "most_slices": series("3", 4, thickness=1.0, words=("DERIVED",)),
    }
    best = {"original": "1", "thickness": "2", "most_slices": "3"}[order[0]]
    assert chosen(*many.values(), prefer=order) == best


def test_by_default_the_original_head_series_for_reading_is_read():
    """Of an ordinary examination: thin bone and soft, thick soft, with contrast, and a copy of it."""
    examination = [
        series("1", 40, kernel="H60s", thickness=5.0, number=2),
        series("2", 200, kernel="H30s", thickness=0.75, number=3),
        series("3", 40, kernel="H30s", thickness=5.0, number=5),
        series("4", 41, kernel="H30s", thickness=5.0, number=4, contrast=True),
        series("5", 42, kernel="H30s", thickness=5.0, number=1, words=("DERIVED", "SECONDARY", "AXIAL")),
        series("6", 40, kernel="H30s", thickness=5.0, number=6),
    ]
    choice = pick(*examination, min_slices=10)
    assert {found.series for found in choice.headers} == {"3"}
    assert choice.rejected == (
        "200 slices: not preferred by thickness",
        "40 slices: not preferred by lowest_number",
        "40 slices: not preferred by soft_kernel",
        "41 slices: not preferred by no_contrast",
        "42 slices: not preferred by original",
    )


@pytest.mark.parametrize(("thickness_mm", "best"), [(5.0, "3"), (0.0, "1"), (2.0, "2"), (100.0, "4")])
def test_the_thickness_nearest_to_the_one_asked_for_is_read(thickness_mm, best):
    many = [series(str(number), thickness=mm) for number, mm in enumerate((0.75, 2.5, 4.0, 10.0), start=1)]
    assert chosen(*many, series("5", thickness=None), prefer=("thickness",), thickness_mm=thickness_mm) == best


def test_a_series_without_number_comes_last():
    assert chosen(series("1"), series("2", number=900), prefer=("lowest_number",)) == "2"


def test_places_are_counted_and_not_files():
    """Three places five times are fewer slices than four."""
    phases = [header(float(z), series="1", phase=(str(time),)) for z in range(3) for time in range(5)]
    assert chosen(phases, series("2", 4), prefer=("most_slices",)) == "2"


@pytest.mark.parametrize("prefer", [("original",), ("most_slices", "lowest_number"), tuple(PREFERENCES)])
def test_series_that_nothing_tells_apart_are_refused(prefer):
    found = refused(series("1.2.3.4"), series("1.2.3.5"), prefer=prefer)
    assert found == (
        "2 CT series of 3 slices are equally good: name one by its SeriesNumber or SeriesInstanceUID "
        f"in the column `series` of the labels, or change series.prefer; {SORT}"
    )


@pytest.mark.parametrize(
    ("kernel", "sharp"),
    [
        ("", False),
        ("STANDARD", False),
        ("SOFT", False),
        ("BONE", True),
        ("BONEPLUS", True),
        ("bone ", True),
        ("LUNG", True),
        ("EDGE", True),
        ("DETAIL", True),
        ("B31s", False),
        ("H30f", False),
        ("H37s", False),
        ("H60s", True),
        ("B70f", True),
        ("Hr64h\\3", True),
        ("Br40d\\3", False),
        ("FC04", False),
        ("FC26", False),
        ("FC30", True),
        ("FC51", True),
        ("FC64", False),
        ("FC81", True),
        ("A", False),
        ("UB", False),
        ("B", False),
        ("C", False),
        ("L", True),
        ("YA", True),
        ("YD", True),
        ("ZZTEST^LEAK", False),
    ],
)
def test_kernels_for_bone_and_lung_are_sharp(kernel, sharp):
    assert is_sharp(kernel) is sharp


# What is one series


def test_slices_that_cannot_lie_in_one_stack_are_series_of_their_own():
    one = series("1", 4)
    for other in (
        {"orientation": (1.0, 0.0, 0.0, 0.0, 0.95, -0.31225)},
        {"spacing": (0.4, 0.4)},
        {"spacing": ()},
        {"kernel": "BONE"},
        {"study": "1.9"},
    ):
        choice = pick(one, series("1", 3, **other), prefer=("most_slices",))
        of = "" if "study" in other else " of the same series"
        assert (len(choice.headers), choice.rejected) == (4, (f"3 slices{of}: not preferred by most_slices",))


def test_cosines_written_with_three_decimals_are_of_one_stack():
    tilted = [(1.0, 0.0, 0.0, 0.0, 0.948, -0.317), (1.0, 0.0, 0.0, 0.0, 0.949, -0.317)]
    assert len(pick([header(float(z), orientation=tilted[z % 2]) for z in range(6)]).headers) == 6


def test_the_choice_does_not_depend_on_the_order_of_the_files():
    """What differs within a series: one slice is derived, and thicknesses are mixed."""
    mixed = [header(float(z), series="1", number=1, thickness=5.0 + 5.0 * (z > 3)) for z in range(6)]
    derived = [header(9.0, series="2", number=1, words=("DERIVED",)), *series("2", 5, number=1)]
    for first in (mixed, mixed[::-1]):
        for second in (derived, derived[::-1]):
            assert chosen(first, second) == "1"
    thick = series("3", 6, number=1, thickness=7.0)
    assert {chosen(first, thick, thickness_mm=5) for first in (mixed, mixed[::-1])} == {"1"}


def test_a_series_that_looks_everywhere_is_refused():
    turning = [header(spacing=(1.0 + index, 1.0)) for index in range(200)]
    assert refused(turning).startswith("one series has more than 100 stacks that differ in direction, pixel spacing or")


def test_stacks_of_one_series_that_are_equally_good_are_refused_as_such():
    """No number or UID in the labels could tell them apart."""
    with pytest.raises(
        ImageError, match="^one series has 2 stacks of 3 slices that differ in direction, pixel spacing"
    ):
        pick(series("1", 3), series("1", 3, spacing=(0.4, 0.4)))


def test_slices_of_one_stack_may_differ_otherwise():
    """In all that differs within good stacks, and by the rounding of what must not differ."""
    slices = [
        header(0.0, phase=("1",), words=("ORIGINAL", "PRIMARY", "AXIAL", "ADD"), instance=7),
        header(1.0, phase=("2",), coding=Coding(16, 12, False, 2.0, -1000.0, None), thickness=7.0),
        header(2.0, orientation=(1.0, 0.0, 0.0009, 0.0, 1.0, 0.0), spacing=(0.5004, 0.4996), kvp=120.0),
        header(3.0, patient="", number=4),
    ]
    choice = pick(slices)
    assert (len(choice.headers), choice.rejected) == (4, ())


def test_slices_of_different_sizes_are_not_put_aside_unseen():
    """Stacking refuses them: one of them could be the wrong one."""
    assert len(pick(series("1"), [header(9.0, series="1", extent=(8, 8))]).headers) == 4


# What is not read


def test_planes_too_far_from_axial_are_not_read():
    """cos 30 = .8660, cos 40 = .7660, a coronal plane has 90 degrees."""
    tilted = series("1", orientation=(1.0, 0.0, 0.0, 0.0, 0.8660254, -0.5))
    oblique = series("2", 4, orientation=(1.0, 0.0, 0.0, 0.0, 0.76604444, -0.64278761))
    coronal = series("3", 5, orientation=(1.0, 0.0, 0.0, 0.0, 0.0, -1.0))
    choice = pick(tilted, oblique, coronal)
    assert choice.headers[0].series == "1"
    assert choice.rejected == ("4 slices: not axial", "5 slices: not axial")
    assert chosen(tilted, oblique, coronal, max_oblique_deg=41, prefer=("most_slices",)) == "2"
    assert chosen(tilted, oblique, coronal, max_oblique_deg=90, prefer=("most_slices",)) == "3"
    assert refused(coronal, oblique) == (
        "5 slices in the largest of 2 CT series lie 90 degrees from axial, more than max_oblique_deg 35: raise "
        "series.max_oblique_deg, or leave this series out"
    )
    assert refused(oblique, max_oblique_deg=39.5).startswith("4 slices lie 40 degrees from axial, more than max_obliq")


def test_series_of_too_few_slices_are_not_read():
    choice = pick(series("1", 9, thickness=5.0), series("2", 10, thickness=1.0), min_slices=10)
    assert (choice.headers[0].series, choice.rejected) == ("2", ("9 slices: too few slices",))
    assert refused(series("1", 9), min_slices=10) == (
        "9 slices, fewer than min_slices 10: lower series.min_slices, or leave this series out"
    )
    assert refused(series("1", 9), series("2", 8), min_slices=10).startswith("9 slices in the largest of 2 CT series, ")


@pytest.mark.parametrize("word", ["REFORMATTED", "MPR", "MIP", "PROJECTION IMAGE"])
def test_reformats_are_read_only_where_there_is_no_original(word):
    reformat = series("1", 9, words=("ORIGINAL", "PRIMARY", word))
    choice = pick(reformat, series("2", 3), prefer=("most_slices",))
    assert (choice.headers[0].series, choice.rejected) == ("2", ("9 slices: reformatted, beside an original",))
    assert chosen(reformat) == "1"
    assert chosen(reformat, series("2", 3), min_slices=5) == "1"


def test_slices_without_a_place_are_counted_and_left_out():
    excluded = Counter({"localizer": 1})
    nowhere = [header(position=(), orientation=()) for _ in range(2)]
    choice = choose(series("1.2.3") + nowhere, excluded, SeriesSettings(min_slices=1))
    assert len(choice.headers) == 3
    assert excluded == {"localizer": 1, "no position or orientation": 2}


def test_slices_without_a_place_are_taken_where_numbers_may_give_the_order():
    nowhere = [header(position=(), orientation=(), instance=number) for number in range(4)]
    assert refused(nowhere) == (
        "none of 4 CT slices states its position: set series.order to instance_number if their numbers can be trusted, "
        "or leave this series out"
    )
    assert len(pick(nowhere, order="instance_number", min_slices=4).headers) == 4


def test_where_there_are_no_slices_it_is_said_what_there_is():
    for excluded, found in [
        (Counter({"not DICOM": 2, "localizer": 1}), "1 localizer, 2 not DICOM"),
        (Counter[str](), "no files"),
    ]:
        with pytest.raises(ImageError) as caught:
            choose([], excluded, SeriesSettings())
        assert str(caught.value) == f"no CT slices ({found}): leave this folder out"


# What the labels ask for


def test_the_labels_may_name_a_series_by_its_number_or_its_uid():
    many = series("1.2.3", number=4), series("1.2.4", 9, number=5), series("1.2.5", number=None)
    assert chosen(*many) == "1.2.4"
    for name, uid in [("4", "1.2.3"), ("5", "1.2.4"), ("1.2.3", "1.2.3"), ("1.2.5", "1.2.5")]:
        assert chosen(*many, wanted=digest(name, 16)) == uid
    assert refused(*many, wanted=digest("6", 16)) == (
        "no CT series has the number or UID that the labels' `series` names: correct it there"
    )
    assert refused(*many, wanted=digest("", 16)).startswith("no CT series has")


def test_a_series_that_the_labels_name_must_be_fit_all_the_same():
    found = refused(series("1.2.3", 2, number=4), series("1.2.4", 9, number=5), wanted=digest("4", 16), min_slices=3)
    assert found.startswith("2 slices, fewer than min_slices 3: ")


def test_a_number_that_several_series_have_names_the_best_of_them():
    thin, thick = series("1", 9, number=4, thickness=1.0), series("2", number=4, study="1.9")
    assert chosen(thin, thick, wanted=digest("4", 16)) == "2"
    assert refused(thick, series("3", number=4), wanted=digest("4", 16)).startswith("2 CT series of 3 slices are equal")


# Whose


def test_slices_of_two_patients_are_refused():
    mixed = series("1", patient="A"), series("2", 9, patient="B", number=2)
    assert refused(*mixed) == f"slices of 2 patients in one folder: {SORT}"
    assert chosen(*mixed, wanted=digest("2", 16)) == "2"


def test_two_patients_in_one_series_are_refused():
    assert refused([header(float(z), patient=f"{z % 2}") for z in range(4)]).startswith("slices of 2 patients in one ")


def test_slices_that_name_no_patient_are_anybodys():
    assert len(pick(series("1", 3), [header(3.0, series="1", patient="")]).headers) == 4


# Folders of many files


def test_a_folder_of_a_whole_archive_is_refused_before_all_of_it_is_read(write_slice, monkeypatch):
    files = [write_slice(f"{z:02d}", z=z, PatientID=f"P{z // 10}") for z in range(20)]
    refuse_dump(files)
    monkeypatch.setattr(selection, "MANY_FILES", 10)
    monkeypatch.setattr(selection, "SAMPLE", 4)
    refuse_dump(files[:10])
    with pytest.raises(ImageError, match=r"^20 files, of 1 CT series and more, in one folder: `python -m pipeline "):
        refuse_dump(files)
    many = [write_slice(f"s{number:02d}", SeriesInstanceUID=f"1.{number}") for number in range(20)]
    refuse_dump(many)
    monkeypatch.setattr(selection, "SAMPLE", 10)
    with pytest.raises(ImageError, match=r"^20 files, of 10 CT series and more, in one folder: "):
        refuse_dump(many)
