"""An image for tests that look at what is done with one: a subclass says what its tiles show."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.image_settings import QualitySettings


class StandIn:
    """Satisfies `pipeline.images.Image`, with tiles of 2 x 2."""

    extent: tuple[int, ...] = (2, 2)
    tile_size: tuple[int, ...] = (2, 2)
    tile_stride: tuple[int, ...] = (2, 2)
    min_foreground = 0.0
    pads = False
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
        return self.look(origins, threads)

    def reading(self) -> dict[str, object]:
        return {}

    def thumbnail(self, longest: int = 1024) -> NDArray[np.uint8]:
        return np.zeros((*self.extent[1::-1], 3), np.uint8)

    def arrays(self) -> dict[str, NDArray[np.int16]]:
        return {}
