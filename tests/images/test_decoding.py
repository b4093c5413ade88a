"""Stored values of slices: every way to write them, and every way they cannot be read."""

import csv
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.errors import ImageError
from pipeline.images import decoding
from pipeline.images.decoding import read_stored
from pipeline.images.dicom import Coding, SliceHeader, read_file
from pipeline.images.elements import quiet_pydicom

RAMP = (np.arange(4096).reshape(64, 64) - 2000).astype(np.int16)
"""Every value once, from -2000 to 2095."""

NOISE = np.random.default_rng(0).integers(-1000, 1000, (64, 64)).astype(np.int16)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_pydicom():
        yield


@pytest.fixture
def write(write_slice):
    """Writes a slice of values (y, x), of as many bits as they have."""

    def write_values(values: NDArray[np.integer] = RAMP, name: str = "a.dcm", **elements: object) -> Path:
        bits = 8 * values.itemsize
        common = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
        common |= {"Rows": values.shape[-2], "Columns": values.shape[-1]}
        order = ">" if elements.get("syntax") == ExplicitVRBigEndian else "<"
        pixel_data = DataElement(0x7FE00010, "OW", values.astype(values.dtype.newbyteorder(order)).tobytes())
        representation = {"PixelRepresentation": int(values.dtype.kind == "i"), "PixelData": pixel_data}
        return write_slice(name, **(common | representation | elements))

    return write_values


def header_of(path: Path, **changes: object) -> SliceHeader:
    found = read_file(path)
    assert not isinstance(found, str), found
    return replace(found[0], **changes)


def compressed(path: Path, syntax: UID, **how: object) -> Path:
    dataset = dcmread(path)
    dataset.compress(syntax, **how)
    dataset.save_as(path)
    return path


def refusal(header: SliceHeader) -> str:
    with pytest.raises(ImageError) as caught:
        read_stored(header, "slice 3 of 40")
    message = str(caught.value)
    assert message.startswith("slice 3 of 40: ") and "\n" not in message
    assert not any(private in message for private in ("Doe", "MRN", "1.2.3", str(header.path.parent), header.path.name))
    return message


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_values_are_those_that_were_written(write, syntax):
    path = write(**({"syntax": syntax} if syntax else {}))
    stored, decoder = read_stored(header_of(path), "slice 1 of 1")
    assert stored.dtype == np.int16 and np.array_equal(stored, RAMP) and decoder == "native"


def test_big_endian_values_come_in_the_order_of_the_machine(write):
    path = write(syntax=ExplicitVRBigEndian)
    assert RAMP.astype(">i2").tobytes() in path.read_bytes()
    stored, decoder = read_stored(header_of(path), "slice 1 of 1")
    assert stored.dtype == np.dtype(np.int16) and stored.dtype.isnative
    assert np.array_equal(stored, RAMP) and decoder == "native"
    assert np.array_equal(stored, dcmread(path).pixel_array)


def test_a_file_without_preamble_and_syntax_is_read(write):
    path = write(syntax=ImplicitVRLittleEndian)
    header = header_of(path)
    start = 144 + int(dcmread(path).file_meta.FileMetaInformationGroupLength)
    path.write_bytes(path.read_bytes()[start:])
    at = path.read_bytes().index(RAMP.tobytes())
    stored, decoder = read_stored(replace(header, pixels_at=(at, RAMP.nbytes)), "slice 1 of 1")
    assert np.array_equal(stored, RAMP) and decoder == "native"


@pytest.mark.parametrize(
    ("signed", "written", "meant"),
    [
        (0, [0x0123, 0xF123, 0x0FFF, 0x1000], [0x123, 0x123, 4095, 0]),
        (1, [0x0123, 0xF123, 0x0FFF, 0x0800], [0x123, 0x123, -1, -2048]),
    ],
)
def test_bits_above_those_stored_are_no_part_of_a_value(write, signed, written, meant):
    values = np.resize(np.array(written, dtype=np.uint16), (16, 16))
    path = write(values, BitsStored=12, HighBit=11, PixelRepresentation=signed)
    stored, _ = read_stored(header_of(path), "slice 1 of 1")
    assert stored[0, :4].tolist() == meant
    assert stored.dtype == (np.int16 if signed else np.uint16)
    assert np.array_equal(stored, dcmread(path).pixel_array)


