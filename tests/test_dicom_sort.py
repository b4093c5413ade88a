"""Sorting a dump: what goes where, what the tables say, and what is left when a run is killed."""

import argparse
import csv
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from pipeline import dicom_sort
from pipeline.dicom_table import cell, parse_row, uncell
from pipeline.errors import ConfigError, ImageError
from pipeline.raw import scan
from pipeline.runners import sort_dicom as runner
from pipeline.runners.sort_dicom import run_sort_dicom

CT = "1.2.840.10008.5.1.4.1.1.2"
NOON = 1_700_000_000_000_000_000


def put(path: Path, z: float = 0.0, **elements: object) -> Path:
    """A CT slice of 4 x 4 pixels, air but for the first column of z, with any element replaced (None: left out)."""
    pixels = np.full((4, 4), -1000, dtype="<i2")
    pixels[:, 0] = z
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UID(CT)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    values: dict[str, object] = {
        "SOPClassUID": CT,
        "SOPInstanceUID": f"1.2.3.{int(z) + 1}",
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "MRN0815",
        "StudyInstanceUID": "1.7",
        "SeriesInstanceUID": "1.7.1",
        "SeriesNumber": 2,
        "InstanceNumber": int(z) + 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [-4.0, -4.0, z],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.5],
        "SliceThickness": 5,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 4,
        "Columns": 4,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": 0,
        "PixelData": pixels.tobytes(),
    } | elements
    for element, content in values.items():
        if content is not None:
            setattr(dataset, element, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    os.utime(path, ns=(NOON, NOON))
    return path


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """Twelve files in no order: series of 3, 3 and 2 slices of two patients, and four that are no slices."""
    source = tmp_path / "dump"
    for z in range(3):
        put(source / f"a{z}", z)
        put(source / f"b{z}.dcm", z, SeriesInstanceUID="1.7.2", SeriesNumber=3)
    for z in range(2):
        put(source / "deep" / "er" / f"IM{z}", z, PatientID="MRN4711", StudyInstanceUID="1.8", SeriesNumber=None)
    put(source / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    put(source / "mr", Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    (source / "notes.txt").write_text("Doe^Jane")
    (source / "DICOMDIR").write_bytes(b"\0" * 200)
    return source


def sort(source: Path, dest: Path, copy: bool = False) -> None:
    run_sort_dicom(argparse.Namespace(source=str(source), dest=str(dest), copy=copy))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def rows(dest: Path) -> dict[str, dict[str, str]]:
    """The rows of the journal by source; each source has one."""
    found = read(dest / "sort-dicom.tsv")
    assert max(Counter(row["source"] for row in found).values(), default=1) == 1
    return {row["source"]: row for row in found}


def series(dest: Path) -> list[dict[str, str]]:
    return read(dest / "series.tsv")


def outcome(dest: Path) -> dict[str, object]:
    """All that a run leaves: links with where they lead, files with what they hold, the journal without its order."""
    files: dict[str, object] = {}
    for path in sorted(dest.rglob("*")):
        below = path.relative_to(dest).as_posix()
        if path.is_symlink():
            files[below] = "-> " + os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
            files[below] = sorted(content.splitlines()) if path.name == "sort-dicom.tsv" else content
    return files


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose headers are read from now on."""
    names: list[str] = []
    real = dicom_sort.read_file

    def look(path: Path) -> object:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(dicom_sort, "read_file", look)
    return names


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()[:10]


def test_each_series_has_a_folder_of_links_to_its_files(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "ct")
    found = {
        (one["patient"], one["study"], one["series"], one["number"], one["slices"], one["files"]): sorted(
            os.readlink(link) for link in (tmp_path / "ct" / one["folder"]).iterdir()
        )
        for one in series(tmp_path / "ct")
    }
    assert found == {
        ("MRN0815", "1.7", "1.7.1", "2", "3", "3"): [f"{dump}/a{z}" for z in range(3)],
        ("MRN0815", "1.7", "1.7.2", "3", "3", "3"): [f"{dump}/b{z}.dcm" for z in range(3)],
        ("MRN4711", "1.8", "1.7.1", "", "2", "2"): [f"{dump}/deep/er/IM{z}" for z in range(2)],
    }
    assert len({one["folder"].split("/")[0] for one in series(tmp_path / "ct")}) == 2


def test_names_are_hashes_of_what_the_headers_say_and_of_the_path(tmp_path: Path) -> None:
    put(tmp_path / "dump" / "x" / "Doe^Jane")
    sort(tmp_path / "dump", tmp_path / "ct")
    study = digest(["MRN0815", "1.7"])
    name = hashlib.sha256(b"x/Doe^Jane").hexdigest()[:16]
    row = rows(tmp_path / "ct")["x/Doe^Jane"]
    assert row["destination"] == f"study-{study}/series-{digest([study, '1.7.1'])}/{name}.dcm"
    assert os.readlink(tmp_path / "ct" / row["destination"]) == f"{tmp_path}/dump/x/Doe^Jane"


def test_a_row_says_what_became_of_each_file(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "ct")
    found = rows(tmp_path / "ct")
    assert len(found) == 12
    left = {name: row["reason"] for name, row in found.items() if row["status"] == "left"}
    assert left == {
        "scout": "localizer",
        "mr": "modality is not CT",
        "notes.txt": "not DICOM",
        "DICOMDIR": "not an image by its name",
    }
    assert {row["destination"] for name, row in found.items() if name in left} == {""}
    row = found["deep/er/IM1"]
    size = (dump / "deep/er/IM1").stat().st_size
    assert (row["bytes"], row["mtime_ns"], row["status"], row["reason"]) == (str(size), str(NOON), "sorted", "")
    assert (row["slices"], row["patient"], row["study"], row["series"]) == ("1", "MRN4711", "1.8", "1.7.1")


def test_nothing_is_written_below_the_source(tmp_path: Path, dump: Path) -> None:
    before = outcome(dump)
    dump.chmod(0o555)
    sort(dump, tmp_path / "ct", copy=True)
    dump.chmod(0o755)
    assert outcome(dump) == before


def test_a_series_from_two_folders_comes_together(tmp_path: Path) -> None:
    put(tmp_path / "dump" / "disk1" / "IM1", 0)
    put(tmp_path / "dump" / "disk2" / "IM1", 1)
    sort(tmp_path / "dump", tmp_path / "ct")
    (one,) = series(tmp_path / "ct")
    assert one["files"] == "2"
    assert len(list((tmp_path / "ct" / one["folder"]).iterdir())) == 2


def test_one_study_id_of_two_patients_is_two_studies(tmp_path: Path) -> None:
    put(tmp_path / "dump" / "1", PatientID="A")
    put(tmp_path / "dump" / "2", PatientID="B")
    sort(tmp_path / "dump", tmp_path / "ct")
    assert len({one["folder"].split("/")[0] for one in series(tmp_path / "ct")}) == 2


def test_files_without_uids_are_told_apart_by_their_folder_and_their_row_says_so(tmp_path: Path) -> None:
    for folder in ("p", "q"):
        for z in range(2):
            put(tmp_path / "dump" / folder / f"{z}", z, StudyInstanceUID=None, SeriesInstanceUID=None)
            put(tmp_path / "dump" / folder / f"s{z}", z, SeriesInstanceUID=None)
    sort(tmp_path / "dump", tmp_path / "ct")
    assert sorted((one["study"], one["series"], one["files"]) for one in series(tmp_path / "ct")) == [
        ("", "", "2"),
        ("", "", "2"),
        ("1.7", "", "2"),
        ("1.7", "", "2"),
    ]
    found = rows(tmp_path / "ct")
    assert found["p/0"]["reason"] == "no StudyInstanceUID and no SeriesInstanceUID: told apart by its folder"
    assert found["p/s0"]["reason"] == "no SeriesInstanceUID: told apart by its folder"
    assert found["p/s0"]["destination"].split("/")[0] == found["q/s0"]["destination"].split("/")[0]


def test_copies_are_identical_and_keep_their_time(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "ct", copy=True)
    for name, row in rows(tmp_path / "ct").items():
        if row["status"] == "sorted":
            place = tmp_path / "ct" / row["destination"]
            assert not place.is_symlink()
            assert place.read_bytes() == (dump / name).read_bytes()
            assert place.stat().st_mtime_ns == NOON
    assert list((tmp_path / "ct").rglob("*.tmp")) == []


# Interrupted, and run again


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("after", [0, 1, 5, 11])
def test_a_run_that_was_killed_goes_on_and_ends_like_one_that_was_not(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch, after: int, copy: bool
) -> None:
    sort(dump, tmp_path / "whole", copy)
    seen: list[str] = []
    real = dicom_sort.read_file

    def look(path: Path) -> object:
        seen.append(path.name)
        if len(seen) == after + 1:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(dicom_sort, "read_file", look)
    with pytest.raises(KeyboardInterrupt):
        sort(dump, tmp_path / "ct", copy)
    assert not (tmp_path / "ct" / "series.tsv").exists()
    assert len(rows(tmp_path / "ct")) == after
    del seen[after:]
    after = 1000
    sort(dump, tmp_path / "ct", copy)
    assert len(seen) == 12
    assert outcome(tmp_path / "ct") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("filler", [b"", b"\0" * 50])
def test_a_torn_table_is_mended(tmp_path: Path, dump: Path, opened: list[str], share: float, filler: bytes) -> None:
    """With the links that were made after the row before was written; and with what a power cut leaves in files."""
    sort(dump, tmp_path / "ct")
    whole = outcome(tmp_path / "ct")
    table = tmp_path / "ct" / "sort-dicom.tsv"
    content = table.read_bytes()
    kept = content[: round(share * len(content))]
    table.write_bytes(kept + filler)
    opened.clear()
    sort(dump, tmp_path / "ct")
    assert len(opened) == 12 - max(0, kept.count(b"\n") - 1)
    assert outcome(tmp_path / "ct") == whole


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_a_table_with_half_a_header_is_begun_anew(tmp_path: Path, dump: Path, opened: list[str], kept: int) -> None:
    sort(dump, tmp_path / "ct")
    whole = outcome(tmp_path / "ct")
    table = tmp_path / "ct" / "sort-dicom.tsv"
    table.write_bytes(table.read_bytes()[:kept])
    opened.clear()
    sort(dump, tmp_path / "ct")
    assert len(opened) == 12
    assert outcome(tmp_path / "ct") == whole


def test_every_cut_of_a_line_is_noticed() -> None:
    line = b"a\t12\t34\tsorted\tstudy-0123456789/series-0123456789/0123456789abcdef.dcm\t\t1\tp\ts\tu\t2\n"
    row = parse_row(line)
    assert row is not None
    assert (row.source, row.bytes, row.mtime_ns, row.slices, row.number) == ("a", 12, 34, 1, "2")
    assert [parse_row(line[:end]) for end in range(len(line))] == [None] * len(line)


@pytest.mark.parametrize("place", ["../../x.dcm", "/etc/x", "", "study-0123456789/series-0123456789/../../../x.dcm"])
def test_a_row_that_leads_out_of_the_folder_is_no_row(place: str) -> None:
    assert parse_row(f"a\t12\t34\tsorted\t{place}\t\t1\tp\ts\tu\t2\n".encode()) is None


def test_a_second_run_opens_nothing_and_changes_nothing(tmp_path: Path, dump: Path, opened: list[str]) -> None:
    sort(dump, tmp_path / "ct")
    whole = outcome(tmp_path / "ct")
    opened.clear()
    sort(dump, tmp_path / "ct")
    assert opened == []
    assert outcome(tmp_path / "ct") == whole


def test_links_that_are_gone_are_made_again(tmp_path: Path, dump: Path, opened: list[str]) -> None:
    sort(dump, tmp_path / "ct")
    whole = outcome(tmp_path / "ct")
    for name in ("a0", "b1.dcm"):
        (tmp_path / "ct" / rows(tmp_path / "ct")[name]["destination"]).unlink()
    shutil.rmtree((tmp_path / "ct" / rows(tmp_path / "ct")["deep/er/IM0"]["destination"]).parent)
    opened.clear()
    sort(dump, tmp_path / "ct")
    assert sorted(opened) == ["IM0", "IM1", "a0", "b1.dcm"]
    assert outcome(tmp_path / "ct") == whole


def test_new_files_join_their_series(tmp_path: Path, dump: Path, opened: list[str]) -> None:
    sort(dump, tmp_path / "ct")
    opened.clear()
    put(dump / "new", 3)
    sort(dump, tmp_path / "ct")
    assert opened == ["new"]
    assert sorted(one["files"] for one in series(tmp_path / "ct")) == ["2", "3", "4"]


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_that_became_another_moves_to_its_new_series(tmp_path: Path, dump: Path, copy: bool) -> None:
    sort(dump, tmp_path / "ct", copy)
    before = rows(tmp_path / "ct")["a0"]["destination"]
    os.utime(put(dump / "a0", SeriesInstanceUID="1.7.2", SeriesNumber=3), ns=(NOON, NOON + 10**10))
    sort(dump, tmp_path / "ct", copy)
    after = rows(tmp_path / "ct")["a0"]["destination"]
    assert not os.path.lexists(tmp_path / "ct" / before)
    assert (tmp_path / "ct" / after).read_bytes() == (dump / "a0").read_bytes()
    assert [one["files"] for one in series(tmp_path / "ct") if one["patient"] == "MRN0815"] in (["2", "4"], ["4", "2"])


def test_a_slice_that_is_replaced_by_something_else_is_taken_out(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "ct")
    before = rows(tmp_path / "ct")["a0"]["destination"]
    (dump / "a0").write_text("gone")
    sort(dump, tmp_path / "ct")
    assert rows(tmp_path / "ct")["a0"]["reason"] == "not DICOM"
    assert not os.path.lexists(tmp_path / "ct" / before)


def test_files_that_left_the_source_stay_in_the_tables_and_are_told(
    tmp_path: Path, dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sort(dump, tmp_path / "ct", copy=True)
    whole = outcome(tmp_path / "ct")
    shutil.rmtree(dump / "deep")
    sort(dump, tmp_path / "ct", copy=True)
    assert outcome(tmp_path / "ct") == whole
    assert "2 sorted files are no longer in SOURCE" in capsys.readouterr().out


def test_a_copy_that_was_cut_off_is_made_anew(tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sort(dump, tmp_path / "whole", copy=True)

    real = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if path.name.endswith(".dcm.tmp"):
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # a process that is gone removes nothing
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            sort(dump, tmp_path / "ct", copy=True)
    assert len(list((tmp_path / "ct").rglob(".*.dcm.tmp"))) == 1
    assert list((tmp_path / "ct").rglob("[!.]*.dcm")) == []
    sort(dump, tmp_path / "ct", copy=True)
    assert outcome(tmp_path / "ct") == outcome(tmp_path / "whole")


def test_a_full_disk_ends_the_run_in_one_line_that_names_no_file_and_the_next_run_goes_on(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sort(dump, tmp_path / "whole")
    made: list[str] = []
    real = os.symlink

    def full(path: str, place: str) -> None:
        made.append(place)
        if len(made) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", path, None, place)
        real(path, place)

    monkeypatch.setattr(os, "symlink", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        sort(dump, tmp_path / "ct")
    assert caught.value.filename == str(tmp_path / "ct")
    assert "dump" not in str(caught.value)
    sort(dump, tmp_path / "ct")
    assert outcome(tmp_path / "ct") == outcome(tmp_path / "whole")


def test_a_file_that_the_disk_does_not_give_fails_alone_and_is_tried_again(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sort(dump, tmp_path / "whole")
    real = dicom_sort.read_file

    def look(path: Path) -> object:
        if path.name == "a1":
            raise ImageError("a file cannot be read: Input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(dicom_sort, "read_file", look)
        sort(dump, tmp_path / "ct")
    row = rows(tmp_path / "ct")["a1"]
    assert (row["status"], row["destination"]) == ("failed", "")
    assert row["reason"] == "a file cannot be read: Input/output error"
    assert sorted(one["files"] for one in series(tmp_path / "ct")) == ["2", "2", "3"]
    sort(dump, tmp_path / "ct")
    assert outcome(tmp_path / "ct") == outcome(tmp_path / "whole")


def test_a_copy_of_a_file_that_cannot_be_read_to_its_end_fails_alone(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[str], object] = dicom_sort._blocks

    def blocks(path: str) -> object:
        if path.endswith("a1"):
            raise ImageError("a file cannot be read: Input/output error")
        return real(path)

    monkeypatch.setattr(dicom_sort, "_blocks", blocks)
    sort(dump, tmp_path / "ct", copy=True)
    assert {name for name, row in rows(tmp_path / "ct").items() if row["status"] == "failed"} == {"a1"}
    assert len(list((tmp_path / "ct").rglob("*.dcm"))) == 7
    assert list((tmp_path / "ct").rglob("*.tmp")) == []


def test_a_file_that_grows_while_it_is_copied_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "dump" / "a")
    real = dicom_sort._blocks

    def blocks(name: str) -> object:
        yield from real(name)
        with path.open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(dicom_sort, "_blocks", blocks)
    sort(tmp_path / "dump", tmp_path / "ct", copy=True)
    assert rows(tmp_path / "ct")["a"]["reason"] == "a file changed while it was copied: run again"
    assert list((tmp_path / "ct").rglob("*.dcm")) == []


# What is in the way


@pytest.mark.parametrize("copy", [False, True])
def test_what_somebody_else_put_at_a_place_stays_and_the_row_fails(tmp_path: Path, dump: Path, copy: bool) -> None:
    sort(dump, tmp_path / "whole", copy)
    place = rows(tmp_path / "whole")["a0"]["destination"]
    stranger = tmp_path / "ct" / place
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine")
    sort(dump, tmp_path / "ct", copy)
    row = rows(tmp_path / "ct")["a0"]
    assert (row["status"], row["reason"]) == ("failed", "its place is taken: move away what is there and run again")
    assert stranger.read_text() == "mine"
    stranger.unlink()
    sort(dump, tmp_path / "ct", copy)
    assert outcome(tmp_path / "ct") == outcome(tmp_path / "whole")


def test_a_link_that_leads_elsewhere_is_not_ours(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "whole")
    place = tmp_path / "ct" / rows(tmp_path / "whole")["a0"]["destination"]
    place.parent.mkdir(parents=True)
    place.symlink_to("/nowhere")
    sort(dump, tmp_path / "ct")
    assert rows(tmp_path / "ct")["a0"]["status"] == "failed"
    assert os.readlink(place) == "/nowhere"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_that_is_a_link_out_of_the_destination_gets_nothing(tmp_path: Path, dump: Path, depth: int) -> None:
    sort(dump, tmp_path / "whole")
    folder = Path(*Path(rows(tmp_path / "whole")["a0"]["destination"]).parts[:depth])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "ct" / folder).parent.mkdir(parents=True)
    (tmp_path / "ct" / folder).symlink_to(tmp_path / "elsewhere")
    sort(dump, tmp_path / "ct")
    assert rows(tmp_path / "ct")["a0"]["status"] == "failed"
    assert rows(tmp_path / "ct")["deep/er/IM0"]["status"] == "sorted"
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["sort-dicom.tsv", "series.tsv"])
@pytest.mark.parametrize("more", ["\tlabel", "s"])
def test_a_table_of_somebody_else_is_not_overwritten(tmp_path: Path, dump: Path, name: str, more: str) -> None:
    sort(dump, tmp_path / "ct")
    table = tmp_path / "ct" / name
    header, _, rest = table.read_text().partition("\n")
    table.write_text(header + more + "\n" + rest)
    with pytest.raises(ConfigError, match=rf"{name}: is no table that sort-dicom wrote: move it away"):
        sort(dump, tmp_path / "ct")
    assert table.read_text() == header + more + "\n" + rest


@pytest.mark.parametrize("dest", ["dump", "dump/ct", ".", "link", "link/ct"])
def test_source_and_destination_in_one_another_are_refused(tmp_path: Path, dump: Path, dest: str) -> None:
    (tmp_path / "link").symlink_to(dump)
    before = outcome(tmp_path)
    with pytest.raises(ConfigError, match="SOURCE and DEST lie in one another: name a DEST outside of SOURCE"):
        sort(dump, tmp_path / dest)
    assert outcome(tmp_path) == before


def test_a_source_that_is_missing_or_a_file_is_refused(tmp_path: Path, dump: Path) -> None:
    with pytest.raises(ConfigError, match="absent: is not there: name the folder"):
        sort(tmp_path / "absent", tmp_path / "ct")
    with pytest.raises(ConfigError, match="a0: is no folder: name the folder"):
        sort(dump / "a0", tmp_path / "ct")
    assert not (tmp_path / "ct").exists()


def test_a_destination_that_is_a_file_is_refused(tmp_path: Path, dump: Path) -> None:
    (tmp_path / "ct").write_text("mine")
    with pytest.raises(ConfigError, match="ct: is a file: name the folder to sort into"):
        sort(dump, tmp_path / "ct")


def test_two_runs_at_once_are_refused(tmp_path: Path, dump: Path) -> None:
    (tmp_path / "ct").mkdir()
    with (tmp_path / "ct" / ".sort-dicom.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another sort-dicom is at work there: wait until it has finished"):
            sort(dump, tmp_path / "ct")
    sort(dump, tmp_path / "ct")
    assert len(series(tmp_path / "ct")) == 3


def test_another_source_or_the_other_way_is_refused(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "ct")
    whole = outcome(tmp_path / "ct")
    put(tmp_path / "other" / "a0")
    for source, copy in ((tmp_path / "other", False), (dump, True)):
        with pytest.raises(ConfigError, match="was filled from another SOURCE, or without or with --copy"):
            sort(source, tmp_path / "ct", copy)
    assert outcome(tmp_path / "ct") == whole


# Strange sources


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"tab\there", r"tab\there"),
        (b"two\nlines\r", r"two\nlines\r"),
        (b"not-utf8-\xff", r"not-utf8-\udcff"),
        (b"back\\slash", r"back\\slash"),
        (b'"quoted"', r"\x22quoted\x22"),
        ("Müller 北京".encode(), "Müller 北京"),
        (b" spaces ", " spaces "),
        (b"-", "-"),
    ],
)
def test_evil_names_are_sorted_and_shown_on_one_line(
    tmp_path: Path, opened: list[str], name: bytes, shown: str
) -> None:
    folder = tmp_path / "dump" / os.fsdecode(name)
    put(folder / "x", 0)
    put(tmp_path / "dump" / "y", 1).rename(folder / os.fsdecode(name))
    sort(tmp_path / "dump", tmp_path / "ct")
    found = rows(tmp_path / "ct")
    assert set(found) == {f"{shown}/x", f"{shown}/{shown}"}
    place = tmp_path / "ct" / found[f"{shown}/{shown}"]["destination"]
    assert place.name == hashlib.sha256(name + b"/" + name).hexdigest()[:16] + ".dcm"
    assert os.readlink(os.fsencode(place)) == os.fsencode(tmp_path) + b"/dump/" + name + b"/" + name
    whole = outcome(tmp_path / "ct")
    opened.clear()
    sort(tmp_path / "dump", tmp_path / "ct")
    assert opened == []
    assert outcome(tmp_path / "ct") == whole


@pytest.mark.parametrize(
    "text", ["", "a", "a\tb", "a\\tb", "\\", "é\n", "北\u2028\0", "\udcff", '"', "\x85", "\U0010ffff"]
)
def test_a_cell_gives_back_what_it_was_given(text: str) -> None:
    assert uncell(cell(text)) == text
    assert cell(text).isprintable()
    assert '"' not in cell(text)


def test_a_patient_id_cannot_break_the_tables(tmp_path: Path) -> None:
    put(tmp_path / "dump" / "a", PatientID="A\\B\nC", StudyInstanceUID="1.7")
    sort(tmp_path / "dump", tmp_path / "ct")
    (one,) = series(tmp_path / "ct")
    assert (one["study"], one["files"]) == ("1.7", "1")
    assert uncell(one["patient"]).startswith("A\\B")


def test_loops_of_links_are_entered_once(tmp_path: Path, dump: Path) -> None:
    (dump / "deep" / "up").symlink_to(dump)
    (dump / "deep" / "er" / "self").symlink_to("self")
    (dump / "again").symlink_to(dump / "deep")
    sort(dump, tmp_path / "ct")
    found = rows(tmp_path / "ct")
    assert len(found) == 13
    assert found["deep/er/self"]["status"] == "failed"
    assert found["deep/er/self"]["reason"] == "a file cannot be read: Too many levels of symbolic links"
    assert found["deep/er/IM0"]["status"] == "sorted"


def test_folders_and_files_behind_links_are_sorted(tmp_path: Path, dump: Path) -> None:
    dump.rename(tmp_path / "elsewhere")
    dump.mkdir()
    (dump / "link").symlink_to(tmp_path / "elsewhere")
    (dump / "broken").symlink_to("nothing")
    sort(dump, tmp_path / "ct")
    assert [one["files"] for one in series(tmp_path / "ct")] in (["3", "3", "2"],)
    assert rows(tmp_path / "ct")["link/a0"]["status"] == "sorted"
    assert rows(tmp_path / "ct")["broken"]["reason"] == "a file cannot be read: No such file or directory"


def test_links_into_the_destination_are_not_entered(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "ct")
    whole = outcome(tmp_path / "ct")
    (dump / "all").symlink_to(tmp_path / "ct")
    (dump / "one").symlink_to(tmp_path / "ct" / series(tmp_path / "ct")[0]["folder"])
    sort(dump, tmp_path / "ct")
    assert outcome(tmp_path / "ct") == whole


def test_pipes_are_not_waited_for_and_hidden_folders_are_not_entered(tmp_path: Path, dump: Path) -> None:
    os.mkfifo(dump / "pipe")
    put(dump / ".snapshot" / "a0")
    sort(dump, tmp_path / "ct")
    found = rows(tmp_path / "ct")
    assert (found["pipe"]["status"], found["pipe"]["reason"]) == ("left", "neither a file nor a folder")
    assert (found[".snapshot"]["status"], found[".snapshot"]["reason"]) == ("left", "a hidden folder")
    assert len(found) == 14


def test_a_folder_that_cannot_be_opened_is_a_row_and_the_rest_goes_on(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def refused(path: str) -> object:
        if path.rstrip("/").endswith("/deep"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refused)
    sort(dump, tmp_path / "ct")
    row = rows(tmp_path / "ct")["deep/"]
    assert (row["status"], row["reason"]) == ("failed", "a folder cannot be opened: Permission denied")
    assert len(series(tmp_path / "ct")) == 2


def test_an_empty_source_gives_empty_tables(tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    sort(tmp_path / "dump", tmp_path / "ct")
    assert rows(tmp_path / "ct") == {}
    assert series(tmp_path / "ct") == []


# What is said


def test_the_summary_has_counts_and_no_names(tmp_path: Path, dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(dump / "again", SeriesInstanceUID=None)
    sort(dump, tmp_path / "ct")
    said = capsys.readouterr().out
    assert "13 files: 9 sorted, 4 left, 0 failed; " in said
    for line in (
        "sorted: 1 no SeriesInstanceUID: told apart by its folder",
        "left: 1 localizer",
        "left: 1 modality is not CT",
        "left: 1 not DICOM",
        "left: 1 not an image by its name",
        "4 series of 2 studies and 2 patients, in series.tsv of DEST",
        "series.tsv and sort-dicom.tsv name patients",
    ):
        assert line in said
    for secret in ("MRN", "Doe", "1.7", "IM0", "a0", "deep", "notes"):
        assert secret not in said
    sort(dump, tmp_path / "ct")
    assert "13 files (13 by an earlier run): 9 sorted, 4 left, 0 failed" in capsys.readouterr().out


def test_names_of_folders_and_reasons_hold_no_text_of_headers(tmp_path: Path, dump: Path) -> None:
    put(dump / "odd", ImageType=["DOE", "SECRET"], SeriesDescription="SECRET", Modality="SECRET")
    (dump / "torn").write_bytes((dump / "a0").read_bytes()[:700])
    sort(dump, tmp_path / "ct")
    reasons = {row["reason"] for row in rows(tmp_path / "ct").values()}
    names = {path.relative_to(tmp_path / "ct").as_posix() for path in (tmp_path / "ct").rglob("*")}
    for secret in ("MRN", "Doe", "DOE", "SECRET", "1.7"):
        assert not any(secret in text for text in reasons | names)


def test_progress_is_told_now_and_then(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "EVERY_FILES", 5)
    sort(dump, tmp_path / "ct")
    said = [line for line in capsys.readouterr().out.splitlines() if "files/s" in line]
    assert [line.partition(" ")[0] for line in said] == ["5", "10", "12"]


# What comes after


def test_a_sorted_folder_is_a_raw_folder_of_one_series_each(tmp_path: Path, dump: Path) -> None:
    sort(dump, tmp_path / "raw" / "rsna")
    images, ignored = scan(tmp_path / "raw")
    assert {(image.path, image.kind) for image in images} == {
        (f"rsna/{one['folder']}", "series") for one in series(tmp_path / "raw" / "rsna")
    }
    assert {item.path for item in ignored} == {"rsna/series.tsv", "rsna/sort-dicom.tsv"}


def test_a_sorted_series_reads_as_what_it_was(tmp_path: Path, dump: Path) -> None:
    from pipeline.image_settings import SeriesSettings
    from pipeline.images.series import Series

    sort(dump, tmp_path / "ct")
    folder = next(one["folder"] for one in series(tmp_path / "ct") if one["series"] == "1.7.1" and one["number"] == "2")
    image = Series.from_dicom(tmp_path / "ct" / folder, SeriesSettings(min_slices=1))
    assert image.arrays()["hu"][:, 0, 0].tolist() == [0, 1, 2]


def test_real_series_come_apart_as_their_headers_say(tmp_path: Path, shared_data: Path) -> None:
    """Against pydicom's own reading of the UIDs of every file of the CT series that lie beside the checkout."""
    import pydicom

    source = shared_data / "ct_series"
    if not source.is_dir():
        pytest.skip("no CT series there")
    sort(source, tmp_path / "ct")
    found = rows(tmp_path / "ct")
    assert {row["status"] for row in found.values()} <= {"sorted", "left"}
    together: dict[tuple[str, str, str], set[str]] = {}
    for name, row in found.items():
        if row["status"] == "sorted":
            header = pydicom.dcmread(source / name, stop_before_pixels=True, force=True)
            uids = (str(header.get("PatientID", "")), str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
            together.setdefault(uids, set()).add(row["destination"].rpartition("/")[0])
            assert os.path.samefile(tmp_path / "ct" / row["destination"], source / name)
    assert len(together) > 1
    assert {len(folders) for folders in together.values()} == {1}
    assert len(set.union(*together.values())) == len(together) == len(series(tmp_path / "ct"))
