"""Pictures to judge the choice of tiles by: the slide, its tissue, which tiles were kept, and why others were not.

Colours are those of Okabe and Ito, which the colour-blind tell apart; on pink and purple tissue none of them is lost.
"""

import math
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.quality import BLACK, BLUR, EDGES, KEPT, PEN, REASONS, TISSUE, WHITE

Colour = tuple[int, int, int]
Entry = tuple[Colour | None, Colour | None, str]
"""Of a legend: frame and filling of its square, and the text."""

COLOURS: dict[int, Colour] = {
    KEPT: (0, 158, 115),
    BLUR: (230, 159, 0),
    PEN: (240, 228, 66),
    BLACK: (0, 0, 0),
    WHITE: (86, 180, 233),
    EDGES: (0, 114, 178),
}
"""Of a tile by its code. What has too little tissue has none: it is most of a slide, and would hide the rest."""

OUTLINE = (213, 94, 0)
INK, PAPER = (40, 40, 40), (255, 255, 255)
TINT_FRAMED, TINT_KEPT, TINT_REMOVED = 0.08, 0.2, 0.6
"""How much of the colour covers the tissue: of a kept tile with a frame, of one without, of a removed one."""
SMALLEST_FRAMED = 8  # pixels of a tile on the thumbnail; smaller ones are areas without frames
GAP = 10  # pixels between the slide and its legend, and around the legend

SMALL, SMALL_BYTES = 180, 12_000
"""Longest side in pixels, and size, of a picture that stands beside many others in the report."""


