"""Turn the tiles of an image into embeddings, reading one batch ahead of the model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.images import READ_OK, Image


class Embeds(Protocol):
    """What `embed` needs of a backbone."""

    @property
    def batch(self) -> int:
        """Most tiles of one call."""
        ...

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Embeddings (tile, feature) of at most `batch` tiles (tile, height, width, 3)."""
        ...


def embed(
    image: Image,
    origins: NDArray[np.int32],
    size: tuple[int, ...],
    backbone: Embeds,
    max_unreadable: float,
    threads: int = 1,
) -> Iterator[tuple[NDArray[np.float16], NDArray[np.uint8]]]:
    """Embeddings (tile, feature) of the tiles that could be read, and status (tile,) of all, batch by batch in order.

    Raises:
        ImageError: when more than `max_unreadable` of the tiles could not be read; after the last batch.
    """
    unreadable = 0
    batches = [origins[start : start + backbone.batch] for start in range(0, len(origins), backbone.batch)]
    rooms = [np.empty((len(batches[0]), size[1], size[0], 3), np.uint8) for _ in batches[:2]]  # embedded, and read
    with ThreadPoolExecutor(max_workers=1) as ahead:
        coming = ahead.submit(image.read, batches[0], size, threads, rooms[0])
        for number in range(len(batches)):
            tiles, status = coming.result()
            if number + 1 < len(batches):
                coming = ahead.submit(image.read, batches[number + 1], size, threads, rooms[(number + 1) % 2])
            readable = tiles if (status == READ_OK).all() else tiles[status == READ_OK]
            unreadable += len(tiles) - len(readable)
            if len(readable):
                yield backbone.embed(readable), status
            else:
                yield np.zeros((0, 0), np.float16), status
    if unreadable > max_unreadable * len(origins):
        raise ImageError(
            f"{unreadable} of {len(origins)} tiles cannot be read (max_unreadable {max_unreadable:g}): "
            "is the file whole?"
        )
