"""Where tiles lie, in any number of dimensions. Tuples are x first: (x, y) for a slide, (x, y, z) for a series."""

from itertools import product

import numpy as np
from numpy.typing import NDArray


def grid(extent: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...]) -> NDArray[np.int32]:
    """Origins of all tiles that lie whole inside an image, anchored at its origin.

    Args:
        extent: pixels of the image along each axis, x first.
        size: pixels of a tile along each axis, x first.
        stride: pixels from one origin to the next along each axis, x first.

    Returns:
        Origins (tile, axis), x first, sorted with the last axis slowest: row by row on a slide, slice by slice in a
        series. Empty when a tile is larger than the image. What is left over at the far edge belongs to no tile.

    Example:
        >>> grid((5, 4), (2, 2), (2, 2)).tolist()
        [[0, 0], [2, 0], [0, 2], [2, 2]]
    """
    starts = [range(0, e - s + 1, d) for e, s, d in zip(extent, size, stride, strict=True)]
    slowest_first = product(*reversed(starts))
    origins = [tuple(reversed(origin)) for origin in slowest_first]
    return np.array(origins, dtype=np.int32).reshape(len(origins), len(extent))
