"""What the DICOM files of a folder hold: a header for each CT slice, and the reason why another file is none.

Lengths are mm in the patient's frame. UIDs, ids and texts are kept for comparison alone: nothing that identifies a
patient leaves this package, and no text of a header reaches any output.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from pipeline.errors import ImageError
from pipeline.images.dicom_file import UNDEFINED, Opened, open_dataset
from pipeline.images.elements import (
    BINARY_PHASES,
    DICOM_ERRORS,
    EXPECTED,
    PHASES,
    number,
    numbers,
    text,
)
from pipeline.images.exclusions import image_type, why_not
from pipeline.images.vocabulary import has_contrast, known_maker, known_unit

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
"""Transfer syntaxes whose pixels are numbers and no code."""

NEAR, FAR = 1e-3, 1e6
"""ASSUME: mm between which pixels are wide, and that nothing in a scanner is away; else a header is damaged."""

MOST_FRAMES = 100_000
"""ASSUME: of a file."""

LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)
"""Transfer syntaxes that lose something, whatever LossyImageCompression says."""


@dataclass(frozen=True, slots=True)
class Coding:
    """What the stored values of a slice mean."""

    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    """Lowest and highest stored value outside of the scan, in the pixels' own signedness; None: none is named."""


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """One CT slice before its pixels are read: a file, or a frame of a multi-frame file."""

    path: Path
    frame: int
    """Counted from 0."""
    frames: int
    """Of its file."""
    patient: str
    study: str
    series: str
    number: int | None
    """SeriesNumber."""
    instance: int
    """InstanceNumber (of a frame: its number from 1); -1: none."""
    sop: str
    """Sixteen hexadecimal digits of the sha256 of SOPInstanceUID; empty: none."""
    phase: tuple[str, ...]
    """Values of PHASES."""
    syntax: UID
    pixels_at: tuple[int, int] | None
    """Offset in the (inflated) file and bytes of the whole PixelData of a NATIVE syntax; None: ask pydicom."""
    extent: tuple[int, int]
    """(columns, rows)"""
    position: tuple[float, ...]
    """Empty, and `orientation` too: not stated."""
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    """(row, column): from one row to the next, from one column to the next; empty: not stated."""
    thickness: float | None
    tilt: float | None
    """GantryDetectorTilt, degrees: to be told and not to be computed with."""
    coding: Coding | None
    """None: slope or intercept is not stated."""
    unit: str
    """RescaleType; HU when it is absent, `table` when a table takes the place of slope and intercept."""
    words: tuple[str, ...]
    """Of ImageType."""
    kernel: str
    contrast: bool
    burned_in: bool
    lossy: bool
    kvp: float | None
    maker: str
    missing: tuple[str, ...]
    """Those of EXPECTED that are absent or empty."""


def read_headers(files: Sequence[Path]) -> tuple[list[SliceHeader], Counter[str]]:
    """The CT slices that files hold, in the files' order, and the number of other files by the reason they are none.

    Raises:
        ImageError: a file cannot be read at all; to go on would lose a slice.
    """
    headers: list[SliceHeader] = []
    excluded: Counter[str] = Counter()
    for path in files:
        found = read_file(path)
        if isinstance(found, str):
            excluded[found] += 1
        else:
            headers += found
    return headers, excluded


def read_file(path: Path) -> list[SliceHeader] | str:
    """The slices of one file, or why it holds none.

    Raises:
        ImageError: the disk does not give it.
    """
    if path.name.startswith(".") or path.name.upper() in ("DICOMDIR", "VERSION"):
        return "not an image by its name"
    try:
        file = open_dataset(path)
        return why_not(file) or parse(path, file)
    except InvalidDicomError:
        return "not DICOM"
    except DICOM_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"a file cannot be read: {error.strerror}") from None
        return "unreadable header"


