"""DICOM files of a folder become CT slices: chosen, put in order, in Hounsfield units (HU).

Lengths are mm in the patient's frame. Not done here: multi-frame files, slices missing in between, scanners that wrap
12-bit values. Nothing that identifies a patient leaves this module: no UIDs, names, dates or file names.
"""

import logging
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID

from pipeline.errors import CONTENT_ERRORS, ImageError

DICOM_ERRORS: tuple[type[Exception], ...] = (
    *CONTENT_ERRORS,
    BytesLengthException,
    InvalidDicomError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on bad bytes. The texts can quote header values, so no message of ours repeats them."""

AIR, HIGHEST = -1024, 3071
"""HU range that is kept: 4096 values, what ordinary scanners store. Padding becomes AIR."""

SAME_POSITION = 0.01
"""ASSUME: slices closer than this, in mm along the normal, lie at the same position."""

SAME_ORIENTATION = 1e-3
"""Largest difference of a direction cosine between slices of one stack."""

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
MULTI_FRAME_CT = (CT_IMAGE + ".1", CT_IMAGE + ".2")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

PLUGINS = {
    "1.2.840.10008.1.2.4.51": "python-gdcm",  # 12-bit JPEG; Pillow reads the 8-bit one
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
}
"""Transfer syntaxes that need a package which is not installed by default, and that package."""

UNITS = ("HU", "US")
"""ASSUME: US, which is DICOM's word for "unspecified", means what an absent RescaleType means: HU. A note says so."""

TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "ImageType", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleType",
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What is known of one CT slice before its pixels are read."""

    path: Path
    series: str
    syntax: UID
    extent: tuple[int, int]
    """(columns, rows)"""
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    """(row, column): from one row to the next, from one column to the next."""
    thickness: tuple[float, ...]
    unit: str
    """RescaleType; HU when it is absent."""


@contextmanager
def quiet_pydicom() -> Iterator[list[warnings.WarningMessage]]:
    """Collects pydicom's warnings, whose texts quote header values, instead of printing them."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        logger.setLevel(level)


def read_headers(folder: Path) -> tuple[list[Header], Counter[str]]:
    """The CT slices among the files of a folder, and the number of other files by the reason they are left out."""
    headers: list[Header] = []
    excluded: Counter[str] = Counter()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.name.startswith(".") or path.name.upper() in ("DICOMDIR", "VERSION"):
            excluded["not an image by its name"] += 1
            continue
        try:
            dataset = dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
            reason = why_not(dataset)
            if reason:
                excluded[reason] += 1
            else:
                headers.append(parse_header(path, dataset))
        except InvalidDicomError:
            excluded["not DICOM"] += 1
        except DICOM_ERRORS as error:
            if isinstance(error, OSError) and error.strerror:  # of the disk: to go on would lose a slice
                raise ImageError(f"a file cannot be read: {error.strerror}") from None
            excluded["unreadable header"] += 1
    return headers, excluded


def why_not(dataset: Dataset) -> str:
    """Why a DICOM file is no slice of a CT series; empty when it is one.

    Raises:
        ImageError: it is a multi-frame CT, which would be the series to read.
    """
    sop_class = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    image_type = dataset.get("ImageType") or ""
    words = (image_type if isinstance(image_type, str) else " ".join(image_type)).upper()
    modality = dataset.get("Modality")
    if modality != "CT" if modality else sop_class not in (CT_IMAGE, *MULTI_FRAME_CT):
        return "modality is not CT"
    if sop_class == SECONDARY_CAPTURE or sop_class.startswith(SECONDARY_CAPTURE + "."):
        return "secondary capture"
    if "LOCALIZER" in words or "SCOUT" in words:
        return "localizer"
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        return "colour"
    if sop_class in MULTI_FRAME_CT or int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageError("multi-frame CT is not supported yet: convert it to one file per slice")
    if not (dataset.get("Rows") and dataset.get("Columns")):
        return "no pixels"
    orientation, position = numbers(dataset, "ImageOrientationPatient"), numbers(dataset, "ImagePositionPatient")
    usable = len(orientation) == 6 and len(position) == 3 and bool(np.isfinite(position).all())
    if not usable or not abs(np.linalg.norm(np.cross(orientation[:3], orientation[3:])) - 1) < 0.01:
        return "no position or orientation"
    return ""


def parse_header(path: Path, dataset: Dataset) -> Header:
    """The header of a file that `why_not` has nothing against."""
    syntax = UID(dataset.file_meta.get("TransferSyntaxUID") or "")
    return Header(
        path=path,
        series=str(dataset.get("SeriesInstanceUID") or ""),
        syntax=syntax if syntax.type == "Transfer Syntax" else UID("an unknown transfer syntax"),
        extent=(int(dataset.Columns), int(dataset.Rows)),
        position=numbers(dataset, "ImagePositionPatient"),
        orientation=numbers(dataset, "ImageOrientationPatient"),
        spacing=numbers(dataset, "PixelSpacing"),
        thickness=numbers(dataset, "SliceThickness"),
        unit=str(dataset.get("RescaleType") or "HU"),
    )


def numbers(dataset: Dataset, name: str) -> tuple[float, ...]:
    """The values of a numeric element; none when it is absent or empty."""
    value = dataset.get(name)
    return () if value is None else tuple(np.ravel(np.array(value, dtype=np.float64)).tolist())


def choose_series(headers: list[Header], excluded: Counter[str]) -> list[Header]:
    """The slices of the series with the most positions; those of the others are counted in `excluded`."""
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.series, []).append(header)
    if not series:
        found = ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items())) or "no files"
        raise ImageError(f"no CT slices ({found}): leave this folder out")
    slices = {name: len({header.position for header in group}) for name, group in series.items()}
    best = max(slices, key=lambda name: slices[name])
    equal = list(slices.values()).count(slices[best])
    if equal > 1:
        raise ImageError(f"{equal} CT series of {slices[best]} slices each: put each in a folder of its own")
    if len(series) > 1:
        excluded["of another series"] = len(headers) - len(series[best])
    return series[best]


