"""Names, ids, dates and UIDs that stand in DICOM files, in their names or in the labels reach no byte of any output."""

import csv
import gzip
import json
import re
import zlib
from base64 import b64decode, b64encode, urlsafe_b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom.config
import pytest
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images.volume import read_volume
from support.ct_files import Change, ct, head, save, write_ct, write_frames
from support.workspace import Workspace

NAME, UID_PART = "ZZTEST^LEAK", "99999777"
DATE, TIME = "19701231", "235817.987654"
MARKS = tuple(
    encoded
    for text in ("zztest", "^leak", UID_PART, DATE, "1970-12-31", "235817.98", "23:58:17")
    for encoded in (text.encode(), text.encode("utf-16-le"))
)
"""What must not occur, in lower case."""

PLANTED = {
    **dict.fromkeys(("LO", "SH", "PN", "LT", "ST", "UT", "UC", "AE", "CS", "UR"), NAME),
    "UI": f"1.2.3.{UID_PART}",
    "DA": DATE,
    "TM": TIME,
    "DT": DATE + TIME,
}
"""What is written into an element of each type of value."""

NEEDED = frozenset(
    (
        "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID",
        "SeriesInstanceUID", "PhotometricInterpretation", "BurnedInAnnotation", "LossyImageCompression", "RescaleType",
        "PatientID", "AcquisitionTime", "ContentTime",
    )
)  # fmt: skip
"""Left alone: they tell that a file is a slice of a CT series, and what its values are."""

TEXTS = [
    (int(tag), vr)
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
    if vr in PLANTED and keyword not in NEEDED and int(tag) >> 16 not in (0x0000, 0x0002, 0x0004, 0x7FE0, 0xFFFE)
]
"""Every element of the dictionary that holds text, dates or UIDs (groups 0 to 4 belong to messages and media)."""

