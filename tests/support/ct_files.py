"""CT files in code: series that look like HU, any element of them replaced, and files that lay traps."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = CT_IMAGE + ".1"
Change = Callable[[int, Dataset], None]


def head(slices: int = 10, side: int = 16, seed: int = 0) -> NDArray[np.int16]:
    """HU (z, y, x): tissue of 20 to 60 in air of -1000, 3 pixels of it on each side; no two slices are equal."""
    z, y, x = np.ogrid[:slices, :side, :side]
    tissue = 20 + (x + 2 * y + 3 * z + seed) % 41
    inside = (np.minimum(x, y) >= 3) & (np.maximum(x, y) < side - 3)
    return np.where(inside, tissue, -1000).astype(np.int16)


def ct(hu: NDArray[np.integer], number: int, series: str = "1.2.3.1", **elements: Any) -> Dataset:
    """One CT slice (y, x), 5 mm from the next, as signed 16-bit values; any element replaced (None: left out)."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.MediaStorageSOPInstanceUID = UID(f"{series}.{number}")
    values: dict[str, Any] = {
        "SOPClassUID": CT_IMAGE,
        "SOPInstanceUID": f"{series}.{number}",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": series,
        "Modality": "CT",
        "PatientID": "SYN",
        "InstanceNumber": number + 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImagePositionPatient": [-4, -4, 5 * number],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.75],
        "SliceThickness": 5,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": hu.shape[-2],
        "Columns": hu.shape[-1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": (hu + 1024).astype("<i2").tobytes(),
    } | elements
    for name, value in values.items():
        if value is not None:
            setattr(file, name, value)
    file.file_meta.MediaStorageSOPClassUID = UID(file.get("SOPClassUID", CT_IMAGE))
    return file


def save(path: Path, file: Dataset, syntax: UID = ExplicitVRLittleEndian, bare: bool = False) -> None:
    """Write a file; `bare`: without the 128 bytes, `DICM` and file meta that come first, implicit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if bare:
        del file.file_meta
        file.save_as(path, implicit_vr=True, little_endian=True)
        return
    if "TransferSyntaxUID" not in file.file_meta:  # one that was compressed has its own
        file.file_meta.TransferSyntaxUID = syntax
    file.save_as(path, enforce_file_format=True)


def write_ct(
    folder: Path,
    hu: NDArray[np.integer] | None = None,
    series: str = "1.2.3.1",
    names: Sequence[str] = (),
    change: Change | None = None,
    syntax: UID = ExplicitVRLittleEndian,
    bare: bool = False,
    **elements: Any,
) -> list[Path]:
    """A series (z, y, x), a file for each slice, which `change` is given before it is written; the files."""
    hu = head() if hu is None else hu
    paths = []
    for number, plane in enumerate(hu):
        file = ct(plane, number, series, **elements)
        if change:
            change(number, file)
        paths.append(folder / (names[number] if names else f"{(number * 7) % len(hu):03d}-{series}.dcm"))
        save(paths[-1], file, syntax, bare)
    return paths


def write_frames(path: Path, hu: NDArray[np.integer], series: str = "1.2.3.1", **elements: Any) -> Dataset:
    """An enhanced CT of all slices (z, y, x), the last one as its first frame; what was written."""

    def groups(**of_one: dict[str, Any]) -> Dataset:
        found = Dataset()
        for name, values in of_one.items():
            item = Dataset()
            for keyword, value in values.items():
                setattr(item, keyword, value)
            setattr(found, name, [item])
        return found

    own = (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
        "RescaleIntercept",
    )  # fmt: skip
    order = list(reversed(range(len(hu))))
    stored = np.concatenate([hu[number][None] + 1024 for number in order]).astype("<i2")
    frames = {"SOPClassUID": ENHANCED_CT, "NumberOfFrames": len(hu), "PixelData": stored.tobytes()}
    file = ct(hu[0], 0, series, **dict.fromkeys(own), **(frames | elements))
    file.SharedFunctionalGroupsSequence = [
        groups(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [0.5, 0.75], "SliceThickness": 5},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"},
        )
    ]
    file.PerFrameFunctionalGroupsSequence = [
        groups(PlanePositionSequence={"ImagePositionPatient": [-4, -4, 5 * number]}) for number in order
    ]
    save(path, file)
    return file


def write_bomb(path: Path, mebibytes: int) -> None:
    """A CT slice in a deflated file of some KB, whose PixelData are so many MiB of zeros when it is inflated."""
    save(path, ct(head(1)[0], 0, PixelData=b""), DeflatedExplicitVRLittleEndian)
    small = path.read_bytes()
    at = 144 + int.from_bytes(small[140:144], "little")  # behind the file meta, which says its length
    elements, pixel_data, _ = zlib.decompress(small[at:], -zlib.MAX_WBITS).partition(b"\xe0\x7f\x10\0OW\0\0")
    length = (mebibytes << 20).to_bytes(4, "little")
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    begin = deflate.compress(elements + pixel_data + length) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)  # stands by itself: can be repeated
    path.write_bytes(small[:at] + begin + zeros * mebibytes + deflate.flush())


def write_nested(path: Path, depth: int) -> None:
    """A CT slice with sequences inside of one another before its pixels."""
    save(path, ct(head(1)[0], 0), ImplicitVRLittleEndian)
    content = path.read_bytes()
    at = content.index(bytes.fromhex("1000 2000"))  # PatientID, implicit
    sequence, item, undefined = bytes.fromhex("0800 4011"), bytes.fromhex("feff 00e0"), bytes.fromhex("ffffffff")
    ends = bytes.fromhex("feff 0de0 00000000 feff dde0 00000000")
    path.write_bytes(content[:at] + (sequence + undefined + item + undefined) * depth + ends * depth + content[at:])