@pytest.mark.parametrize(("bits", "signed"), [(8, 0), (8, 1), (32, 0), (32, 1)])
def test_pixels_of_8_and_32_bits_are_read(write, bits, signed):
    kind = np.dtype(f"{'i' if signed else 'u'}{bits // 8}")
    values = np.linspace(np.iinfo(kind).min, np.iinfo(kind).max, 256).astype(kind).reshape(16, 16)
    stored, _ = read_stored(header_of(write(values)), "slice 1 of 1")
    assert stored.dtype == kind and np.array_equal(stored, values)


def test_monochrome1_is_not_inverted(write):
    path = write(PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_stored(header_of(path), "slice 1 of 1")[0], RAMP)
    compressed(path, RLELossless)
    assert np.array_equal(read_stored(header_of(path), "slice 1 of 1")[0], RAMP)


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_only_the_frame_asked_for_is_read(write, syntax):
    frames = np.stack([RAMP, RAMP + 1, RAMP + 2])
    path = write(frames, NumberOfFrames=3)
    header = header_of(write(name="one.dcm"))
    at = path.read_bytes().index(frames.tobytes())
    header = replace(header, path=path, frames=3, pixels_at=(at, frames.nbytes))
    if syntax:
        compressed(path, syntax)
        header = replace(header, syntax=syntax, pixels_at=None)
    for frame in (1, 2, 0):
        stored, _ = read_stored(replace(header, frame=frame), "slice 1 of 1")
        assert np.array_equal(stored, frames[frame])
    if not syntax:
        assert "truncated" in refusal(replace(header, frames=4, pixels_at=(at, frames.nbytes)))


@pytest.mark.parametrize(
    ("syntax", "how", "package"),
    [
        (RLELossless, {}, "pydicom 3."),
        (JPEGLSLossless, {"encoding_plugin": "pyjpegls"}, "pyjpegls 1."),
        (JPEG2000Lossless, {}, "pylibjpeg-openjpeg 2."),
    ],
)
def test_compressed_values_are_those_that_were_written(write, syntax, how, package):
    path = compressed(write(), syntax, **how)
    stored, decoder = read_stored(header_of(path), "slice 1 of 1")
    assert stored.dtype == np.int16 and np.array_equal(stored, RAMP)
    assert decoder.startswith(package)


def test_jpeg_2000_that_has_forgotten_the_sign_is_put_right(write):
    """13 bits: 6192 is -2000."""
    values = np.full((64, 64), 6192, dtype=np.uint16)
    path = compressed(write(values, BitsStored=13, HighBit=12), JPEG2000Lossless)
    dataset = dcmread(path)
    dataset.PixelRepresentation = 1
    dataset.save_as(path)
    stored, _ = read_stored(header_of(path), "slice 1 of 1")
    assert stored.dtype == np.int16 and (stored == -2000).all()


