"""Which levels of a slide consist of JPEG tiles that pipeline/images/jpeg_tiles.py can read, and where they lie."""

import logging
import os
import weakref
from pathlib import Path

import tifffile

from pipeline.errors import CONTENT_ERRORS, ImageError
from pipeline.images.jpeg_tiles import ADOBE, END, GRAY, RGB, START, YCBCR, JpegLevel
from pipeline.images.pyramid import OpenSlidePyramid, Pyramid

VENDORS = {"aperio", "generic-tiff"}
JPEG = 7

logging.getLogger("tifffile").setLevel(logging.CRITICAL)
"""It tells of every odd tag; what matters here is in the reason that `jpeg_levels` gives."""


def jpeg_levels(path: Path, pyramid: Pyramid) -> tuple[dict[int, JpegLevel], str]:
    """The levels that can be read here, by their number in the pyramid, and why there are none (or empty).

    Allowed: Aperio and generic TIFF; JPEG, 8 bits, contiguous, upright, RGB, YCbCr or gray.

    Raises:
        ImageError: its pixels have more than 8 bits, of which OpenSlide would show the upper 8 and say nothing.
    """
    vendor = pyramid.facts.get("openslide.vendor", "")
    if vendor not in VENDORS or not isinstance(pyramid, OpenSlidePyramid):
        return {}, f"format {vendor or 'plain image'}"
    levels: dict[int, JpegLevel] = {}
    reason, bits = "its levels are not found in the file", 0
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
            by_extent: dict[tuple[int, int], list[tifffile.TiffPage]] = {}
            for page in pages:
                by_extent.setdefault((page.imagewidth, page.imagelength), []).append(page)
            for number, extent in enumerate(pyramid.extents):
                same = by_extent.get(extent, [])
                if len(same) != 1:  # which of them OpenSlide reads cannot be told
                    continue
                (page,) = same
                bits = max(bits, max_bits(page))
                if found := unusual(page):
                    reason = found
                else:
                    levels[number] = jpeg_level(file, page)
    except CONTENT_ERRORS as error:  # tifffile's own is a ValueError
        levels, reason = {}, f"its directories cannot be followed ({type(error).__name__})"
    if vendor == "aperio":
        # Above tiles that are missing, OpenSlide draws the coarser levels anew from the finer ones.
        count = len(pyramid.extents)
        first_hole = next((n for n in range(count) if n not in levels or 0 in levels[n].lengths), count)
        levels = {number: level for number, level in levels.items() if number <= first_hole}
        reason = reason if levels else "tiles are missing"
    if not levels:
        os.close(file)
        if bits > 8:
            raise ImageError(
                f"its pixels have {bits} bits per channel, of which only 8 would be read: convert it to 8-bit RGB"
            )
        return {}, reason
    weakref.finalize(next(iter(levels.values())), os.close, file)
    return levels, ""


def unusual(page: tifffile.TiffPage) -> str:
    """Why a page is not read here; empty when it is."""
    if max_bits(page) != 8:
        return f"{max_bits(page)} bits"
    if page.compression != JPEG:
        return f"compression {int(page.compression)}"
    if page.planarconfig != 1 and page.samplesperpixel > 1:
        return "separate planes"
    if int(page.tags.valueof(274, default=1)) != 1:
        return "orientation"
    if (int(page.photometric), page.samplesperpixel) not in {(RGB, 3), (YCBCR, 3), (GRAY, 1)}:
        return f"photometric {int(page.photometric)} with {page.samplesperpixel} samples"
    if page.tilewidth % 8 or page.tilelength % 8 or page.imagedepth != 1:
        return "odd tiles"
    tiles = -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
    return "" if len(page.dataoffsets) == len(page.databytecounts) == tiles else "too few tiles"


def max_bits(page: tifffile.TiffPage) -> int:
    """Bits of the deepest channel."""
    return max(page.bitspersample) if isinstance(page.bitspersample, tuple) else int(page.bitspersample)


def jpeg_level(file: int, page: tifffile.TiffPage) -> JpegLevel:
    """A level from its page."""
    tables = page.jpegtables or b""
    shared = tables[2:-2] if tables.startswith(START) and tables.endswith(END) else b""
    transform = b"" if page.photometric == GRAY else ADOBE + (b"\0" if page.photometric == RGB else b"\1")
    return JpegLevel(
        file=file,
        extent=(page.imagewidth, page.imagelength),
        tile=(page.tilewidth, page.tilelength),
        offsets=tuple(page.dataoffsets),
        lengths=tuple(page.databytecounts),
        head=START + transform + shared,
        photometric=int(page.photometric),
    )
