"""Choose the tiles of an image. No paths, no settings file, no modality."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EmptyImage
from pipeline.geometry import grid
from pipeline.images import READ_OK, Image
from pipeline.quality import KEPT, REASONS, TISSUE, is_on, judge

BATCH = 64
"""Tiles read at once for the quality filters: 10 MB of 224 pixels."""


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of an image lie, in the order of the grid."""

    origins: NDArray[np.int32]
    """(tile, axis), x first, in pixels at the resolution the image was opened at: those that were kept."""
    size: tuple[int, ...]
    """Pixels along each axis, x first."""
    grid: NDArray[np.int32]
    """Origins of all tiles of the grid, kept or not."""
    reasons: NDArray[np.uint8]
    """Of all tiles of the grid: KEPT, or what removed it (pipeline/quality.py)."""
    empty: str = ""
    """Why none was kept; empty when some were."""

    @property
    def removed(self) -> str:
        """How many tiles of tissue each filter removed, as `blurred 12, near white 3`; empty when none did."""
        counts = Counter(self.reasons.tolist())
        return ", ".join(f"{REASONS[code]} {counts[code]}" for code in REASONS if code > TISSUE and counts[code])


def tile(image: Image, threads: int = 1, beat: Callable[[int, int], None] = lambda done, of: None) -> Tiles:
    """Choose the tiles of an image that show enough foreground and pass its quality filters.

    Args:
        image: opened at the resolution of its settings.
        threads: for reading tiles, which only the filters need.
        beat: called with tiles read and tiles in all.

    Raises:
        EmptyImage: the image is smaller than one tile.
    """
    origins = grid(image.extent, image.tile_size, image.tile_stride, image.pads)
    if not len(origins):
        extent, size = ("x".join(str(side) for side in sides) for sides in (image.extent, image.tile_size))
        raise EmptyImage(f"the image has {extent} pixels at this resolution, fewer than one tile of {size}")
    share = image.foreground(origins, image.tile_size)
    # A share of nothing is not enough even when any share is.
    enough = (share >= image.min_foreground) & (share > 0)
    reasons = np.where(enough, KEPT, TISSUE).astype(np.uint8)
    if is_on(image.quality):
        candidates = np.flatnonzero(enough)
        room = np.empty((BATCH, *image.tile_size[1::-1], 3), np.uint8)
        for start in range(0, len(candidates), BATCH):
            batch = candidates[start : start + BATCH]
            pixels, status = image.read(origins[batch], image.tile_size, threads, room)
            # What cannot be read stays: its failure is counted where it is missed, at `embed`.
            reasons[batch] = np.where(status == READ_OK, judge(pixels, image.quality), KEPT)
            beat(min(start + BATCH, len(candidates)), len(candidates))
    tiles = Tiles(origins[reasons == KEPT], image.tile_size, origins, reasons)
    if len(tiles.origins):
        return tiles
    why = f"none of {len(origins)} tiles shows {image.min_foreground:.0%} foreground"
    if enough.any():
        why = f"none of {enough.sum()} tiles of tissue passes the filters ({tiles.removed})"
    return replace(tiles, empty=why)
