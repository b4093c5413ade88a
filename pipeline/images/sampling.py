"""Pixels of a view out of those of a size, and pictures of the whole out of pieces."""

import math
from collections.abc import Callable

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.images.view import View

Read = Callable[[tuple[int, int], NDArray[np.uint8]], bool]
"""Fills an array (height, width, 3) with the region at an origin (x, y); whether it could be decoded."""

RESAMPLING = PIL.Image.Resampling.BICUBIC
"""Pillow widens its filters by the factor it shrinks by, so this one is antialiased."""

RESAMPLING_SUPPORT = 2
"""Pixels that the filter reaches beyond a tile, times the factor it shrinks by."""

PIECE = 2048
"""Side, in pixels of a size, of the largest region decoded at once for a picture of the whole slide: 12 MB."""

SMALLEST_PIECE = 8
"""Side, in pixels of a size, below which a piece that cannot be decoded is not divided further."""

MOST_FAILURES = 200
"""Pieces of one picture that cannot be decoded and are divided; each may cost OpenSlide a new handle."""


def resample(view: View, origin: tuple[int, int], out: NDArray[np.uint8], read: Read) -> bool:
    """Fill an array with a region of a view that is shrunk from a size, white beyond it; whether it could be read.

    Args:
        view: that is not its size's own.
        origin: of the region, (x, y), in pixels of the view.
        out: (height, width, 3).
        read: fills regions of the size.
    """
    starts, ends, first, last = [], [], [], []  # along x and y, in pixels of the size
    for at, pixels, scale, length in zip(origin, out.shape[1::-1], view.scale, view.extent, strict=True):
        reach = RESAMPLING_SUPPORT * max(scale, 1.0) + 1  # what the filter sees beyond the region: no seams
        starts.append(at * scale)
        ends.append((at + pixels) * scale)
        first.append(max(0, math.floor(starts[-1] - reach)))
        last.append(max(first[-1] + 1, math.ceil(ends[-1] + reach)))
        if ends[-1] <= length + 1e-6 * scale:
            last[-1] = max(first[-1] + 1, min(length, last[-1]))  # at the edge the filter uses what there is
    region = np.empty((last[1] - first[1], last[0] - first[0], 3), np.uint8)
    if not read((first[0], first[1]), region):
        return False
    box = (
        starts[0] - first[0],
        starts[1] - first[1],
        min(ends[0] - first[0], region.shape[1]),
        min(ends[1] - first[1], region.shape[0]),
    )
    out[:] = np.asarray(PIL.Image.fromarray(region).resize(out.shape[1::-1], RESAMPLING, box=box))
    return True


def overview(width: int, height: int, scale: float, read: Read) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture (height, width, 3) and which of its pixels could be decoded, (height, width), read piece by piece.

    Args:
        width: of the picture.
        height: of the picture.
        scale: pixels of the size that is read per pixel of the picture.
        read: fills regions of the picture.
    """
    largest, smallest = (max(1, math.floor(side / scale)) for side in (PIECE, SMALLEST_PIECE))
    picture = np.full((height, width, 3), 255, dtype=np.uint8)
    readable = np.zeros((height, width), dtype=np.bool_)
    pieces = [(x, y, largest) for y in range(0, height, largest) for x in range(0, width, largest)]
    failures = 0
    while pieces:
        x, y, side = pieces.pop()
        piece = np.empty((min(side, height - y), min(side, width - x), 3), np.uint8)
        if read((x, y), piece):
            picture[y : y + side, x : x + side] = piece
            readable[y : y + side, x : x + side] = True
            continue
        failures += 1
        half = -(-side // 2)
        if side > smallest and failures < MOST_FAILURES:  # what can be read around the damage
            pieces += [
                (x + dx, y + dy, half) for dx in (0, half) for dy in (0, half) if x + dx < width and y + dy < height
            ]
    return picture, readable
