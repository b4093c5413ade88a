"""An image for tests that look at what is done with one: a subclass says what its tiles show."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.image_settings import QualitySettings
from pipeline.images import READ_FAILED, READ_OK


class StandIn:
    """Satisfies `pipeline.images.Image`, with tiles of 2 x 2."""

    extent: tuple[int, ...] = (2, 2)
    tile_size: tuple[int, ...] = (2, 2)
    tile_stride: tuple[int, ...] = (2, 2)
    min_foreground = 0.0
    pads = False
    channels: tuple[str, ...] = ("red", "green", "blue")
    quality = QualitySettings()
    properties: dict[str, Any] = {}  # noqa: RUF012

    def foreground(self, origins: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.float32]:
        return np.ones(len(origins), np.float32)

    def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """What `read` gives."""
        raise NotImplementedError

    def read(
        self,
        origins: NDArray[np.int32],
        size: tuple[int, ...],
        threads: int = 1,
        out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        assert size == self.tile_size
        pixels, status = self.look(origins, threads)
        if out is None:
            return pixels, status
        out[: len(pixels)] = pixels
        return out[: len(pixels)], status

    def reading(self) -> dict[str, object]:
        return {}

    def thumbnail(self, longest: int = 1024) -> NDArray[np.uint8]:
        return np.zeros((*self.extent[1::-1], 3), np.uint8)

    def arrays(self) -> dict[str, NDArray[np.int16]]:
        return {}


class Numbered(StandIn):
    """A row of tiles; each shows the image's number in its red, its own in its green and blue."""

    def __init__(self, number: int = 0, broken: tuple[int, ...] = ()) -> None:
        self.number = number
        self.broken = broken
        """Tiles that cannot be read."""
        self.reads: list[tuple[list[int], int]] = []
        """Numbers of the tiles of each call of `read`, and its threads."""

    def origins(self, count: int) -> NDArray[np.int32]:
        """Of its first tiles: (tile, axis)."""
        return np.stack([np.arange(count) * self.tile_size[0], np.zeros(count)], axis=1).astype(np.int32)

    def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        numbers = origins[:, 0] // self.tile_size[0]
        self.reads.append((numbers.tolist(), threads))
        colours = np.stack([np.full(len(numbers), self.number), numbers // 256, numbers % 256], axis=1)
        shape = (len(numbers), self.tile_size[1], self.tile_size[0], 3)
        tiles = np.broadcast_to(colours[:, None, None].astype(np.uint8), shape)
        return tiles, np.where(np.isin(numbers, self.broken), READ_FAILED, READ_OK).astype(np.uint8)


class Breaks(Numbered):
    """Ends with an error at one of its tiles."""

    def __init__(self, number: int, at: int, error: Exception) -> None:
        super().__init__(number)
        self.at, self.error = at, error

    def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if self.at in origins[:, 0] // 2:
            raise self.error
        return super().look(origins, threads)