SEQUENCES = (
    "RequestAttributesSequence", "ReferencedImageSequence", "PersonIdentificationCodeSequence",
    "OriginalAttributesSequence",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def anything_can_be_written() -> Iterator[None]:
    """pydicom writes values that their types forbid without a word."""
    settings = pydicom.config.settings
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
    yield
    settings.reading_validation_mode, settings.writing_validation_mode = modes


def plant(file: Dataset, everywhere: bool = True) -> None:
    """Write the marks into every text element, into sequences in sequences, private elements and the file meta."""
    for tag, vr in TEXTS if everywhere else TEXTS[::40]:
        if tag not in file:
            file.add(DataElement(tag, vr, PLANTED[vr], validation_mode=pydicom.config.IGNORE))
    file.PatientID = NAME
    for name in ("AcquisitionTime", "ContentTime"):
        setattr(file, name, TIME)
    inner = Dataset()
    inner.PatientName, inner.StudyDate, inner.SOPInstanceUID = NAME, DATE, f"1.2.3.{UID_PART}.1"
    for name in SEQUENCES:
        outer = Dataset()
        outer.PatientComments = NAME
        outer.add_new(0x00400275, "SQ", [inner])
        if name not in file:
            setattr(file, name, [outer])
    for group in (0x0009, 0x0029, 0x7005):
        block = file.private_block(group, NAME, create=True)
        for number, vr in enumerate(("LO", "UT", "PN", "UN", "UI", "DA"), start=1):
            value = NAME.encode() + b" " if vr == "UN" else PLANTED[vr]
            block.add_new(number, vr, value)
    file.preamble = NAME.ljust(128).encode()
    meta = file.file_meta
    meta.ImplementationVersionName, meta.SourceApplicationEntityTitle = NAME, NAME
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = f"1.2.3.{UID_PART}", NAME.encode() + b" "


def planted(change: Change | None = None) -> Change:
    """All of them in one slice of a series, some in the others: each takes 20 ms."""

    def both(number: int, file: Dataset) -> None:
        plant(file, everywhere=number == 3)
        if change:
            change(number, file)

    return both


def compressed(syntax: str, marker: bytes = b"", keep: float = 1.0) -> Change:
    """Pixels in another syntax, with a comment in each code stream, and perhaps cut."""

    def change(number: int, file: Dataset) -> None:
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.compress(syntax, generate_instance_uid=False)
        if marker:
            comment = NAME.encode() + b"\0" * (number % 2)
            pieces = list(pydicom.encaps.generate_frames(file.PixelData, number_of_frames=1))
            frame = pieces[0]
            at = frame.index(marker)
            size = (len(comment) + 4).to_bytes(2, "big")
            frame = frame[:at] + b"\xff\x64" + size + b"\0\1" + comment + frame[at:]
            if number == 5:
                frame = frame[: int(len(frame) * keep)]
            file.PixelData = pydicom.encaps.encapsulate([frame + b"\0" * (len(frame) % 2)])

    return change


def cut(paths: list[Path], number: int, at: Callable[[bytes], int]) -> None:
    content = paths[number].read_bytes()
    paths[number].write_bytes(content[: at(content)])


@dataclass(frozen=True)
class Case:
    """One series and what becomes of it."""

    make: Callable[[Path, str, list[str]], object]
    """Is given its folder, the UID of its series, and names of files."""
    status: str
    said: str
    """The beginning of its reason, or its notes."""


AS_TEXTS = (
    "KVP", "GantryDetectorTilt", "SliceThickness", "SeriesNumber", "InstanceNumber", "PixelPaddingValue",
    "TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime",
)  # fmt: skip


def texts_as_numbers(number: int, file: Dataset) -> None:
    """Elements that are read as numbers hold text."""
    for keyword in AS_TEXTS:
        if keyword in file:
            delattr(file, keyword)
        tag = pydicom.datadict.tag_for_keyword(keyword)
        file.add(DataElement(tag, "LO", NAME, validation_mode=pydicom.config.IGNORE))


def simple(
    change: Change | None = None, side: int = 16, **elements: object
) -> Callable[[Path, str, list[str]], object]:
    return lambda folder, uid, names: write_ct(folder, head(10, side), uid, names, planted(change), **elements)


def cut_pixels(folder: Path, uid: str, names: list[str]) -> None:
    cut(write_ct(folder, series=uid, names=names, change=planted()), 4, lambda content: len(content) - 100)


def cut_header(folder: Path, uid: str, names: list[str]) -> None:
    """The eleventh file ends in the middle of a planted text, one that is looked at: its series is whole without."""
    paths = write_ct(folder, head(11), series=uid, names=names, change=planted())
    cut(paths, 10, lambda content: content.index(b"\x10\0\x20\0LO") + 13)


def character_set(folder: Path, uid: str, names: list[str]) -> None:
    """A character set that nobody knows, and an instance UID that is none: pydicom's warnings quote such values."""

    def change(number: int, file: Dataset) -> None:
        file.SpecificCharacterSet = "ISO_IR 192"
        file.file_meta.MediaStorageSOPInstanceUID = NAME

    for path in write_ct(folder, series=uid, names=names, change=planted(change)):
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"ZZTEST^LEA"))


def frames(folder: Path, uid: str, names: list[str]) -> None:
    path = folder / names[0]
    file = write_frames(path, head(), series=uid)
    plant(file)
    for groups in (*file.SharedFunctionalGroupsSequence, *file.PerFrameFunctionalGroupsSequence):
        text = Dataset()
        text.FrameComments, text.FrameAcquisitionDateTime, text.StackID = NAME, DATE + TIME, NAME
        groups.FrameContentSequence = [text]
        text = Dataset()
        text.ConvolutionKernel, text.ReconstructionAlgorithm = NAME, NAME
        groups.CTReconstructionSequence = [text]
    save(path, file)


def sheet(folder: Path, uid: str, names: list[str]) -> None:
    """A series with a secondary capture and another patient's report beside it."""
    write_ct(folder, head(), series=uid, names=names, change=planted())
    for name, sop_class in (("11", "1.2.840.10008.5.1.4.1.1.7"), ("12", "1.2.840.10008.5.1.4.1.1.88.11")):
        file = ct(head(1)[0], 30, uid, SOPClassUID=sop_class)
        plant(file)
        save(folder / names[0].replace("00", f"sheet {name}"), file)


