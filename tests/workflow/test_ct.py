"""CT folders as archives give them: each is one line of the catalog and of series.tsv, and the others go on."""

import csv
import html
import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from pipeline.store import Store
from support.ct_files import ct, head, save, write_bomb, write_ct, write_frames, write_nested
from support.workspace import Workspace

Rows = dict[str, dict[str, str]]
Make = Callable[[Path], object]

SORT = "`python -m pipeline sort-dicom` gives each series a folder of its own"
DAMAGED = "copy or export this series again"
BOMB = f"slice 1 of 10: pixels in Deflated Explicit VR Little Endian are truncated or damaged (ValueError): {DAMAGED}"
WITHOUT_POSITION = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient"))


def reversed_names(folder: Path) -> None:
    names = [f"IM{9 - number}.dcm" for number in range(10)]
    write_ct(folder, names=names, change=lambda number, file: setattr(file, "InstanceNumber", 10 - number))


def two_series(folder: Path, numbers: tuple[int | None, int | None] = (3, 4)) -> None:
    write_ct(folder, series="1.2.3.1", SeriesNumber=numbers[0])
    write_ct(folder, head(seed=5), series="1.2.3.2", SeriesNumber=numbers[1])


def beside_it(folder: Path) -> None:
    """A series with a localizer, a secondary capture that says CT, and what comes on a CD."""
    write_ct(folder)
    save(folder / "scout.dcm", ct(head(1)[0], 20, "1.2.3.2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    save(folder / "sheet.dcm", ct(head(1)[0], 21, "1.2.3.3", SOPClassUID="1.2.840.10008.5.1.4.1.1.7"))
    (folder / "DICOMDIR").write_bytes((folder / "scout.dcm").read_bytes())
    (folder / "VERSION").write_text("1")


def truncated(folder: Path) -> None:
    path = write_ct(folder)[4]
    path.write_bytes(path.read_bytes()[:-100])


def equal_duplicates(folder: Path) -> None:
    paths = write_ct(folder)
    for path in paths[2:4]:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))


def conflicting_duplicates(folder: Path) -> None:
    write_ct(folder)
    save(folder / "other.dcm", ct(head(seed=9)[3], 3))


def mixed_sizes(folder: Path) -> None:
    write_ct(folder, head(9))
    save(folder / "large.dcm", ct(head(10, 24)[9], 9))


def missing_slice(folder: Path) -> None:
    write_ct(folder, head(11))[6].unlink()


def cd(folder: Path) -> None:
    """Neither preamble nor suffix, in implicit little endian, as some CDs have them."""
    write_ct(folder, names=[f"IM_{number:04d}" for number in range(10)], bare=True)


def two_patients(folder: Path) -> None:
    write_ct(folder, change=lambda number, file: setattr(file, "PatientID", f"P{number % 2}"))


def with_a(make: Make) -> Make:
    def both(folder: Path) -> None:
        write_ct(folder)
        make(folder / "trap.dcm")

    return both


def wrapped(hu: NDArray[np.int16]) -> Make:
    """As 12 unsigned bits without an intercept, so that air of -1000 is stored as 3096."""

    def change(number: int, file: Dataset) -> None:
        file.BitsStored, file.HighBit, file.PixelRepresentation, file.RescaleIntercept = 12, 11, 0, 0
        file.PixelData = (hu[number] % 4096).astype("<u2").tobytes()

    return lambda folder: write_ct(folder, hu, change=change)


def dump(folder: Path) -> None:
    """5,100 links to slices of three patients."""
    for number in range(3):
        save(folder / f"{number}.dcm", ct(head(1)[0], number, f"1.2.{number}", PatientID=f"P{number}"))
    for number in range(5097):
        (folder / f"link {number}.dcm").symlink_to(folder / f"{number % 3}.dcm")


def nothing(folder: Path) -> None:
    folder.mkdir()


def letters(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "b").write_text("more text, in a file without a suffix")


