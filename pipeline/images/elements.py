"""The elements of a DICOM header, understood here from the bytes they are.

pydicom's own conversion costs as much again as finding the elements, and its messages quote values, which can name a
patient.
"""

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from pipeline.errors import CONTENT_ERRORS

DICOM_ERRORS: tuple[type[Exception], ...] = (
    *CONTENT_ERRORS,
    BytesLengthException,
    InvalidDicomError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on bad bytes. The texts can quote header values, so no message of ours repeats them."""

LONGEST = 1 << 16
"""ASSUME: bytes of a value that can mean something here; numbers without end would cost memory."""

PHASES = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "AcquisitionNumber",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "AcquisitionTime",
    "ContentTime",
)
"""Elements that tell repeats of a slice apart, the most telling first."""

BINARY_PHASES = frozenset(("TemporalPositionIndex", "NominalPercentageOfCardiacPhase", "FrameAcquisitionNumber"))
"""Those of them, and what is AcquisitionNumber to a frame, that are not written as text."""

EXPECTED = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber",
    "SliceThickness", "PixelSpacing",
)  # fmt: skip
"""Elements whose absence is noted, by name."""

TAGS: list[BaseTag] = sorted(
    Tag(keyword)
    for keyword in (
        *EXPECTED, *PHASES, "ImageType", "SeriesNumber", "ImagePositionPatient", "ImageOrientationPatient",
        "GantryDetectorTilt", "KVP", "ConvolutionKernel", "ContrastBolusAgent", "BurnedInAnnotation", "Manufacturer",
        "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
        "BitsStored", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleType",
        "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "LossyImageCompression",
        "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
        "FrameAcquisitionNumber",
    )
)  # fmt: skip
TAG: dict[str, BaseTag] = {keyword_for_tag(tag): tag for tag in TAGS}


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


def text(dataset: Dataset, keyword: str) -> str:
    """The characters of an element as they stand in the file, without what pads them; empty when it is absent."""
    value = _raw(dataset, keyword)
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else value


def number(dataset: Dataset, keyword: str, default: int = 0) -> int:
    """A binary number of 2 or 4 bytes, without a sign; `default` when it is absent, or something else."""
    value = _raw(dataset, keyword)
    if isinstance(value, str):
        return int(value) if value else default
    little = getattr(dataset.get_item(TAG[keyword]), "is_little_endian", True)
    return int.from_bytes(value, "little" if little else "big") if len(value) in (2, 4) else default


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """The numbers of an element that writes them as text; none when it is absent, or when one is no finite number."""
    try:
        values = tuple(float(part) for part in text(dataset, keyword).split("\\"))
    except ValueError:
        return ()
    return values if all(map(math.isfinite, values)) else ()


def _raw(dataset: Dataset, keyword: str) -> bytes | str:
    """An element's bytes, or the text of one that pydicom has already understood."""
    element = dataset.get_item(TAG[keyword])
    value = None if element is None else element.value
    if value is None or isinstance(value, bytes):
        return value if value and len(value) <= LONGEST else b""
    return "\\".join(str(part) for part in value) if isinstance(value, list | MultiValue) else str(value)