CASES = {
    "good": Case(simple(), "done", ""),
    "maker": Case(simple(lambda _, file: setattr(file, "Manufacturer", f"SIEMENS {NAME}")), "done", ""),
    "rescale type": Case(
        simple(RescaleType=NAME),
        "failed",
        "values of 10 of 10 slices are not in Hounsfield units (another rescale type): ",
    ),
    "cut pixels": Case(cut_pixels, "failed", "slice 5 of 10: pixels in Explicit VR Little Endian are truncated"),
    "cut header": Case(cut_header, "done", "left out, though they may be slices: 1 no pixels"),
    "texts": Case(simple(texts_as_numbers), "done", ""),
    "character set": Case(character_set, "done", ""),
    "frames": Case(frames, "done", ""),
    "sheet": Case(sheet, "done", ""),
    "two": Case(
        lambda folder, uid, names: [
            write_ct(folder, seed, f"{uid}.{number}", [f"{number}{name}" for name in names], planted())
            for number, seed in enumerate((head(), head(seed=3)))
        ],
        "done",
        "other CT series in the folder left out: 10 slices: not named by the labels",
    ),
    "rle": Case(simple(compressed(RLELossless)), "done", ""),
    "jpeg 2000": Case(
        simple(compressed(JPEG2000Lossless, b"\xff\x90", 0.7), 64), "failed", "slice 6 of 10: pixels in JPEG"
    ),
    "jpeg-ls": Case(simple(compressed(JPEGLSLossless)), "done", ""),
    "burned in": Case(simple(BurnedInAnnotation="YES"), "failed", "10 of 10 slices have text burned into"),
    "another": Case(simple(), "done", ""),
    "one more": Case(simple(), "done", ""),
}


def write_cohort(raw: Path, folder: str, file: str) -> dict[str, str]:
    """All cases below a raw folder; the folder of each, by case. `{}` is a number in names of folders and files."""
    folders = {}
    for number, (name, case) in enumerate(CASES.items()):
        folders[name] = "ct/" + folder.format(number)
        names = [file.format(f"{(7 * z) % 12:02d}") for z in range(11)]
        case.make(raw / folders[name], f"1.2.3.{UID_PART}.{number}", names)
    return folders