NOT_NAMED = "other CT series in the folder left out: 10 slices: not named by the labels"
LEFT_OUT = "left out, though they may be slices: 1 unreadable header"
EQUALLY_GOOD = (
    "2 CT series of 10 slices are equally good: name one by its SeriesNumber or SeriesInstanceUID in the "
    f"column `series` of the labels, or change series.prefer; {SORT}"
)
NO_HU = (
    "values do not look like Hounsfield units (0.0% of its pixels are air and 60.9% are tissue; usual are more than "
    "5 % and 1.5 %): check its rescaling, or set series.hu_check to note"
)
BURNED_IN = (
    "10 of 10 slices have text burned into their pixels, which may name a patient: use the original CT, or set "
    "series.burned_in to allow"
)
NO_POSITION = (
    "none of 10 CT slices states its position: set series.order to instance_number if their numbers can be trusted, "
    "or leave this series out"
)
# fmt: off
CASES: dict[str, tuple[Make, str, str]] = {
    "good": (write_ct, "done", ""),
    "reversed": (reversed_names, "done", ""),
    "two, by number": (two_series, "done", NOT_NAMED),
    "two, preferred": (two_series, "done", "other CT series in the folder left out: 10 slices: not preferred by "
                       "lowest_number"),
    "two, equal": (lambda folder: two_series(folder, (None, None)), "failed", EQUALLY_GOOD),
    "two, by UID": (lambda folder: two_series(folder, (None, None)), "done", NOT_NAMED),
    "two, none such": (two_series, "failed",
                       "no CT series has the number or UID that the labels' `series` names: correct it there"),
    "beside it": (beside_it, "done", ""),
    "truncated": (truncated, "failed", "slice 5 of 10: pixels in Explicit VR Little Endian are truncated or damaged "
                  f"(the file ends before they do): {DAMAGED}"),
    "equal duplicates": (equal_duplicates, "done", "equal duplicates left out: 2"),
    "conflicting duplicates": (conflicting_duplicates, "failed", "2 different slices lie at the position of slice 4 of "
                               "10 (positions with such: 1): keep one phase only"),
    "mixed sizes": (mixed_sizes, "failed", "slices differ in size (16 x 16: 9, 24 x 24: 1): keep those of one size"),
    "no position": (lambda folder: write_ct(folder, **WITHOUT_POSITION), "failed", NO_POSITION),
    "short": (lambda folder: write_ct(folder, head(9)), "failed",
              "9 slices, fewer than min_slices 10: lower series.min_slices, or leave this series out"),
    "magnetic resonance": (lambda folder: write_ct(folder, Modality="MR"), "failed",
                           "no CT slices (10 modality is not CT): leave this folder out"),
    "missing slice": (missing_slice, "done", "1 slice is missing (a gap of 10 mm where 5 mm are usual)"),
    "burned in": (lambda folder: write_ct(folder, BurnedInAnnotation="YES"), "failed", BURNED_IN),
    "no HU": (lambda folder: write_ct(folder, RescaleIntercept=-3), "failed", NO_HU),
    "frames": (lambda folder: write_frames(folder / "1.dcm", head(12)), "done", ""),
    "cd": (cd, "done", ""),
    "two patients": (two_patients, "failed", f"slices of 2 patients in one folder: {SORT}"),
    "bomb": (with_a(lambda path: write_bomb(path, 2048)), "failed", BOMB),
    "nested": (with_a(lambda path: write_nested(path, 5000)), "done", LEFT_OUT),
    "wrapped": (wrapped(head()), "done",
                "12-bit values had wrapped and were put right (100% of 600 border pixels in 3072..4095)"),
    "dump": (dump, "failed", f"5100 files, of 3 CT series and more, in one folder: {SORT}"),
    "nothing": (nothing, "missing", "line 5 of the labels: no such image"),
}
# fmt: on
"""What makes each folder, and the status and reason, or notes, of its row."""

HU = {name: head() for name, (_, status, _) in CASES.items() if status == "done"} | {
    "two, by number": head(seed=5),
    "two, by UID": head(seed=5),
    "missing slice": np.delete(head(11), 6, axis=0),
    "frames": head(12),
}
"""The HU of each that is read."""

ORDINARY = {
    "n_files": "10",
    "n_read": "10",
    "excluded": "",
    "other_series": "",
    "duplicates": "0",
    "other_volumes": "0",
    "n_missing": "0",
    "gap_min_mm": "5.0",
    "gap_median_mm": "5.0",
    "gap_max_mm": "5.0",
    "regular": "true",
    "thicknesses": "5.0",
    "spacing": "0.5, 0.75",
    "tilt_deg": "0.0",
    "tilt_tag_deg": "",
    "order_source": "position",
    "transfer_syntax": "Explicit VR Little Endian",
    "decoder": "native",
    "lossy": "false",
    "bits": "16 of 16 signed",
    "rescale": "slope 1 intercept -1024",
    "padding": "",
    "padding_source": "below -1100 HU",
    "twelve_bit_fix": "false",
    "twelve_bit_evidence": "",
    "air_share": "0.6094",  # 156 of 256 pixels
    "tissue_share": "0.3906",
    "constant_slices": "0",
    "series_number": "",
    "kvp": "",
    "maker": "",
    "contrast": "false",
    "missing_attributes": "",
}
"""Of series.tsv, for ten slices that are as they should be."""

