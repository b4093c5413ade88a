"""DICOM files opened: however they are written, and whatever is wrong with their bytes."""

import json
import random
import struct
import zlib
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, config, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from pipeline.errors import ImageError
from pipeline.images import dicom_file
from pipeline.images.dicom import read_file
from pipeline.images.dicom_file import open_dataset, scan
from pipeline.images.elements import number, numbers, quiet_pydicom, text

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
BARE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
RAMP = np.arange(256, dtype="<i2").reshape(16, 16) - 100


def meta_end(content: bytes) -> int:
    """Where the file meta ends: 132 bytes, the element of 12 that has its length, and that length."""
    return 144 + int.from_bytes(content[140:144], "little")


def without_meta(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[meta_end(content) :])
    return path


@pytest.fixture
def write(write_slice):
    """Writes the slice RAMP in a transfer syntax."""

    def write_ramp(syntax: UID = ExplicitVRLittleEndian, name: str = "a", **others: object) -> Path:
        if syntax == ExplicitVRBigEndian:
            others["PixelData"] = DataElement(0x7FE00010, "OW", RAMP.astype(">i2").tobytes())
        return write_slice(name, value=RAMP, syntax=syntax, **others)

    return write_ramp


def nested(depth: int, tag: tuple[int, int], undefined: bool) -> bytes:
    """A sequence in a sequence in a sequence, in explicit VR little endian."""
    content = b""
    for _ in range(depth):
        if undefined:
            item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + content + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
            end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
            content = struct.pack("<HH2sHI", *tag, b"SQ", 0, 0xFFFFFFFF) + item + end
        else:
            item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
            content = struct.pack("<HH2sHI", *tag, b"SQ", 0, len(item)) + item
    return content


# However they are written


@pytest.mark.parametrize("syntax", NATIVE)
def test_elements_are_found_and_where_the_pixels_lie(write, syntax):
    path = write(syntax)
    opened = open_dataset(path)
    dataset, at = opened.elements, opened.pixels_at
    assert (text(dataset, "Modality"), number(dataset, "Rows")) == ("CT", 16)
    assert numbers(dataset, "PixelSpacing") == (0.5, 0.75)
    assert (opened.syntax, opened.sop_class) == (syntax, CTImageStorage)
    content = path.read_bytes()
    if syntax == DeflatedExplicitVRLittleEndian:
        content = zlib.decompress(content[meta_end(content) :], -zlib.MAX_WBITS)
    order = ">i2" if syntax == ExplicitVRBigEndian else "<i2"
    assert at is not None and at[1] == 512
    assert np.array_equal(np.frombuffer(content[at[0] : at[0] + 512], order).reshape(16, 16), RAMP)


@pytest.mark.parametrize("syntax", BARE)
def test_a_file_without_its_first_bytes_and_meta_is_read(write, read_series, syntax):
    without_meta(write(syntax))
    volume, properties = read_series()
    assert np.array_equal(volume[0], RAMP)
    assert properties["qc"]["transfer_syntax"] == syntax.name


def test_a_file_without_its_first_bytes_but_with_its_meta_is_read(write, read_series):
    path = write()
    path.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(read_series()[0][0], RAMP)


def test_pixels_are_not_read_with_the_header(write):
    dataset = open_dataset(write()).elements
    assert "PixelData" not in dataset and "PatientName" not in dataset


def test_a_file_that_ends_where_pixels_should_begin_has_none(write):
    path = write(PixelData=None)
    assert open_dataset(path).pixels_at is None