def views(content: bytes) -> Iterator[bytes]:
    """A file's bytes, and what they hold in some other form: compressed streams, base64, and arrays of text."""
    yield content
    for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", content):  # zlib, as in PNG and PDF; gzip
        wbits = zlib.MAX_WBITS | (16 if start[0].startswith(b"\x1f") else 0)
        try:
            yield zlib.decompressobj(wbits).decompress(content[start.start() :], 1 << 24)
        except zlib.error:
            continue
    for text in re.findall(rb"[A-Za-z0-9+/]{40,}", content):
        decoded = b64decode(text[: len(text) // 4 * 4])
        yield decoded
        if decoded.startswith(b"\x1f\x8b"):
            yield from views(decoded)


def found_in(folder: Path) -> list[str]:
    """Files below a folder in whose bytes, name or link's target a mark stands."""
    found = []
    for path in sorted(folder.rglob("*")):
        names = [path.name.encode(), b64_name(path.name)]
        contents = list(views(path.read_bytes())) if path.is_file() and not path.is_symlink() else []
        for mark in MARKS:
            found += [f"{path}: {mark!r}" for view in (*names, *contents) if mark in view.lower()]
    return found


def b64_name(name: str) -> bytes:
    """What Snakemake's names of records, which are base64, say."""
    try:
        return urlsafe_b64decode(name + "=" * (-len(name) % 4))
    except ValueError:
        return b""


def found_in_text(text: str) -> list[bytes]:
    return [mark for mark in MARKS if mark in text.lower().encode()]


def check_outputs(work: Workspace) -> None:
    """No mark below all that a run writes, but for the private folder, which holds the way back."""
    folders = [work.folder / name for name in ("results", "logs", ".snakemake", "tmp")]
    assert sum(path.is_file() for folder in folders for path in folder.rglob("*")) > 100
    assert {path.name for path in work.folder.iterdir()} == {*(f.name for f in folders), "data", "config.yaml"}
    assert [path for path in (work.folder / "tmp").rglob("*") if path.is_symlink() or path.is_file()] == []
    assert [mark for folder in (*folders, work.folder.parent / "cache") for mark in found_in(folder)] == []


def check_all_that_is_run(work: Workspace) -> None:
    """A run and what else a user calls, and no mark in what they print and write."""
    env = {"TMPDIR": str(work.folder / "tmp")}
    (work.folder / "tmp").mkdir()
    printed = work.pipeline("check") + work.run("--printshellcmds", env=env)
    check_outputs(work)
    for command in ("summary", "verify", "gc", "retry", "check"):
        printed += work.pipeline(command)
    # What failed is tried again. Jobs that learn would be looked at again too, which takes as long as the first time.
    again = ["-n", "--forceall"] if (work.folder / "results/train").exists() else ["--verbose"]
    printed += work.run("--printshellcmds", *again, env=env)
    assert found_in_text(printed) == []
    check_outputs(work)


def write_labels(work: Workspace, rows: list[tuple[str, ...]]) -> None:
    with (work.folder / "data/labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "patient", "label", "series", "exclude"), *rows])


def check_rows(work: Workspace, names: dict[str, str]) -> None:
    """Every case became what it should: nothing is hidden by not being read."""
    rows = work.catalog()
    wrong = {}
    for name, case in CASES.items():
        row = rows[names[name]]
        said = row["notes"] if row["status"] == "done" else row["reason"]
        if row["status"] != case.status or not said.startswith(case.said) or (said and not case.said):
            wrong[name] = said
    assert wrong == {}


@pytest.fixture
def work(tmp_path: Path, repository: Path) -> Workspace:
    """A workspace without data; the name of no folder around it is a mark."""
    folder = tmp_path / "work"
    (folder / "data/raw").mkdir(parents=True)
    return Workspace(folder, repository)


def wanted(name: str) -> str:
    """What the labels' column `series` says of a case: a UID where there are two."""
    return f"1.2.3.{UID_PART}.{list(CASES).index(name)}.1" if name == "two" else ""


def test_nothing_of_headers_and_of_names_of_files_reaches_an_output(work: Workspace) -> None:
    """Folders have clean names; in some of them lie links that lead to a dump where nothing is clean."""
    raw, dump = work.folder / "data/raw", work.folder.parent / f"{NAME} dump"
    folders = write_cohort(raw, "{}", f"{NAME} {{}}.dcm")
    write_cohort(dump, f"{NAME}_{{}}", f"{NAME}^{{}}")
    printed = work.pipeline("sort-dicom", str(dump), "data/raw/sorted")
    assert f"{len(CASES) + 1} series of " in printed and found_in_text(printed) == []
    for table in ("sort-dicom.tsv", "series.tsv"):
        assert found_in_text((raw / "sorted" / table).read_text())
    sorted_names = [path.relative_to(raw) for path in (raw / "sorted").rglob("*")]
    assert found_in_text(" ".join(map(str, sorted_names))) == []
    write_labels(work, [(folder, f"P{name}", "", wanted(name), "") for name, folder in folders.items()])
    work.configure()
    check_all_that_is_run(work)
    check_rows(work, folders)
    rows = list(csv.DictReader(work.result("series.tsv").decode().splitlines(), delimiter="\t"))
    assert sorted(row["image"] for row in rows if row["maker"] == "SIEMENS")[0] == folders["maker"]
    assert {row["maker"] for row in rows} == {"", "SIEMENS"}
    statuses = [row["status"] for row in rows]
    assert len(rows) > 2 * len(CASES) - 2 and statuses.count("done") > 20


def test_names_of_folders_and_patients_do_not_show_when_ids_are_hashed(work: Workspace) -> None:
    raw = work.folder / "data/raw"
    folders = write_cohort(raw, f"{NAME}_{{}}", f"{NAME} {{}}.dcm")
    write_ct(raw / f"ct/{NAME} asked", series=f"1.2.3.{UID_PART}.50", change=planted())
    save(raw / f"{NAME}.dcm", ct(head(1)[0], 0))
    (raw / f"ct/{NAME}.txt").write_text(NAME)
    rows = [
        (folder, f"{NAME} {name}", ("normal", "lesion")[number % 2], wanted(name), "")
        for number, (name, folder) in enumerate(folders.items())
    ]
    rows += [(f"ct/{NAME} asked", NAME, "normal", "", f"{NAME} asked"), (f"ct/{NAME} gone", NAME, "normal", "", "")]
    write_labels(work, rows)
    work.configure(
        ids="hashed", bag="patient", max_failed=0.5, series__windows=["brain"], series__channels="neighbours"
    )
    check_all_that_is_run(work)
    (table,) = (work.folder / "data/private/tile").glob("*labelled*.json")
    names = {entry["path"]: image for image, entry in json.loads(table.read_text()).items()}
    check_rows(work, {name: names[folder] for name, folder in folders.items()})
    assert {row["status"] for row in work.catalog().values()} == {"done", "failed", "excluded", "missing"}
    assert work.result("metrics.csv").count(b"\n") == 2  # heads have learnt from them


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    """In headers of all cases, and in what other forms an output might have."""
    write_cohort(tmp_path / "raw", f"{NAME}_{{}}", "{}.dcm")
    for folder in (tmp_path / "raw/ct").iterdir():
        found = " ".join(path for path in found_in(folder))
        assert all(text in found for text in ("zztest", "^leak", UID_PART, DATE, "235817.98"))
    assert found_in(tmp_path / "raw")[0].startswith(str(tmp_path / "raw/ct/ZZTEST^LEAK_"))
    text = f"...{NAME}..." * 20
    forms = {
        "plain": text.encode(),
        "lower": text.lower().encode(),
        "utf-16": text.encode("utf-16-le"),
        "zlib": b"some bytes" + zlib.compress(text.encode()),
        "gzip": gzip.compress(text.encode()),
        "base64": b"data:text/plain;base64," + b64encode(text.encode()),
        "deflated base64": b64encode(gzip.compress(bytes(range(100)) + text.encode())),
    }
    for name, content in forms.items():
        (tmp_path / "forms" / name).mkdir(parents=True)
        (tmp_path / "forms" / name / "file").write_bytes(content)
        assert found_in(tmp_path / "forms" / name), name
    (tmp_path / "forms/names").mkdir()
    (tmp_path / "forms/names" / b64encode(NAME.encode()).decode()).touch()
    assert found_in(tmp_path / "forms/names")


DAMAGE = 400


def test_no_message_quotes_a_damaged_header(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Bytes are changed, taken away, and texts are declared to be numbers: read, or refused in words of our own."""
    original = ct(head(1)[0], 0, SpecificCharacterSet="ISO_IR 192")
    plant(original)
    save(tmp_path / "whole.dcm", original)
    content = (tmp_path / "whole.dcm").read_bytes().replace(b"ISO_IR 192", b"ZZTEST^LEA")
    end = content.index(b"\xe0\x7f\x10\0OW")
    rng = np.random.default_rng(0)
    settings = SeriesSettings(min_slices=1, hu_check="note")
    said = []
    for number in range(DAMAGE):
        damaged = bytearray(content)
        for at in rng.integers(132, end, 1 + number % 4).tolist():
            damaged[at] = int(rng.integers(256))
        if number % 3 == 0:
            for vr, other in ((b"LO", b"DS"), (b"PN", b"US"), (b"SH", b"IS"), (b"UI", b"SQ"), (b"CS", b"FD")):
                at = damaged.find(vr, int(rng.integers(132, end)))
                if at > 0:
                    damaged[at : at + 2] = other
        if number % 5 == 0:
            del damaged[int(rng.integers(132, end)) :]
        path = tmp_path / f"{NAME}.dcm"
        path.write_bytes(damaged)
        try:
            _, properties = read_volume([path], settings)
            said.append(json.dumps(properties))
        except ImageError as error:
            said.append(str(error))
    said += [*capfd.readouterr(), caplog.text, *(str(warning.message) for warning in recwarn)]
    assert found_in_text("\n".join(said)) == []
    assert DAMAGE * 0.1 < sum(text.startswith("{") for text in said) < DAMAGE * 0.9