def slide_picture(
    thumbnail: NDArray[np.uint8],
    extent: Sequence[int],
    grid_origins: NDArray[np.int32],
    size: Sequence[int],
    reasons: NDArray[np.uint8],
    outline: NDArray[np.int32],
    outline_extent: Sequence[int],
    mpp: float,
) -> bytes:
    """A slide's thumbnail with the outline of its tissue, its tiles by what became of them, and a legend: a PNG file.

    The legend is below the slide, or to the right of one that is much higher than wide. The same bytes twice.

    Args:
        thumbnail: (height, width, 3), the whole slide; is neither shrunk nor enlarged.
        extent: of the slide, (x, y), in pixels at the tiles' resolution.
        grid_origins: (tile, 2), x first, of all tiles of the grid in the same pixels.
        size: of a tile, (x, y), in the same pixels.
        reasons: (tile,), codes of pipeline/quality.py, in the order of `grid_origins`.
        outline: (point, 3): number of the polygon, x, y; points of a polygon stand together, and it closes itself.
        outline_extent: of the picture that the outline counts pixels of, (x, y).
        mpp: µm per pixel of the tiles.
    """
    height, width = thumbnail.shape[:2]
    scale = np.array([width / extent[0], height / extent[1]])
    slide = Image.fromarray(paint_tiles(thumbnail, grid_origins * scale, np.asarray(size) * scale, reasons))
    _draw_outline(slide, outline, np.array([width / outline_extent[0], height / outline_extent[1]]))
    aside = height > 1.5 * width
    letter = max(11, min(15, max(height, width) // 48))
    legend = _legend(legend_entries(reasons, size, extent, mpp, len(outline) > 0), 0 if aside else width, letter)
    if aside:
        whole, place = (width + legend.width, max(height, legend.height)), (width, 0)
    else:
        whole, place = (max(width, legend.width), height + legend.height), (0, height)
    picture = Image.new("RGB", whole, PAPER)
    picture.paste(slide, (0, 0))
    picture.paste(legend, place)
    return _png(picture)


def paint_tiles(
    thumbnail: NDArray[np.uint8], starts: NDArray[np.float64], size: NDArray[np.float64], reasons: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """The thumbnail (height, width, 3) with tiles in the colour of their reason; where they overlap, of the most.

    The work is by pixels, and by tiles in one call of numpy: a hundred thousand tiles take no longer to draw.

    Args:
        thumbnail: (height, width, 3).
        starts: (tile, 2), x first, of the tiles in pixels of the thumbnail.
        size: of a tile, (x, y), in the same pixels.
        reasons: (tile,).
    """
    height, width = thumbnail.shape[:2]
    first = np.clip(np.rint(starts).astype(int), 0, [width - 1, height - 1])
    last = np.clip(np.rint(starts + size).astype(int), first + 1, [width, height])
    painted = thumbnail.astype(np.float32)
    codes = [code for code in COLOURS if (reasons == code).any()]
    places = {code: (first[reasons == code], last[reasons == code]) for code in codes}
    counts = [_coverage((height, width), *places[code]) for code in codes]
    most = np.stack([np.zeros((height, width), dtype=np.int64), *counts]).argmax(axis=0)
    framed = size.min() >= SMALLEST_FRAMED
    for index, code in enumerate(codes, start=1):
        mine = most == index
        tint = (TINT_FRAMED if framed else TINT_KEPT) if code == KEPT else TINT_REMOVED
        painted[mine] += tint * (np.array(COLOURS[code]) - painted[mine])
    for code in codes if framed else ():
        start, stop = places[code]
        # One pixel further than the tile: neighbours share their line.
        outer = _coverage((height, width), start, np.minimum(stop + 1, [width, height]))
        painted[outer > _coverage((height, width), start + 1, np.maximum(stop, start + 1))] = COLOURS[code]
    return painted.round().astype(np.uint8)


def _coverage(shape: tuple[int, int], first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rectangles cover each pixel, (height, width); `first` and `last` are (rectangle, 2), x first."""
    height, width = shape
    corners = np.zeros((height + 1) * (width + 1), dtype=np.int64)
    for x, y, sign in ((first, first, 1), (last, first, -1), (first, last, -1), (last, last, 1)):
        flat = y[:, 1] * (width + 1) + x[:, 0]
        corners += sign * np.bincount(flat, minlength=len(corners))
    return corners.reshape(height + 1, width + 1).cumsum(0).cumsum(1)[:height, :width]


def _draw_outline(picture: Image.Image, outline: NDArray[np.int32], scale: NDArray[np.float64]) -> None:
    draw = ImageDraw.Draw(picture)
    thickness = 2 if min(picture.size) > 200 else 1
    borders = np.flatnonzero(np.diff(outline[:, 0])) + 1
    for polygon in np.split((outline[:, 1:] + 0.5) * scale, borders):
        if len(polygon):
            points = [(x, y) for x, y in np.vstack([polygon, polygon[:1]]).tolist()]
            draw.line(points, fill=OUTLINE, width=thickness)


def legend_entries(
    reasons: NDArray[np.uint8], size: Sequence[int], extent: Sequence[int], mpp: float, outlined: bool
) -> list[Entry]:
    """What the legend says, in its order; a reason that removed no tile is left out."""
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    entries: list[Entry] = [(COLOURS[KEPT], PAPER, f"{counts[KEPT]:,} of {len(reasons):,} tiles kept")]
    for code, colour in COLOURS.items():
        if counts[code] and code != KEPT:
            entries.append((colour, colour, f"{REASONS[code]} {counts[code]:,}"))
    if counts[TISSUE]:
        entries.append((None, None, f"{REASONS[TISSUE]} {counts[TISSUE]:,} (not drawn)"))
    if outlined:
        entries.append((OUTLINE, PAPER, "outline of tissue"))
    # The font has ASCII alone: no multiplication sign, no letter mu.
    tile = " x ".join(f"{side * mpp:.4g}" for side in size)
    slide = " x ".join(f"{side * mpp / 1000:.3g}" for side in extent)
    return [*entries, (None, None, f"tile {tile} microns"), (None, None, f"slide {slide} mm")]


def _legend(entries: list[Entry], width: int, letter: int) -> Image.Image:
    """The entries from left to right on as many lines as it takes; wider than asked for where one entry is."""
    font = ImageFont.load_default(letter)
    line, box = round(letter * 1.6), round(letter * 0.9)
    places, x, y, widest = [], GAP, GAP, width
    for edge, _, text in entries:
        indent = box + letter // 2 if edge else 0
        right = x + indent + math.ceil(font.getlength(text))
        if x > GAP and right + GAP > width:
            right, x, y = right - x + GAP, GAP, y + line
        places.append((x, y, indent))
        widest = max(widest, right + GAP)
        x = right + letter
    legend = Image.new("RGB", (widest, y + line + GAP // 2), PAPER)
    draw = ImageDraw.Draw(legend)
    for (edge, fill, text), (x, y, indent) in zip(entries, places, strict=True):
        if edge:
            top = y + (line - box) // 2
            draw.rectangle((x, top, x + box, top + box), fill=fill, outline=edge, width=2)
        draw.text((x + indent, y + line / 2), text, fill=INK, font=font, anchor="lm")
    return legend


def _png(picture: Image.Image) -> bytes:
    """A PNG file of 256 colours, those of the legend exact: a fifth of the size, and there is one for every slide."""
    exact = [*COLOURS.values(), OUTLINE, INK, PAPER]
    paletted = picture.quantize(256 - len(exact), dither=Image.Dither.NONE)
    palette = (paletted.getpalette() or [])[: 3 * (256 - len(exact))]
    indices, pixels = np.array(paletted), np.asarray(picture)
    for number, colour in enumerate(exact, start=len(palette) // 3):
        indices[(pixels == colour).all(axis=2)] = number
    image = Image.fromarray(indices)
    image.putpalette(palette + [part for colour in exact for part in colour])
    file = BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def small_jpeg(picture: bytes, longest: int = SMALL, most_bytes: int = SMALL_BYTES) -> bytes:
    """A picture file, shrunk to at most `longest` pixels and about `most_bytes`: a JPEG file.

    Raises:
        OSError: the file holds no picture.
    """
    with Image.open(BytesIO(picture)) as image:
        small = image.convert("RGB")
    small.thumbnail((longest, longest))
    for quality in (85, 70, 50, 30):
        file = BytesIO()
        small.save(file, format="JPEG", quality=quality, optimize=True)
        if file.tell() <= most_bytes:
            break
    return file.getvalue()
