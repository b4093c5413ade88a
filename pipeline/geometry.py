"""Where tiles lie, in any number of dimensions. Tuples are x first: (x, y) for a slide, (x, y, z) for a series."""

import numpy as np
from numpy.typing import NDArray


def grid(
    extent: tuple[int, ...], size: tuple[int, ...], stride: tuple[int, ...], pads: bool = False
) -> NDArray[np.int32]:
    """Origins of all tiles of an image, anchored at its origin.

    Args:
        extent: pixels of the image along each axis, x first.
        size: pixels of a tile along each axis, x first.
        stride: pixels from one origin to the next along each axis, x first.
        pads: whether tiles that reach over the far edge count; else only tiles that lie whole inside.

    Returns:
        Origins (tile, axis), x first, sorted with the last axis slowest: row by row on a slide, slice by slice in a
        series. Without `pads` none when a tile is larger than the image, and what is left over at the far edge belongs
        to no tile.

    Example:
        >>> grid((5, 4), (2, 2), (2, 2)).tolist()
        [[0, 0], [2, 0], [0, 2], [2, 2]]
    """
    starts = [np.arange(0, e if pads else e - s + 1, d) for e, s, d in zip(extent, size, stride, strict=True)]
    slowest_first = np.meshgrid(*reversed(starts), indexing="ij")
    return np.stack([axis.ravel() for axis in reversed(slowest_first)], axis=1).astype(np.int32)
