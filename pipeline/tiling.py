"""Choose the tiles of an image. No paths, no settings file, no modality."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EmptyImage
from pipeline.geometry import grid
from pipeline.images import Image


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of an image lie, in the order of the grid."""

    origins: NDArray[np.int32]
    """(tile, axis), x first, in pixels at the resolution the image was opened at."""
    size: tuple[int, ...]
    """Pixels along each axis, x first."""


def tile(image: Image) -> Tiles:
    """Choose the tiles of an image that show enough foreground.

    Raises:
        EmptyImage: the image is smaller than one tile, or no tile shows enough.
    """
    origins = grid(image.extent, image.tile_size, image.tile_stride)
    if not len(origins):
        extent, size = ("x".join(str(side) for side in sides) for sides in (image.extent, image.tile_size))
        raise EmptyImage(f"the image has {extent} pixels at this resolution, fewer than one tile of {size}")
    kept = origins[image.foreground(origins, image.tile_size) >= image.min_foreground]
    if not len(kept):
        raise EmptyImage(f"none of {len(origins)} tiles shows {image.min_foreground:.0%} foreground")
    return Tiles(kept, image.tile_size)