@pytest.mark.parametrize("cut", [1, 100, NOISE.nbytes])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_that_ends_too_early_is_truncated(write, syntax, cut):
    path = write(NOISE, syntax=syntax)
    header = header_of(path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert "truncated or damaged (the file ends before they do)" in refusal(header)


def test_a_length_that_is_too_short_for_its_pixels_is_truncated(write):
    path = write(PixelData=DataElement(0x7FE00010, "OW", RAMP.tobytes()[:-2]))
    with path.open("ab") as file:
        file.write(bytes(100))  # there would be enough to read
    assert "fewer bytes than pixels" in refusal(header_of(path))


@pytest.mark.parametrize("cut", [100, 3000])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_a_compressed_file_that_ends_too_early_is_truncated(write, syntax, cut):
    deflated = syntax == DeflatedExplicitVRLittleEndian
    path = write(NOISE, syntax=syntax) if deflated else compressed(write(NOISE), syntax)
    header = header_of(path)
    path.write_bytes(path.read_bytes()[:-cut])
    assert "truncated or damaged" in refusal(header)


@pytest.mark.parametrize("cut", [1, 8, 10])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_few_bytes_missing_at_the_end_are_noticed_or_not_needed(write, syntax, cut):
    """Eight bytes mark the end of compressed pixels; a decoder may do without a few more."""
    path = compressed(write(NOISE), syntax)
    header = header_of(path)
    path.write_bytes(path.read_bytes()[:-cut])
    try:
        stored, _ = read_stored(header, "slice 1 of 1")
    except ImageError:
        assert cut == 10
    else:
        assert np.array_equal(stored, NOISE)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
def test_bytes_that_are_no_image_are_damaged(write, syntax):
    path = compressed(write(), RLELossless)
    whole = path.read_bytes()
    start = whole.index(b"\xfe\xff\x00\xe0", whole.index(b"\xe0\x7f\x10\x00") + 20) + 8
    header = header_of(path, syntax=syntax)
    path.write_bytes(whole[:start] + b"\xff" * (len(whole) - start - 8) + whole[-8:])
    assert "truncated or damaged" in refusal(header)


def test_rubbish_inside_a_deflated_file_is_damage(write):
    path = write(syntax=DeflatedExplicitVRLittleEndian)
    header = header_of(path)
    whole = path.read_bytes()
    start = 144 + int(dcmread(path).file_meta.FileMetaInformationGroupLength)
    path.write_bytes(whole[:start] + b"\xff" * (len(whole) - start))
    assert "truncated or damaged" in refusal(header)


def test_a_file_that_inflates_to_too_much_is_left_alone(write, monkeypatch):
    path = write(syntax=DeflatedExplicitVRLittleEndian)
    header = header_of(path)
    meta = path.read_bytes()[: 144 + int(dcmread(path).file_meta.FileMetaInformationGroupLength)]
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    path.write_bytes(meta + deflater.compress(bytes(2 << 20)) + deflater.flush())
    assert path.stat().st_size < 4000
    monkeypatch.setattr("pipeline.images.dicom_file.LARGEST_INFLATED", 1 << 20)
    assert "truncated or damaged (ValueError)" in refusal(header)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_stream_that_states_another_size_is_not_decoded(write, syntax):
    """Its decoder would ask for 60,000 x 60,000 pixels of memory."""
    path = compressed(write(), syntax)
    assert decoding.stated_size(frame_of(path)) == (64, 64)
    content = path.read_bytes()
    if syntax == JPEG2000Lossless:
        at = content.index(b"\xff\x4f\xff\x51") + 8
        huge = struct.pack(">2I", 60_000, 60_000)
    else:
        at = content.index(b"\xff\xf7") + 5
        huge = struct.pack(">2H", 60_000, 60_000)
    path.write_bytes(content[:at] + huge + content[at + len(huge) :])
    assert "its header and its pixels differ in size" in refusal(header_of(path))


def frame_of(path: Path) -> bytes:
    dataset = dcmread(path)
    return get_frame(dataset.PixelData, 0, number_of_frames=1)


def test_the_memory_is_not_asked_for_what_no_slice_needs(write):
    header = header_of(write(), extent=(60_000, 60_000), pixels_at=(0, 1 << 33))
    assert "60000 x 60000 pixels are no CT slice" in refusal(header)
    assert "0 x 16 pixels are no CT slice" in refusal(replace(header, extent=(0, 16)))


def test_pixels_of_another_size_than_the_header_says_are_refused(write):
    path = compressed(write(), RLELossless)
    assert "differ in size" in refusal(header_of(path, extent=(16, 8)))


def test_values_without_a_rescale_are_refused(write):
    assert "no RescaleSlope and RescaleIntercept" in refusal(header_of(write(RescaleSlope=None)))


@pytest.mark.parametrize(
    ("coding", "found"),
    [
        (Coding(12, 12, False, 1, 0, None), "12 of 12 bits a pixel"),
        (Coding(64, 64, True, 1, 0, None), "64 of 64 bits a pixel"),
        (Coding(16, 0, True, 1, 0, None), "0 of 16 bits a pixel"),
        (Coding(16, 17, True, 1, 0, None), "17 of 16 bits a pixel"),
    ],
)
def test_bits_that_nobody_writes_are_refused(write, coding, found):
    assert found in refusal(header_of(write(), coding=coding))


def test_8_bit_pixels_in_big_endian_order_are_refused(write):
    header = header_of(write(), syntax=ExplicitVRBigEndian, coding=Coding(8, 8, False, 1, 0, None))
    assert "8 of 8 bits a pixel in big endian order: export this series" in refusal(header)


def test_a_disk_that_fails_says_so(write):
    header = header_of(write())
    header.path.unlink()
    assert refusal(header) == "slice 3 of 40: the file cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("syntax", "named"),
    [
        ("1.2.840.10008.1.2.4.53", "JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8)"),
        ("1.2.840.10008.1.2.4.55", "JPEG Full Progression, Non-Hierarchical (Process 10 and 12)"),
        ("1.2.3.4.5.6.0815", "an unknown transfer syntax"),
        ("Doe^Jane", "an unknown transfer syntax"),
        ("", "an unknown transfer syntax"),
    ],
)
def test_a_syntax_that_no_package_decodes_says_so(write, syntax, named):
    header = header_of(write(), syntax=UID(syntax), pixels_at=None)
    assert refusal(header) == (
        f"slice 3 of 40: {named} cannot be decoded by any package: export this series uncompressed"
    )


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [
        (JPEGBaseline8Bit, ["python-gdcm"]),
        (JPEGLosslessSV1, ["python-gdcm", "pylibjpeg-libjpeg"]),
        (JPEGLSLossless, ["pyjpegls"]),
        (JPEG2000Lossless, ["pylibjpeg-openjpeg"]),
        (HTJ2KLossless, ["pylibjpeg-openjpeg"]),
    ],
)
def test_a_missing_decoder_is_named(write, monkeypatch, syntax, packages):
    decoder = get_decoder(syntax)
    monkeypatch.setattr(decoder, "_available", {})
    header = header_of(compressed(write(), RLELossless), syntax=syntax)
    message = refusal(header)
    assert "cannot be decoded: install " in message and all(package in message for package in packages)