def stack(headers: list[Header]) -> tuple[dict[float, list[Header]], NDArray[np.float64]]:
    """The slices at each position along the normal (mm, increasing), and the normal (3,), a unit vector.

    Never by file name or InstanceNumber, which say nothing about place.
    """
    extents = Counter(header.extent for header in headers)
    if len(extents) > 1:
        found = ", ".join(f"{columns} x {rows}: {count}" for (columns, rows), count in sorted(extents.items()))
        raise ImageError(f"slices differ in size ({found}): keep those of one size")
    orientations = np.array([header.orientation for header in headers])
    if np.abs(orientations - orientations[0]).max() > SAME_ORIENTATION:
        raise ImageError("slices differ in orientation: keep those of one orientation")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    normal /= np.linalg.norm(normal)
    positions: dict[float, list[Header]] = {}
    last = -np.inf
    for header in sorted(headers, key=lambda header: float(normal @ header.position)):
        z = float(normal @ header.position)
        if z - last < SAME_POSITION:
            positions[last].append(header)
        else:
            positions[z] = [header]
            last = z
    return positions, normal


def read_volume(positions: list[list[Header]]) -> NDArray[np.int16]:
    """HU (z, y, x) of one slice per position.

    Raises:
        ImageError: a slice cannot be decoded, or two different slices lie at one position.
    """
    columns, rows = positions[0][0].extent
    volume = np.empty((len(positions), rows, columns), dtype=np.int16)
    for number, headers in enumerate(positions):
        place = f"slice {number + 1} of {len(positions)}"
        volume[number] = read_slice(headers[0], place)
        for duplicate in headers[1:]:
            if not np.array_equal(read_slice(duplicate, place), volume[number]):
                raise ImageError(f"{place}: {len(headers)} different slices lie at this position: keep one phase only")
    return volume


def read_slice(header: Header, place: str) -> NDArray[np.int16]:
    """HU (y, x) of one file, between AIR and HIGHEST."""
    try:
        dataset = dcmread(header.path)
        stored = dataset.pixel_array
        padding = padding_range(dataset)
        rescale = numbers(dataset, "RescaleSlope") + numbers(dataset, "RescaleIntercept")
        unit = "a table" if "ModalityLUTSequence" in dataset else header.unit
    except DICOM_ERRORS as error:
        if plugin := PLUGINS.get(header.syntax):
            raise ImageError(f"{place}: {header.syntax.name} cannot be decoded: install {plugin}") from None
        raise ImageError(
            f"{place}: pixels in {header.syntax.name} are truncated or damaged ({type(error).__name__}): "
            "copy or export this series again"
        ) from None
    if unit not in UNITS or len(rescale) != 2 or not np.isfinite(rescale).all():
        found = f"rescale type {unit:.16}" if unit not in UNITS else "no RescaleSlope and RescaleIntercept"
        raise ImageError(f"{place}: values are not in Hounsfield units ({found}): use the original CT, or leave it out")
    if stored.shape != header.extent[::-1]:
        raise ImageError(f"{place}: its header and its pixels differ in size: copy or export this series again")
    slope, intercept = rescale
    hounsfield = np.rint(stored * slope + intercept)
    if padding is not None:
        hounsfield[(stored >= padding[0]) & (stored <= padding[1])] = AIR
    # Clipping also lifts padding that the header does not name, below -1100 HU, to AIR.
    return np.clip(hounsfield, AIR, HIGHEST).astype(np.int16)


def padding_range(dataset: Dataset) -> tuple[int, int] | None:
    """Lowest and highest stored value that mean "outside the scan"; None when the header names none.

    Headers often state the value in the other signedness than the pixels have (63536 for -2000), so it is taken modulo
    the pixel's range.
    """
    if dataset.get("PixelPaddingValue") is None:
        return None
    values = 1 << int(dataset.BitsAllocated)
    lowest = -values // 2 if dataset.PixelRepresentation == 1 else 0
    stated = (dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit"))
    limits = [(int(value) - lowest) % values + lowest for value in stated if value is not None]
    return min(limits), max(limits)