def parse(path: Path, file: Opened) -> list[SliceHeader] | str:
    """The slices of a file that `why_not` has nothing against, or why it has none after all."""
    dataset = file.elements
    frames = max(1, int(next(iter(numbers(dataset, "NumberOfFrames")), 1)))
    per_frame: list[Dataset | None] = [None] if frames == 1 else []
    if frames > MOST_FRAMES or (frames > 1 and file.syntax == DeflatedExplicitVRLittleEndian):
        return "more frames than can be read"  # a deflated file would be inflated for each
    if "PerFrameFunctionalGroupsSequence" in dataset:
        per_frame = list(dataset.PerFrameFunctionalGroupsSequence)
    if len(per_frame) != frames:
        return "multi-frame without a place for each frame"
    bits = number(dataset, "BitsAllocated")
    signed = number(dataset, "PixelRepresentation") == 1
    limits = [number(dataset, name, -1) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    padding = padding_range([limit for limit in limits if limit >= 0], bits, signed)
    sop = text(dataset, "SOPInstanceUID")
    native = file.syntax in NATIVE and file.pixels_at is not None and file.pixels_at[1] != UNDEFINED
    common: dict[str, Any] = {
        "path": path,
        "frames": frames,
        "patient": text(dataset, "PatientID"),
        "study": text(dataset, "StudyInstanceUID"),
        "series": text(dataset, "SeriesInstanceUID"),
        "number": next((int(value) for value in numbers(dataset, "SeriesNumber")), None),
        "syntax": file.syntax,
        "pixels_at": file.pixels_at if native else None,
        "extent": (number(dataset, "Columns"), number(dataset, "Rows")),
        "tilt": next(iter(numbers(dataset, "GantryDetectorTilt")), None),
        "contrast": has_contrast(text(dataset, "ContrastBolusAgent").upper()),
        "burned_in": text(dataset, "BurnedInAnnotation") == "YES",
        "lossy": text(dataset, "LossyImageCompression") == "01" or file.syntax in LOSSY,
        "kvp": next(iter(numbers(dataset, "KVP")), None),
        "maker": known_maker(text(dataset, "Manufacturer")),
        "words": image_type(dataset),
    }
    absent = [name for name in EXPECTED if not text(dataset, name)]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    headers = []
    for index, frame in enumerate(per_frame):
        facts = slice_facts(partial(functional_group, dataset, frame, shared), dataset)
        rescale = facts.pop("rescale")
        bits_stored = number(dataset, "BitsStored", bits)
        coding = Coding(bits, bits_stored, signed, rescale[0], rescale[1], padding) if len(rescale) == 2 else None
        hashed = sha256(f"{sop} {index}".encode()).hexdigest()[:16] if sop else ""
        instance = index + 1 if frame is not None else next((int(n) for n in numbers(dataset, "InstanceNumber")), -1)
        stated = {"PixelSpacing": facts["spacing"], "SliceThickness": facts["thickness"] is not None}
        missing = tuple(name for name in absent if not stated.get(name))
        headers.append(
            SliceHeader(frame=index, coding=coding, sop=hashed, instance=instance, missing=missing, **common, **facts)
        )
    return headers


def functional_group(dataset: Dataset, frame: Dataset | None, shared: Dataset | None, name: str) -> Dataset:
    """A functional group of a frame: its own, or else that of all frames; empty when there is neither.

    Without a frame: the file, which is one slice and holds all of them in one.
    """
    if frame is None:
        return dataset
    for groups in (frame, shared):
        if groups is not None and groups.get(name):
            item: Dataset = groups[name].value[0]
            return item
    return Dataset()


def slice_facts(group: Callable[[str], Dataset], dataset: Dataset) -> dict[str, Any]:
    """What differs from slice to slice.

    Args:
        group: gives the functional group of a name of a frame; of a file that is one slice, always the file.
        dataset: the file.
    """
    values, measures = group("PixelValueTransformationSequence"), group("PixelMeasuresSequence")
    content = group("FrameContentSequence")
    phase = {name: phase_text(dataset, name) for name in PHASES}
    if content is not dataset:
        phase |= {name: found for name in PHASES if (found := phase_text(content, name))}
    phase["AcquisitionNumber"] = phase_text(content, "FrameAcquisitionNumber") or phase["AcquisitionNumber"]
    position = numbers(group("PlanePositionSequence"), "ImagePositionPatient")
    orientation = numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient")
    usable = is_place(position, orientation)
    spacing = numbers(measures, "PixelSpacing")
    thickness = next(iter(numbers(measures, "SliceThickness")), None)
    return {
        "phase": tuple(phase.values()),
        "position": position if usable else (),
        "orientation": orientation if usable else (),
        "spacing": spacing if len(spacing) == 2 and NEAR < min(spacing) <= max(spacing) < FAR else (),
        "thickness": thickness if thickness is not None and 0 < thickness < FAR else None,
        "rescale": numbers(values, "RescaleSlope")[:1] + numbers(values, "RescaleIntercept")[:1],
        "unit": "table" if "ModalityLUTSequence" in dataset else known_unit(text(values, "RescaleType")),
        "kernel": text(group("CTReconstructionSequence"), "ConvolutionKernel"),
    }


def phase_text(dataset: Dataset, keyword: str) -> str:
    """The value of one of PHASES as text; empty when it is absent."""
    if keyword not in BINARY_PHASES:
        return text(dataset, keyword)
    value = dataset.get(keyword)
    return "" if value is None else str(value)


def is_place(position: tuple[float, ...], orientation: tuple[float, ...]) -> bool:
    """Whether both say something, the orientation two directions at right angles."""
    if len(position) != 3 or len(orientation) != 6 or max(map(abs, position)) > FAR:
        return False
    (ax, ay, az), (bx, by, bz) = orientation[:3], orientation[3:]
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    return abs(math.hypot(*normal) - 1) < 0.01


def padding_range(stated: list[int], bits: int, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest stored value that mean "outside the scan"; None when the header names none.

    Headers often state the value in the other signedness than the pixels have (63536 for -2000), so it is taken modulo
    the pixel's range.
    """
    if not stated:
        return None
    values = 1 << bits
    lowest = -values // 2 if signed else 0
    limits = [(value - lowest) % values + lowest for value in stated]
    return min(limits), max(limits)