RECORDS: dict[str, dict[str, str]] = {
    "good": {},
    "reversed": {},
    "two, by number": {
        "n_files": "20",
        "series_number": "4",
        "other_series": "10 slices: not named by the labels",
    },
    "two, preferred": {
        "n_files": "20",
        "series_number": "3",
        "other_series": "10 slices: not preferred by lowest_number",
    },
    "two, by UID": {"n_files": "20", "other_series": "10 slices: not named by the labels"},
    "beside it": {"n_files": "12", "excluded": "1 localizer, 1 secondary capture"},
    "equal duplicates": {"n_files": "12", "duplicates": "2"},
    "missing slice": {"n_missing": "1", "gap_max_mm": "10.0", "regular": "false"},
    "frames": {"n_files": "1", "n_read": "12"},
    "cd": {"transfer_syntax": "Implicit VR Little Endian"},
    "nested": {"n_files": "11", "excluded": "1 unreadable header"},
    "wrapped": {
        "twelve_bit_fix": "true",
        "twelve_bit_evidence": "100% of 600 border pixels in 3072..4095",
        "bits": "12 of 16 unsigned",
        "rescale": "slope 1 intercept 0",
    },
}
"""What differs from ORDINARY."""


def table(work: Workspace, name: str) -> Rows:
    """A table's rows by image, without the folder that all lie in."""
    lines = work.result(name).decode().splitlines()
    return {row["image"].removeprefix("ct/"): row for row in csv.DictReader(lines, delimiter="\t")}


def embeddings(work: Workspace, image: str) -> NDArray[np.float16]:
    """The embeddings (slice, feature) of an image, by the last catalog."""
    (receipt,) = [path for path in (work.folder / "results/receipts/embed").glob("*.json") if is_last(work, path)]
    row = next(row for row in json.loads(receipt.read_text())["rows"] if row["id"] == f"ct/{image}")
    return Store(work.folder / row["store"], row["key"]).read("embeddings")


def is_last(work: Workspace, receipt: Path) -> bool:
    rows = table(work, "catalog.tsv")
    return any(row.get("store") == rows["good"]["store"] for row in json.loads(receipt.read_text())["rows"])


