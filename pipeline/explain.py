"""Pictures of attention: arrays in, pictures out.

Attention is shown as N*a: the attention of an instance times the number of instances in its bag, so that 1 is what
uniform attention would give, in every bag and for every head. (Percentile ranks would paint the same vivid picture over
a head that looks everywhere alike.) Attention says where a head looked, not why, and is no segmentation.
"""

from collections.abc import Sequence
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

COLOUR_LIMIT = 10.0
"""Colours run, on a log scale that is the same in every picture, from 1/10 of uniform attention to 10 times it."""
COLOUR_MAP = "viridis"  # perceptually uniform, and readable by the colour-blind
OPACITY = 0.6  # of the colour over the grey tissue
GAP = 12  # pixels between the parts of a picture
SLICE_INCHES, DOTS_PER_INCH = 2.4, 100
SHOWN, OTHERS = "#d55e00", "#9aa7b1"


def relative_attention(attention: ArrayLike, instances: int | None = None) -> NDArray[np.float64]:
    """Attention as N*a: 1 is what uniform attention would give.

    Args:
        attention: (instance,), non-negative; sums to one over the bag.
        instances: N, the instances of the whole bag; absent: all of them are given here.
    """
    values = np.asarray(attention, dtype=np.float64)
    return values * (len(values) if instances is None else instances)


def attention_picture(
    thumbnail: NDArray[np.uint8],
    extent: tuple[int, int],
    origins: NDArray[np.integer],
    size: tuple[int, int],
    attention: ArrayLike,
    instances: int | None = None,
) -> NDArray[np.uint8]:
    """A slide's thumbnail, beside it the same in grey with the attention of its tiles in colour, and the colour bar.

    Args:
        thumbnail: (height, width, 3), the whole slide.
        extent: of the slide, (x, y), in pixels at the tiling resolution.
        origins: (tile, 2), x first, of the tiles in the same pixels.
        size: of a tile, (x, y), in the same pixels.
        attention: (tile,), in the order of `origins`.
        instances: N, where the bag holds more than the tiles of this slide.

    Returns:
        (height, width', 3): as high as the thumbnail, a little more than twice as wide.
    """
    relative = tile_map(thumbnail.shape[:2], extent, origins, size, relative_attention(attention, instances))
    grey = np.asarray(Image.fromarray(thumbnail).convert("L"), dtype=np.float64)[..., None].repeat(3, axis=2)
    # Grey first, so that every colour on the right means attention and none is a stain.
    painted = OPACITY * colours(relative) + (1 - OPACITY) * grey
    overlay = np.where(np.isnan(relative)[..., None], grey, painted).round().astype(np.uint8)
    height = thumbnail.shape[0]
    gap = np.full((height, GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([thumbnail, gap, overlay, gap, colour_bar(height)], axis=1)


def tile_map(
    shape: tuple[int, ...],
    extent: tuple[int, int],
    origins: NDArray[np.integer],
    size: tuple[int, int],
    values: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Values of tiles at their place on a thumbnail: (height, width); the mean where tiles overlap, NaN where none is.

    A tile's edges in thumbnail pixels are origin * thumbnail width / extent, rounded, and at least one pixel apart.
    """
    height, width = shape
    total, count = np.zeros((height, width)), np.zeros((height, width))
    scale = np.array([width / extent[0], height / extent[1]])
    starts = np.minimum(np.rint(origins * scale).astype(int), [width - 1, height - 1])
    ends = np.maximum(np.rint((origins + np.asarray(size)) * scale).astype(int), starts + 1)
    for (left, top), (right, bottom), value in zip(starts, ends, values, strict=True):
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def colours(relative: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours (..., 3) from 0 to 255 of attention relative to uniform; beyond the limits, the colour of the limit."""
    bounded = np.clip(np.nan_to_num(relative, nan=1.0), 1 / COLOUR_LIMIT, COLOUR_LIMIT)
    position = (np.log10(bounded) / np.log10(COLOUR_LIMIT) + 1) / 2
    return np.asarray(matplotlib.colormaps[COLOUR_MAP](position))[..., :3] * 255


def colour_bar(height: int) -> NDArray[np.uint8]:
    """The scale of `colours` with its ticks: (height, width, 3). The highest attention is on top."""
    letter = max(9, min(22, height // 30))
    font = ImageFont.load_default(letter)
    bar_width, width = letter, letter * 4
    relative = np.logspace(1, -1, height, base=COLOUR_LIMIT)
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    # Mixed with mid-grey as the overlay mixes with tissue, so that bar and overlay show like colours.
    bar = OPACITY * colours(relative) + (1 - OPACITY) * 190
    picture[:, :bar_width] = bar.round().astype(np.uint8)[:, None]
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    x = bar_width + letter * 0.4
    # Plain numbers: to a pathologist "10x" is an objective.
    ticks = [(0, f"{COLOUR_LIMIT:g}", "lt"), (height / 2, "1", "lm"), (height - 1, f"{1 / COLOUR_LIMIT:g}", "lb")]
    for y, text, anchor in ticks:
        draw.text((x, y), text, fill=(40, 40, 40), font=font, anchor=anchor)
    return np.asarray(canvas)


def series_picture(
    slices: NDArray[np.uint8],
    attention: ArrayLike,
    chosen: Sequence[int],
    z_mm: ArrayLike,
    instances: int | None = None,
) -> NDArray[np.uint8]:
    """A row of the slices a head looked at most, and below it the attention of all slices along z.

    Args:
        slices: (chosen, height, width, 3), at least one, as the backbone saw them.
        attention: (slice,) over all slices of the series.
        chosen: for each of `slices` its row in `attention`, counted from 0. Slices are labelled counting from 1.
        z_mm: (slice,), position along z in mm.
        instances: N, where the bag holds more than the slices of this series.

    Returns:
        (height', width', 3).
    """
    relative = relative_attention(attention, instances)
    columns = len(slices)
    inches = (SLICE_INCHES * max(columns, 2), SLICE_INCHES + 1.9)
    figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained")
    grid = figure.add_gridspec(2, columns, height_ratios=(SLICE_INCHES + 0.3, 1.6))
    for column, (picture, index) in enumerate(zip(slices, chosen, strict=True)):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(picture)
        axes.set_xlabel(f"slice {index + 1} of {len(relative)}\nattention {relative[index]:.2g}", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    strip = figure.add_subplot(grid[1, :])
    places = np.asarray(z_mm, dtype=np.float64)
    bar_colours = [SHOWN if index in set(chosen) else OTHERS for index in range(len(relative))]
    strip.bar(places, relative, width=0.9 * _spacing(places), color=bar_colours)
    strip.axhline(1, color="#333333", linewidth=0.8, linestyle=(0, (4, 3)))
    strip.margins(x=0.01)
    strip.set_xlabel("position along z (mm)", fontsize=9)
    strip.set_ylabel("attention\n(uniform = 1)", fontsize=9)
    strip.tick_params(labelsize=8)
    strip.spines[["top", "right"]].set_visible(False)
    file = BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def _spacing(z_mm: NDArray[np.float64]) -> float:
    """Median distance in mm between neighbouring slices; 1 for a single one."""
    steps = np.diff(np.unique(z_mm))
    return float(np.median(steps)) if len(steps) else 1.0


def png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a PNG file, the same bytes for the same picture."""
    file = BytesIO()
    Image.fromarray(picture).save(file, format="PNG", optimize=True)
    return file.getvalue()