def test_12_bit_jpeg_needs_the_gpl_decoder(write, monkeypatch):
    """pydicom's other two are there, and refuse it."""
    decoder = get_decoder(JPEGExtended12Bit)
    monkeypatch.setattr(decoder, "_available", {"gdcm": None, "pillow": None})
    path = compressed(write(), RLELossless)
    message = refusal(header_of(path, syntax=JPEGExtended12Bit))
    assert message.endswith("cannot be decoded: install pylibjpeg-libjpeg (GPL-3.0: the extra `gpl`)")


def test_when_a_decoder_refuses_no_other_is_asked(write, monkeypatch):
    """gdcm ends the process on bytes that others call damaged."""

    def fails(source: bytes, runner: object) -> bytes:
        raise ValueError("Doe^Jane")

    decoder = get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", decoder._available | {"pylibjpeg": fails})
    path = compressed(write(), JPEG2000Lossless)
    assert "truncated or damaged (RuntimeError)" in refusal(header_of(path))


def test_a_decoder_that_pip_does_not_know_has_no_version(monkeypatch):
    def unknown(package: str) -> str:
        raise decoding.PackageNotFoundError(package)

    monkeypatch.setattr(decoding, "version", unknown)
    assert decoding._decoder_of.__wrapped__("gdcm", JPEGLosslessSV1) == "python-gdcm"
    assert decoding._decoder_of.__wrapped__("pylibjpeg", JPEGLosslessSV1) == "pylibjpeg-libjpeg"


def test_real_files_are_read_as_pydicom_reads_them(shared_data):
    """All CT slices; those of which an independent run says that they decode must, but for 12-bit JPEG."""
    seen: dict[str, int] = {}
    with (shared_data / "VERIFY_DICOM.tsv").open(newline="") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            path = shared_data / row["file"]
            headers = read_file(path) if path.exists() else "absent"
            for header in [] if isinstance(headers, str) else headers:
                native = header.syntax in decoding.NATIVE
                if not native and (row["decode"] != "ok" or header.syntax == JPEGExtended12Bit):
                    assert "cannot be decoded" in refusal(header)
                    seen["refused"] = seen.get("refused", 0) + 1
                    continue
                stored, decoder = read_stored(header, "slice 1 of 1")
                assert np.array_equal(stored, as_pydicom_reads(header)), row["file"]
                seen[decoder.split()[0]] = seen.get(decoder.split()[0], 0) + 1
    assert seen["native"] > 250 and seen["refused"] == 5
    assert {"pydicom", "pyjpegls", "pylibjpeg-openjpeg", "python-gdcm"} < set(seen)


def as_pydicom_reads(header: SliceHeader) -> NDArray[np.generic]:
    dataset: Dataset = dcmread(header.path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = header.syntax
    dataset.setdefault("PhotometricInterpretation", "MONOCHROME2")
    dataset.setdefault("SamplesPerPixel", 1)
    values = dataset.pixel_array
    return values if header.frames == 1 else values[header.frame]


def test_lossless_ways_to_write_one_slice_give_one_result(shared_data):
    folder = shared_data / "ct_odd/cornerstonejs__cornerstoneWADOImageLoader/examples/test-images"
    arrays = {
        code: read_stored(header_of(path), "slice 1 of 1")[0]
        for path in folder.iterdir()
        if (code := path.stem.rpartition("10008.1.2")[2])
        in ("", ".1", ".1.99", ".2", ".4.57", ".4.70", ".4.80", ".4.90", ".5")
    }
    assert len(arrays) == 9
    assert all(np.array_equal(array, arrays[""]) for array in arrays.values())
