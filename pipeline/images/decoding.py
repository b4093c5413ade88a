"""The stored values of a slice, and which decoder made them.

Uncompressed pixels are read from where they lie; compressed ones are decoded by what pydicom finds installed. Messages
never repeat what pydicom or a decoder says, which can quote a header; call inside `quiet_pydicom` for the same reason.
"""

import struct
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from pipeline.errors import ImageError
from pipeline.images.dicom import NATIVE, SliceHeader
from pipeline.images.dicom_file import inflate
from pipeline.images.elements import DICOM_ERRORS

MOST_PIXELS = 1 << 26
"""ASSUME: of a slice: 8192 x 8192. More is a damaged header, and would be asked of the memory at once."""

PLUGINS = {
    RLELossless: ("pydicom",),  # pylibjpeg-rle ends on damaged bytes in a panic, which no `except Exception` holds
    JPEGBaseline8Bit: ("pillow", "gdcm", "pylibjpeg"),
    JPEGExtended12Bit: ("pylibjpeg", "pillow", "gdcm"),
    JPEGLossless: ("gdcm", "pylibjpeg"),
    JPEGLosslessSV1: ("gdcm", "pylibjpeg"),
    JPEGLSLossless: ("pyjpegls", "gdcm", "pylibjpeg"),
    JPEGLSNearLossless: ("pyjpegls", "gdcm", "pylibjpeg"),
} | dict.fromkeys(JPEG2000TransferSyntaxes, ("pylibjpeg", "gdcm", "pillow"))
"""pydicom's names of decoders. The first that is installed decodes, and no other is asked when it refuses: gdcm ends
the process on bytes that the others call damaged."""

J2K_SIZE = b"\xff\x4f\xff\x51"
"""How a JPEG 2000 stream begins."""
JPEG_SIZES = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG and JPEG-LS behind which the size stands."""

GPL = "pylibjpeg-libjpeg (GPL-3.0: the extra `gpl`)"
INSTALL = {
    JPEGBaseline8Bit: "python-gdcm",
    JPEGExtended12Bit: GPL,  # the others decode its 8-bit form alone, which is rare in CT
    JPEGLossless: f"python-gdcm or {GPL}",
    JPEGLosslessSV1: f"python-gdcm or {GPL}",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
} | dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg and pylibjpeg-openjpeg")
"""What to install for each transfer syntax that pydicom does not decode by itself."""

PIXEL_ELEMENTS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip
"""What pydicom's decoders need to know."""


def read_stored(header: SliceHeader, place: str) -> tuple[NDArray[np.generic], str]:
    """Stored values (y, x), the bits that are none removed and the sign extended, and what decoded them.

    They are in the machine's own byte order, and never inverted, whatever PhotometricInterpretation says. The decoder
    is `native`, or a package and its version, such as `pylibjpeg-openjpeg 2.5.0`.

    Args:
        header: the slice.
        place: which one it is, for messages, such as `slice 3 of 40`.

    Raises:
        ImageError: it is truncated, damaged or larger than a slice can be, or no installed package decodes it.
    """
    columns, rows = header.extent
    if not 0 < columns * rows <= MOST_PIXELS:
        raise ImageError(f"{place}: {columns} x {rows} pixels are no CT slice: leave this file out")
    coding, big = header.coding, header.syntax == ExplicitVRBigEndian
    if coding is None:
        raise ImageError(
            f"{place}: values are not in Hounsfield units (no RescaleSlope and RescaleIntercept): use the original CT, "
            "or leave it out"
        )
    bits, used = coding.bits_allocated, coding.bits_stored
    # In big endian order, 8-bit pixels may have changed places in pairs: nobody writes CT so.
    if bits not in (8, 16, 32) or not 0 < used <= bits or (bits == 8 and big):
        order = " in big endian order" if big else ""
        raise ImageError(f"{place}: {used} of {bits} bits a pixel{order}: export this series with 16, little endian")
    try:
        stored, decoder = (_read_native if header.syntax in NATIVE else _decode)(header, place)
    except DICOM_ERRORS as error:
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"{place}: the file cannot be read: {error.strerror}") from None
        raise _damaged(header, place, type(error).__name__) from None
    if stored.shape != (rows, columns):
        raise _differs(place)
    return stored, decoder