@pytest.fixture(scope="module")
def ran(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """All of them in one shard, in one run that succeeds."""
    work = Workspace(tmp_path_factory.mktemp("ct") / "work", repository)
    raw = work.folder / "data/raw"
    for name, (make, _, _) in CASES.items():
        (raw / "ct").mkdir(parents=True, exist_ok=True)
        make(raw / "ct" / name)
    letters(raw / "letters")
    labels = [
        ["image", "patient", "series"],
        ["ct/two, by number", "P", "4"],
        ["ct/two, by UID", "P", "1.2.3.2"],
        ["ct/two, none such", "P", "5"],
        ["ct/nothing", "P", ""],
    ]
    with (work.folder / "data/labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(labels)
    work.configure()
    work.run()
    return work


@pytest.mark.parametrize("name", CASES)
def test_each_is_one_line_of_the_catalog(ran: Workspace, name: str) -> None:
    row = table(ran, "catalog.tsv")[name]
    _, status, said = CASES[name]
    assert (row["status"], row["notes"] if status == "done" else row["reason"]) == (status, said)
    if status == "failed":
        assert f"ct/{name}: failed: {said}" in ran.logs("tile")


def test_nothing_is_lost_and_only_what_is_no_image_is_ignored(ran: Workspace) -> None:
    assert set(table(ran, "catalog.tsv")) == set(CASES)
    assert set(table(ran, "series.tsv")) == set(CASES) - {"nothing"}
    report = ran.result("report.html").decode()
    for name in ("letters/a.txt", "letters/b"):
        assert re.search(rf"{name}.*?is no slide and no DICOM file", report, re.DOTALL)
    assert "ignored: 2: letters/a.txt is no slide and no DICOM file, letters/b is" in ran.pipeline("check")


@pytest.mark.parametrize("name", RECORDS)
def test_the_record_says_how_each_was_read(ran: Workspace, name: str) -> None:
    row = table(ran, "series.tsv")[name]
    assert {column: row[column] for column in ORDINARY} == ORDINARY | RECORDS[name]


def test_every_series_that_is_read_has_a_record(ran: Workspace) -> None:
    assert set(RECORDS) == set(HU)
    for name, row in table(ran, "series.tsv").items():
        assert bool(row["n_files"]) == (name in RECORDS)


@pytest.mark.parametrize("name", HU)
def test_the_store_holds_the_values_of_the_scan(ran: Workspace, name: str) -> None:
    """In order from the feet to the head, whatever files and numbers say."""
    (receipt,) = (ran.folder / "results/receipts/tile").glob("series-unlabelled-*.json")
    row = next(row for row in json.loads(receipt.read_text())["rows"] if row["id"] == f"ct/{name}")
    store = Store(ran.folder / row["store"], row["key"])
    found = store.read("hu")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, HU[name])
    assert table(ran, "catalog.tsv")[name]["instances"] == str(len(HU[name]))


def test_a_folder_of_a_whole_archive_is_refused_before_it_is_read(ran: Workspace) -> None:
    assert float(table(ran, "catalog.tsv")["dump"]["seconds"]) < 2


def test_a_file_that_inflates_to_gigabytes_takes_no_more_memory_than_its_limit(tmp_path: Path) -> None:
    """Twice the limit of 256 MiB while the parts are put together, and what Python has anyway."""
    write_bomb(tmp_path / "bomb.dcm", 2048)
    assert (tmp_path / "bomb.dcm").stat().st_size < 4 << 20
    code = """
import resource, sys
from pathlib import Path
from pipeline.errors import ImageError
from pipeline.images.decoding import read_stored
from pipeline.images.dicom import read_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(header,) = read_file(Path(sys.argv[1]))
try:
    read_stored(header, "slice 1 of 1")
except ImageError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.dcm")]
    kilobytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(kilobytes) < 600 << 10


def test_every_series_has_a_sheet_and_the_report_shows_twelve_those_with_notes_first(ran: Workspace) -> None:
    rows = table(ran, "catalog.tsv")
    done = [name for name, row in rows.items() if row["status"] == "done"]
    for name in done:
        path = ran.folder / rows[name]["picture"]
        assert path.suffix == ".jpg" and path.is_relative_to(ran.folder / "results/embed")
        with PIL.Image.open(path) as sheet:
            sheet.load()
            assert sheet.format == "JPEG" and min(sheet.size) > 500
    report = ran.result("report.html").decode()
    shown = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="Slices of ct/([^"]+)">', report)
    noted = sorted(name for name in done if rows[name]["notes"])
    plain = sorted(name for name in done if not rows[name]["notes"])
    assert [html.unescape(name) for _, name in shown] == (noted + plain)[:12]
    assert all(PIL.Image.open(BytesIO(b64decode(jpeg))).width == 820 for jpeg, _ in shown)
    for name, row in rows.items():
        said = html.escape(row["notes"] or row["reason"]).replace("&#x27;", "&#39;")
        assert not said or re.search(rf"ct/{re.escape(name)}</td>.*>{re.escape(said)}</td></tr>", report)


def test_other_windows_read_no_dicom_again(ran: Workspace, tmp_path: Path) -> None:
    """Tile stores stay as they are and no tile job is planned; what was embedded before is found again."""
    work = Workspace(tmp_path / "work", ran.repository)
    shutil.copytree(ran.folder, work.folder, symlinks=True)
    first, catalog = work.stores(), table(work, "catalog.tsv")
    good = embeddings(work, "good")

    work.configure(series__windows=["stroke", "bone", [75, 215]])
    assert work.jobs() == {"embed": 1, "catalog": 1, "report": 1}
    work.run()
    second = work.stores()
    assert first.items() <= second.items()
    added = set(second) - set(first)
    assert len(added) == len(HU) and all(name.startswith("results/embed/") for name in added)
    assert not np.array_equal(embeddings(work, "good"), good)

    # One window, and slices beside it in place of the other two.
    work.configure(series__windows=["brain"], series__channels="neighbours")
    assert work.jobs() == {"embed": 1, "catalog": 1, "report": 1}
    work.run()
    neighbours = embeddings(work, "good")
    assert neighbours.shape == good.shape and not np.array_equal(neighbours, good)
    assert {row["status"] for row in table(work, "catalog.tsv").values()} == {"done", "failed", "missing"}

    work.configure()
    assert work.jobs() == {"catalog": 1, "report": 1}
    third = work.stores()
    work.run()
    assert work.stores() == third
    np.testing.assert_array_equal(embeddings(work, "good"), good)
    again = table(work, "catalog.tsv")
    assert {name: row["store"] for name, row in again.items()} == {name: row["store"] for name, row in catalog.items()}

    assert f"{4 * len(HU)} stores read, 0 damaged" in work.pipeline("verify")
    work.pipeline("gc", "--yes")
    assert work.stores() == first
    sheets = {str(path.relative_to(work.folder)) for path in (work.folder / "results").rglob("*.jpg")}
    assert sheets == {row["picture"] for row in again.values() if row["picture"]}
    assert f"{2 * len(HU)} stores read, 0 damaged" in work.pipeline("verify")
    assert "Nothing to be done" in work.run()