@pytest.mark.parametrize("content", [b"", b"no image", bytes(200), b"II*\0" + bytes(500), b"x" * 128 + b"DICOM"])
def test_what_does_not_look_like_dicom_is_none(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(InvalidDicomError):
        open_dataset(path)


def encapsulated(write) -> Path:
    path = write(name="compressed")
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    return path


def test_a_header_that_is_scanned_says_what_pydicom_says(write, monkeypatch):
    """Long elements, private ones, sequences of stated length; and where the scan leaves the file to pydicom."""
    scanned = {
        "plain": write(name="plain", PixelPaddingValue=-5, ModalityLUTSequence=[Dataset()], KVP="120"),
        "compressed": encapsulated(write),
    }
    left = {
        "implicit": write(ImplicitVRLittleEndian, "implicit"),
        "big": write(ExplicitVRBigEndian, "big"),
        "deflated": write(DeflatedExplicitVRLittleEndian, "deflated"),
        "long": write(name="long", ImageComments="x" * 10_000, PatientComments="x" * 10_000),
        "no pixels": write(name="none", PixelData=None),
    }
    for name, path in (scanned | left).items():
        assert (scan(path.read_bytes()[: dicom_file.HEAD]) is not None) == (name in scanned), name
    found = {name: read_file(path) for name, path in (scanned | left).items()}
    monkeypatch.setattr(dicom_file, "scan", lambda head: None)
    assert {name: read_file(path) for name, path in (scanned | left).items()} == found


def test_real_headers_that_are_scanned_say_what_pydicom_says(shared_data, monkeypatch):
    files = [path for folder in ("ct_series", "ct_odd") for path in (shared_data / folder).rglob("*") if path.is_file()]
    with quiet_pydicom():
        found = [read_file(path) for path in files]
        seen = sum(scan(path.open("rb").read(dicom_file.HEAD)) is not None for path in files)
        monkeypatch.setattr(dicom_file, "scan", lambda head: None)
        assert [read_file(path) for path in files] == found
    assert seen > len(files) / 3


# What elements hold


def test_elements_are_understood_raw_and_as_pydicom_understands_them(write):
    """A file's are raw bytes, those of a sequence's items can have been understood already."""
    opened = open_dataset(write(PixelPaddingValue=-5, ImageType=["ORIGINAL", "AXIAL "], KVP="", Manufacturer=""))
    raw = opened.elements
    known = Dataset()
    known.Rows, known.Columns, known.Modality, known.PixelSpacing, known.KVP = 16, 16, "CT", [0.5, 0.75], None
    for dataset in (raw, known):
        assert (number(dataset, "Rows"), number(dataset, "NumberOfFrames", 7)) == (16, 7)
        assert (text(dataset, "Modality"), text(dataset, "Manufacturer")) == ("CT", "")
        assert (numbers(dataset, "PixelSpacing"), numbers(dataset, "KVP")) == ((0.5, 0.75), ())
    assert number(raw, "PixelPaddingValue") == 65531
    assert text(raw, "ImageType") == "ORIGINAL\\AXIAL"


@pytest.mark.parametrize("written", ["one", "1\\two", "nan", "inf", "1e999", "", "1\\"])
def test_numbers_that_are_none_are_no_numbers(written):
    dataset = Dataset()
    dataset.add(DataElement("PixelSpacing", "DS", b"", already_converted=True))
    dataset["PixelSpacing"]._value = written.encode()
    assert numbers(dataset, "PixelSpacing") == ()


def test_numbers_may_be_padded_and_have_exponents(write):
    stated = DataElement("PixelSpacing", "DS", "1", already_converted=True)
    stated._value = b" +4.0e-01\\ 0.50 \0"
    dataset = Dataset()
    dataset.add(stated)
    assert numbers(dataset, "PixelSpacing") == (0.4, 0.5)


# Whatever is wrong with them


def test_a_file_that_inflates_to_too_much_is_not_read(write, monkeypatch, refusal):
    write(DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr(dicom_file, "LARGEST_HEADER", 340)
    assert refusal() == "no CT slices (1 unreadable header): leave this folder out"
    monkeypatch.setattr(dicom_file, "LARGEST_HEADER", 1 << 20)
    monkeypatch.setattr(dicom_file, "LARGEST_INFLATED", 500)
    assert refusal().startswith("slice 1 of 1: pixels in Deflated Explicit VR Little Endian are truncated or damaged")


@pytest.mark.parametrize("undefined", [True, False])
@pytest.mark.parametrize("tag", [(0x0008, 0x1140), (0x0028, 0x3000), (0x5200, 0x9229), (0x5200, 0x9230)])
def test_sequences_nested_too_deep_are_no_crash(write, read_series, tag, undefined):
    """In a sequence that nobody asks for, in one that is looked for, and in those that are looked into."""
    path = write()
    content = path.read_bytes()
    depth = 5000 if undefined else 2000  # of a defined length they grow with the square of their depth
    at = content.index(struct.pack("<HH", 0x7FE0, 0x0010))
    path.write_bytes(content[:at] + nested(depth, tag, undefined) + content[at:])
    try:
        volume, _ = read_series()
    except ImageError as error:
        assert "\n" not in str(error)
    else:
        assert np.array_equal(volume[0], RAMP)


def damaged_kinds(write, write_frames) -> dict[str, Path]:
    """A file of each kind."""
    paths = {syntax.name: write(syntax, syntax.name) for syntax in NATIVE}
    paths["bare"] = without_meta(write(ImplicitVRLittleEndian, "bare"))
    paths["frames"] = write_frames("frames", [{"z": z, "value": z, "TemporalPositionIndex": 1} for z in range(3)])
    paths["run length"] = write(name="run length")
    dataset = dcmread(paths["run length"])
    dataset.compress(RLELossless)
    dataset.save_as(paths["run length"])
    return paths


KINDS = [*(syntax.name for syntax in NATIVE), "bare", "frames", "run length"]


@pytest.fixture
def attempt(tmp_path, read_series):
    """Reads a series of one file that has these bytes; gives what it reads as, or the one line."""
    (tmp_path / "one").mkdir()
    numbers_of_files = count()

    def read(content: bytes):
        path = tmp_path / "one" / f"ZZTEST {next(numbers_of_files)}"  # what is known of a file is not read twice
        path.write_bytes(content)
        try:
            return read_series(folder="one", max_oblique_deg=90)[0]
        except ImageError as error:
            message = str(error)
            assert message and "\n" not in message and "ZZTEST" not in message and "Doe" not in message
            return message
        finally:
            path.unlink()

    return read


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_anywhere_is_refused_in_one_line(write, write_frames, attempt, kind):
    content = damaged_kinds(write, write_frames)[kind].read_bytes()
    whole = attempt(content)
    assert isinstance(whole, np.ndarray)
    for length in range(0, len(content), 50):
        found = attempt(content[:length])
        assert isinstance(found, str), f"{length} of {len(content)} bytes were read as a slice"


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bits_raise_nothing_else(write, write_frames, attempt, kind):
    """200 files with one to four flipped bits in their headers: a reading, or one line."""
    content = damaged_kinds(write, write_frames)[kind].read_bytes()
    draw = random.Random(0)
    outcomes = []
    for _ in range(200):
        flipped = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            flipped[draw.randrange(len(content) - (512 if len(content) > 1000 else 0))] ^= 1 << draw.randrange(8)
        outcomes.append(attempt(bytes(flipped)))
    assert {type(outcome) for outcome in outcomes} == {np.ndarray, str}


ABSURD = ("0", "-0", "1e300", "-1e300", "1e-300", "-1", "99999999999", "4097", "0.5", "", "abc", "1e400", "NaN", "inf")
TEXTUAL = (
    "RescaleSlope", "RescaleIntercept", "SliceThickness", "KVP", "GantryDetectorTilt", "SeriesNumber", "InstanceNumber",
    "NumberOfFrames", "AcquisitionNumber", "TemporalPositionIdentifier", "TriggerTime", "ContentTime",
)  # fmt: skip
VECTORS = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}


@pytest.mark.parametrize("order", ["position", "instance_number"])
def test_absurd_numbers_raise_nothing_else(write_slice, read_series, order):
    """200 series of three slices; what is read can be written as strict JSON."""
    draw = random.Random(0)
    outcomes = []

    def stated(keyword: str, count: int) -> DataElement:
        text_of_it = "\\".join(draw.choice(ABSURD) for _ in range(count))
        return DataElement(tag_for_keyword(keyword), "LT", text_of_it, validation_mode=config.IGNORE)

    for _ in range(200):
        for z in range(3):
            chosen = {keyword: stated(keyword, 1) for keyword in TEXTUAL if draw.random() < 0.1}
            chosen |= {keyword: stated(keyword, count) for keyword, count in VECTORS.items() if draw.random() < 0.1}
            write_slice(f"{z}", **({"z": z, "value": z} | chosen))
        try:
            _, properties = read_series(order=order, repeats="first", max_oblique_deg=90)
        except ImageError as error:
            outcomes.append("refused")
            assert "\n" not in str(error)
        else:
            outcomes.append("read")
            json.dumps(properties, allow_nan=False)
    assert set(outcomes) == {"read", "refused"}


def test_pydicom_says_nothing_while_it_is_quiet(write, recwarn, caplog, capfd):
    path = write(InstanceNumber=DataElement("InstanceNumber", "IS", "1"))
    path.write_bytes(path.read_bytes().replace(b"1.2.3.4\0", b"Doe Jane"))
    with quiet_pydicom() as caught:
        read_file(path)
        Dataset.from_json({"00080018": {"vr": "UI", "Value": ["Doe Jane"]}})
    assert [warning for warning in caught if "Doe Jane" in str(warning.message)]
    assert not len(recwarn) and not caplog.text and capfd.readouterr() == ("", "")
