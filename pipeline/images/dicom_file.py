"""DICOM files opened: their elements, and where their pixels lie, which are never read here."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pipeline.companions import content
from pipeline.images.elements import TAGS

LARGEST_INFLATED = 256 << 20
"""ASSUME: bytes of a deflated file when inflated; more is no CT file but a trap for the memory."""

LARGEST_HEADER = 4 << 20
"""ASSUME: bytes of a header, inflated: a thousand times the usual; sequences cost a hundred times their bytes."""

HEAD = 1 << 14
"""Bytes that hold all but the pixels of most slices."""

SHORT = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US")
)  # fmt: skip
LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""Kinds of values whose length has 2 bytes, and those whose length has 4."""

ELEMENT, LENGTH = struct.Struct("<HH2sH"), struct.Struct("<I")
META_AT = 144
"""Where the length of the file meta counts from."""

META_LENGTH, META_CLASS, META_SYNTAX = 0x00020000, 0x00020002, 0x00020010
FIRST_PIXELS, PIXELS = 0x7FE00008, 0x7FE00010
"""The first tag of pixels in any of their forms, and that of integers."""

UNDEFINED = 0xFFFFFFFF
"""The length of an element that says itself where it ends."""

WANTED: dict[int, BaseTag] = {int(tag): tag for tag in TAGS}
OTHERWISE = (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
"""Transfer syntaxes whose elements are not in explicit little endian order."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A DICOM file without its pixels."""

    elements: Dataset
    """Those of TAGS."""
    syntax: UID
    sop_class: str
    """MediaStorageSOPClassUID; empty: not stated."""
    pixels_at: tuple[int, int] | None
    """Where the bytes of PixelData begin, in the file or in what `inflate` makes of a deflated one, and how many there
    are (UNDEFINED: as many as come); None: there is none."""


def open_dataset(path: Path) -> Opened:
    """A DICOM file, also one without the 128 bytes and `DICM` that should come first.

    Raises:
        InvalidDicomError: it is no DICOM file.
        OSError, ValueError, ...: one of DICOM_ERRORS.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        if head[128:132] != b"DICM" and content(path) != "dicom":
            raise InvalidDicomError
        if found := scan(head):
            return found
        meta = read_meta(head)
        sop_class = str(as_uid(meta[META_CLASS]))
        if as_uid(meta[META_SYNTAX]) == DeflatedExplicitVRLittleEndian:
            inflated = inflate(file, header_only=True)
            dataset = read_dataset(inflated, False, True, stop_when=_at_pixels, specific_tags=list(TAGS))
            pixels_at = _pixels_at(inflated, implicit=False, big=False)
            return Opened(dataset, DeflatedExplicitVRLittleEndian, sop_class, pixels_at)
        file.seek(0)
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS), force=True)
        implicit, little = dataset.original_encoding
        syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID") or ""))
        if not syntax:
            syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        return Opened(dataset, syntax, sop_class, _pixels_at(file, bool(implicit), not little))


def scan(head: bytes) -> Opened | None:
    """What `open_dataset` gives, from the beginning of a file; None: it is unusual, or longer, and pydicom has to look.

    For files in explicit little endian order with nothing of undefined length before their pixels: nearly all CT
    slices are such, and pydicom would take four times as long, half of what reading a slice takes.
    """
    meta = read_meta(head)
    found: dict[BaseTag, RawDataElement | DataElement] = {}
    for tag, kind, start, length in walk(head):
        if tag in WANTED:
            raw = RawDataElement(WANTED[tag], kind.decode(), length, head[start : start + length], start, False, True)
            found[WANTED[tag]] = raw
        elif tag >= FIRST_PIXELS:
            break
    else:
        return None
    syntax = as_uid(meta[META_SYNTAX])
    if tag != PIXELS or syntax.type != "Transfer Syntax" or syntax in OTHERWISE:
        return None
    return Opened(Dataset(found), syntax, str(as_uid(meta[META_CLASS])), (start, length))


def read_meta(head: bytes) -> dict[int, bytes]:
    """Three elements of the file meta, empty where they are absent, from the beginning of a file."""
    meta = {META_LENGTH: b"", META_CLASS: b"", META_SYNTAX: b""}
    for tag, _, start, length in walk(head):
        if tag >> 16 != 2:
            break
        if tag in meta:
            meta[tag] = head[start : start + length]
    return meta


def walk(head: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Tag, kind, start and length of the elements at the beginning of an explicit little endian file.

    Up to the first one that is none, or ends beyond `head`, or says itself where it ends; this one included.
    """
    at, end = 132, len(head) - 12
    while at <= end and head[128:132] == b"DICM":
        group, element, kind, length = ELEMENT.unpack_from(head, at)
        start = at + 8
        if kind in LONG:
            (length,) = LENGTH.unpack_from(head, start)
            start = at + 12
        elif kind not in SHORT:
            return
        yield group << 16 | element, kind, start, length
        if length == UNDEFINED:
            return
        at = start + length


@lru_cache(maxsize=64)
def as_uid(value: bytes) -> UID:
    """A UID from the bytes of its element."""
    return UID(value.decode("latin-1").rstrip(" \0"))


def inflate(file: BinaryIO, header_only: bool = False) -> BytesIO:
    """What a deflated file holds behind its file meta, inflated; of a header LARGEST_HEADER bytes at most.

    Raises:
        ValueError: it inflates to more than LARGEST_INFLATED, or does not say where its file meta ends.
    """
    file.seek(0)
    head = file.read(HEAD)
    (length,) = LENGTH.unpack(read_meta(head)[META_LENGTH])
    file.seek(META_AT + length)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    most = LARGEST_HEADER if header_only else LARGEST_INFLATED
    inflated = inflater.decompress(file.read(most), most)
    if inflater.unconsumed_tail and not header_only:
        raise ValueError("inflates to too much")
    return BytesIO(inflated)


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) >= FIRST_PIXELS


def _pixels_at(file: BinaryIO, implicit: bool, big: bool) -> tuple[int, int] | None:
    """Where PixelData, which a file stands before, has its bytes, and how many (UNDEFINED: as many as come)."""
    start = file.tell()
    order = ">" if big else "<"
    element = file.read(12)
    if len(element) < 12 or struct.unpack(order + "HH", element[:4]) != (0x7FE0, 0x0010):
        return None
    if implicit:
        return start + 8, struct.unpack(order + "I", element[4:8])[0]
    return start + 12, struct.unpack(order + "I", element[8:12])[0]
