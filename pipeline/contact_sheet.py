"""A CT series at a glance: slices from its first to its last, as the backbone gets them, in one picture.

A column is a slice and a row is a window: the eye runs along the body and, below each slice, through its windows.
"""

import math
import re
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from pipeline.images import Image
from pipeline.qc import GAP, INK, OUTLINE, PAPER

MOST_SLICES, MOST_COLUMNS = 12, 6
SIDE = 180  # pixels of a slice's longer side: six of them and the names of the windows are about 1200 wide
GUTTER = 6  # pixels between slices
LETTER, LINE = 12, 18  # pixels of the font, and from one line of text to the next
QUALITY = 50  # of the JPEG file
"""A head in three windows takes 150 KB, in one 55 KB; a PNG file takes 360 KB. It is to look at, not to measure in."""


def contact_sheet(image: Image, channels: Sequence[str]) -> bytes:
    """Up to MOST_SLICES slices, first and last among them, in every window: a JPEG file. The same bytes twice.

    Slices are shrunk (or enlarged) to SIDE pixels, in mm where `properties["spacing"]`, (row, column) in mm, is stated.
    Brightness stays that of the windows. An orange line stands where slices are missing between two that are shown: at
    one of `properties["missing_after"]`, indices (counted from 0) of slices after which there is a gap, where stated.

    Args:
        image: a series; `properties["z_mm"]` says where its slices lie.
        channels: what each of the three channels shows, as `describe` of pipeline/windows.py has it; a single text when
            the channels are the previous, this and the next slice through one window: then this slice alone is shown.
    """
    slices = image.extent[2]
    chosen = choose_slices(slices)
    columns = math.ceil(len(chosen) / math.ceil(len(chosen) / MOST_COLUMNS))
    width, height = fit(image.extent, image.properties.get("spacing"))
    font = ImageFont.load_default(LETTER)
    names = [re.sub(r" (?=-?\d)", "\n", text, count=1) for text in channels]  # the name above its numbers
    left = 2 * GAP + max(math.ceil(font.getlength(line)) for name in names for line in name.split("\n"))
    deep = max(height, LINE * max(2, *(name.count("\n") + 1 for name in names)))  # of a row
    block = LINE + len(names) * (deep + GUTTER) + GAP
    blocks = math.ceil(len(chosen) / columns)
    across, note = SIDE + GUTTER, f"{len(chosen)} of {slices} slices"
    missing = image.properties.get("missing_after") or ()
    if missing:
        note += "; orange line: slices are missing between the two beside it"
    wide = max(left + columns * across + GAP, 2 * GAP + math.ceil(font.getlength(note)))
    sheet = Picture.new("RGB", (wide, 2 * GAP + blocks * block + LINE), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, index in enumerate(chosen):
        x, top = left + number % columns * across, GAP + number // columns * block
        if number % columns == 0:
            for row, name in enumerate(names):
                middle = top + LINE + row * (deep + GUTTER) + deep / 2
                draw.multiline_text((GAP, middle), name, fill=INK, font=font, anchor="lm")
        draw.text((x + SIDE / 2, top + LINE / 2), slice_label(image, index), fill=INK, font=font, anchor="mm")
        for row, shown in enumerate(_shrunk(image, index, (width, height), len(names))):
            y = top + LINE + row * (deep + GUTTER)
            sheet.paste(shown, (x + (SIDE - width) // 2, y + (deep - height) // 2))
        if number + 1 < len(chosen) and any(index <= gap < chosen[number + 1] for gap in missing):
            draw.rectangle((x + SIDE + 1, top, x + across - 2, top + block - GAP - GUTTER - 1), fill=OUTLINE)
    draw.text((GAP, sheet.height - GAP - LINE / 2), note, fill=INK, font=font, anchor="lm")
    file = BytesIO()
    sheet.save(file, format="JPEG", quality=QUALITY)
    return file.getvalue()


def choose_slices(slices: int) -> list[int]:
    """Indices of at most MOST_SLICES slices, evenly spread, first and last among them."""
    places: list[int] = np.rint(np.linspace(0, slices - 1, min(slices, MOST_SLICES))).astype(int).tolist()
    return places


def fit(extent: Sequence[int], spacing: Sequence[float] | None) -> tuple[int, int]:
    """Width and height in pixels of a slice on the sheet; the longer one is SIDE.

    Args:
        extent: of the series in pixels, x first.
        spacing: (row, column): mm from one row to the next, and from one column to the next; none: taken as equal.
    """
    down, across = spacing or (1.0, 1.0)
    width, height = extent[0] * across, extent[1] * down
    scale = SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def slice_label(image: Image, index: int) -> str:
    """Number, counted from 1, and place of a slice: `slice 5   z -12.5 mm`."""
    z = round(image.properties["z_mm"][index], 1) + 0.0  # no minus before zero
    return f"slice {index + 1}   z {z:.1f} mm"


def _shrunk(image: Image, index: int, size: tuple[int, int], rows: int) -> Sequence[Picture.Image]:
    """The channels of a slice that have a row; a pixel is the mean of those it stands for."""
    pixels: NDArray[np.uint8]
    (pixels,), _ = image.read(np.array([[0, 0, index]], dtype=np.int32), image.tile_size)
    small = Picture.fromarray(pixels).resize(size, Picture.Resampling.BOX)
    return small.split() if rows > 1 else [small.getchannel(1)]
