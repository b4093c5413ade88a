"""What belongs to a slide beside its first file, and what a file is by its first bytes.

Standard library only: runs in Snakemake's own process, every time.
"""

import os
import re
import struct
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

MIRAX_SUFFIX = ".mrxs"
HAMAMATSU_SUFFIXES = frozenset((".vms", ".vmu"))

MAX_TEXT = 1 << 20
"""Bytes of a list of files that are read: the longest known have 100 KB."""

WSI_CLASS = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""

TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""TIFF and BigTIFF in both byte orders."""

SLIDE_HEADS = (*TIFF_HEADS, b"ZISRAWFILE")
"""TIFF, and CZI."""

PICTURE_HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")
"""PNG, JPEG, BMP."""

Content = Literal["slide", "picture", "dicom slide", "dicom", ""]


def content(path: Path) -> Content:
    """What a file is, from its first 4 KB, whatever it is called; empty: unknown, or it cannot be read."""
    head = _beginning(path, 4096)
    if head[128:132] == b"DICM":  # first: a DICOM file may be a TIFF file too, by what stands before this
        at = head.find(b"\x02\x00\x02\x00UI")
        length = int.from_bytes(head[at + 6 : at + 8], "little")
        return "dicom slide" if at >= 0 and head[at + 8 : at + 8 + length].rstrip(b"\0 ") == WSI_CLASS else "dicom"
    if head.startswith(SLIDE_HEADS):
        return "slide"
    if _is_bare_dicom(head):
        return "dicom"
    return "picture" if head.startswith(PICTURE_HEADS) else ""


def _is_bare_dicom(head: bytes) -> bool:
    """Whether a file begins with an element of group 2 or 8, as DICOM files without their 132 first bytes do."""
    if len(head) < 8:
        return False
    for order in ("<", ">"):
        group, element = struct.unpack(order + "HH", head[:4])
        if group in (2, 8) and element < 0x100:
            explicit = head[4:6] in (b"UL", b"OB", b"UI", b"CS", b"DA", b"TM", b"SH", b"LO", b"ST", b"PN")
            return explicit or struct.unpack(order + "I", head[4:8])[0] <= 256
    return False


def dicom_series(path: Path) -> str:
    """The series that a DICOM file belongs to; its own name when it does not say."""
    import pydicom

    try:
        header = pydicom.dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, EOFError, AttributeError):
        return path.name
    return str(header.get("SeriesInstanceUID", path.name))


def named_parts(first: Path) -> list[str] | None:
    """The files without which a slide is not whole, as its first file and the list beside it name them.

    Paths below the folder of the first file, with forward slashes; names that lead out of it are left out. None for
    formats of a single file. The lists are read tolerantly: a damaged one names what can be understood of it.
    """
    suffix = first.suffix.lower()
    if suffix == MIRAX_SUFFIX:
        index = f"{first.stem}/Slidedat.ini"
        inside = [
            name
            for section, key, name in _entries(first.parent / index)
            if (section, key) == ("hierarchical", "indexfile")
            or (section == "datafile" and re.fullmatch(r"file_\d+", key))
        ]
        return [index, *dict.fromkeys(f"{first.stem}/{name}" for name in inside)]
    if suffix in HAMAMATSU_SUFFIXES:
        return _hamamatsu(first, ("imagefile", "mapfile"))
    return None


def optional_parts(first: Path) -> list[str]:
    """The files that a slide names and can be read without, as `named_parts` gives names."""
    if first.suffix.lower() not in HAMAMATSU_SUFFIXES:
        return []
    return _hamamatsu(first, ("optimisationfile", "macroimage"))


def missing_parts(first: Path) -> list[str]:
    """Those of `named_parts` that are not there."""
    return [name for name in named_parts(first) or [] if not os.path.isfile(first.parent / name)]


def parts_there(first: Path) -> list[str]:
    """All files that a slide names, needed or not, and that are there."""
    names = dict.fromkeys([*(named_parts(first) or []), *optional_parts(first)])
    return [name for name in names if os.path.isfile(first.parent / name)]


def annotation_names(first: str) -> list[str]:
    """What a slide's annotation may be called, the first that is there being it: `1.svs.geojson`, `1.geojson`."""
    stem, _, suffix = first.rpartition(".")
    # The last part of a name such as 1.2.840 is no suffix.
    return [f"{first}.geojson", *([f"{stem}.geojson"] if stem and not suffix.isdigit() else [])]


def annotation_name(first: str, names: Collection[str]) -> str | None:
    """Which of the names in a slide's folder is its annotation; None: it has none."""
    return next((name for name in annotation_names(first) if name in names), None)


def _beginning(path: Path, length: int) -> bytes:
    """The first bytes of an ordinary file; none of what cannot be read, or is a pipe, which would wait for ever."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(length)
    except OSError:
        return b""


def _hamamatsu(first: Path, keys: tuple[str, ...]) -> list[str]:
    """Keys are such as ImageFile, ImageFile(1,0) and ImageFile(1,0,-2), of which each focus and column has its own."""
    names = [name for _, key, name in _entries(first) if key.partition("(")[0].strip() in keys]
    return [name for name in dict.fromkeys(names) if name != first.name]


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of the lines of an INI file whose value can be a file's name; keys in lower case."""
    raw = _beginning(path, MAX_TEXT)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    section = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip().lower()
            continue
        key, equals, value = line.partition("=")
        name = value.strip().replace("\\", "/")
        outside = name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/")
        if equals and name.strip("./") and name.isprintable() and not outside:
            yield section, key.strip().lower(), str(PurePosixPath(name))