def _read_native(header: SliceHeader, place: str) -> tuple[NDArray[np.generic], str]:
    coding, big = header.coding, header.syntax == ExplicitVRBigEndian
    assert coding is not None  # read_stored
    bits, used = coding.bits_allocated, coding.bits_stored
    dtype = np.dtype(f"{'>' if big else '<'}{'i' if coding.signed else 'u'}{bits // 8}")
    columns, rows = header.extent
    buffer = bytearray(rows * columns * dtype.itemsize)
    start, length = header.pixels_at or (0, 0)
    if length < header.frames * len(buffer):
        raise _damaged(header, place, "fewer bytes than pixels")
    with header.path.open("rb") as file:
        source = inflate(file) if header.syntax == DeflatedExplicitVRLittleEndian else file
        source.seek(start + header.frame * len(buffer))
        if source.readinto(buffer) < len(buffer):
            raise _damaged(header, place, "the file ends before they do")
    stored = np.frombuffer(buffer, dtype).reshape(rows, columns).astype(dtype.newbyteorder("="), copy=False)
    if used < bits:  # overlays or anything else may stand in the bits above
        np.left_shift(stored, bits - used, out=stored)
        np.right_shift(stored, bits - used, out=stored)
    return stored, "native"


def _decode(header: SliceHeader, place: str) -> tuple[NDArray[np.generic], str]:
    syntax = header.syntax
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(
            f"{place}: {syntax_name(syntax)} cannot be decoded by any package: export this series uncompressed"
        ) from None
    start, options = _pixel_options(header.path)
    available = set(decoder.available_plugins)
    if syntax == JPEGExtended12Bit and options["bits_stored"] > 8:
        available &= {"pylibjpeg"}
    plugins = [plugin for plugin in PLUGINS.get(syntax, ()) if plugin in available]
    if not plugins:
        packages = INSTALL.get(syntax) or ", or ".join(decoder.missing_dependencies)
        raise ImageError(f"{place}: {syntax_name(syntax)} cannot be decoded: install {packages}")
    with header.path.open("rb") as file:
        file.seek(start)
        stream = get_frame(file, header.frame, number_of_frames=header.frames)
        if stated_size(stream) not in (None, header.extent):
            raise _differs(place)
        file.seek(start)
        stored, _ = decoder.as_array(file, index=header.frame, decoding_plugin=plugins[0], **options)
    return stored, _decoder_of(plugins[0], syntax)


def stated_size(stream: bytes) -> tuple[int, int] | None:
    """(columns, rows) that a JPEG, JPEG-LS or JPEG 2000 stream states, for which a decoder asks for memory; None: none.

    A damaged one can state 60,000 x 60,000.
    """
    at = stream.find(J2K_SIZE, 0, 1024)  # a JP2 file's boxes may stand before it
    if at >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", stream, at + 8)
        return right - left, bottom - top
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker in JPEG_SIZES:
            rows, columns = struct.unpack_from(">2H", stream, at + 5)
            return columns, rows
        at += 1 if marker == 0xFF else 2 + length
    return None


@lru_cache(maxsize=1)  # the frames of a file come one after another, and their headers can be long
def _pixel_options(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the value of PixelData of a compressed file begins, and what its decoder must know."""
    with path.open("rb") as file:
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=PIXEL_ELEMENTS, force=True)
        start = file.tell() + 12
    return start, as_pixel_options(dataset)


@lru_cache(maxsize=8)
def _decoder_of(plugin: str, syntax: UID) -> str:
    """The package behind a plugin of pydicom, with its version: two versions can make two images of one lossy file."""
    package = {"gdcm": "python-gdcm"}.get(plugin, plugin)
    if plugin == "pylibjpeg":
        package += "-openjpeg" if syntax in JPEG2000TransferSyntaxes else "-libjpeg"
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # installed by other means than pip
        return package


def syntax_name(syntax: UID) -> str:
    """What DICOM calls a transfer syntax; an unknown one may be anything, and is not repeated."""
    return syntax.name if syntax.type == "Transfer Syntax" else "an unknown transfer syntax"


def _differs(place: str) -> ImageError:
    return ImageError(f"{place}: its header and its pixels differ in size: copy or export this series again")


def _damaged(header: SliceHeader, place: str, found: str) -> ImageError:
    return ImageError(
        f"{place}: pixels in {syntax_name(header.syntax)} are truncated or damaged ({found}): "
        "copy or export this series again"
    )
