"""A CT series: a volume in Hounsfield units (HU), shown through windows as three channels."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.image_settings import QualitySettings, SeriesSettings
from pipeline.images import READ_OK
from pipeline.images.hounsfield import AIR
from pipeline.images.volume import read_volume
from pipeline.raw import series_files
from pipeline.windows import describe, neighbours, window_table


class Series:
    """A CT volume seen through the windows of its settings; satisfies `pipeline.images.Image`. Tiles are whole slices.

    Args:
        volume: HU (z, y, x) between -1024 and 3071.
        settings: the series section of the config.
        properties: what is known about it, without windows.
    """

    def __init__(self, volume: NDArray[np.int16], settings: SeriesSettings, properties: dict[str, Any]) -> None:
        slices, rows, columns = volume.shape
        self.extent: tuple[int, ...] = (columns, rows, slices)
        self.tile_size: tuple[int, ...] = (columns, rows, 1)
        self.tile_stride: tuple[int, ...] = (columns, rows, 1)
        self.pads = False
        self.channels: tuple[str, ...] = tuple(describe(shown) for shown in settings.windows)
        self.min_foreground = 0.0
        self.quality = QualitySettings()
        self.properties = properties
        self._volume = volume
        self._table = window_table(settings.windows)
        self._neighbours = neighbours(properties["z_mm"]) if settings.channels == "neighbours" else None

    @classmethod
    def from_dicom(cls, folder: Path, settings: SeriesSettings, wanted: str = "") -> Self:
        """Read the CT series that the settings prefer among the files of a folder; subfolders are not searched.

        Args:
            folder: of DICOM files, and of others that are left out.
            settings: the series section of the config.
            wanted: digest of the SeriesNumber or SeriesInstanceUID to read; empty: the settings choose.

        Raises:
            ImageError: there is no CT series, or not one only, or its slices cannot be read or do not fit together.
        """
        # Those that the image's identity and hash cover, and no other.
        volume, properties = read_volume(series_files(folder), settings, wanted)
        return cls(volume, settings, properties)

    def foreground(self, origins: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.float32]:
        """One for every slice: no slice is left out."""
        return np.ones(len(origins), dtype=np.float32)

    def read(
        self,
        origins: NDArray[np.int32],
        size: tuple[int, ...],
        threads: int = 1,
        out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pixels (tile, height, width, 3) and a status (tile,), always READ_OK.

        The channels are the slice through three windows, or the slice before, itself and the slice behind through one.
        """
        width, height, _ = size
        pixels = np.empty((len(origins), height, width, 3), dtype=np.uint8) if out is None else out[: len(origins)]
        for tile, (x, y, z) in zip(pixels, origins.tolist(), strict=True):
            inside = (slice(y, y + height), slice(x, x + width))
            if self._neighbours is None:
                # "raise" would copy once more
                np.take(self._table, self._volume[z][inside] - AIR, axis=0, out=tile, mode="clip")
                continue
            for channel, number in enumerate(self._neighbours[z].tolist()):
                tile[..., channel] = self._table[self._volume[number][inside] - AIR, 0]
        return pixels, np.full(len(origins), READ_OK, dtype=np.uint8)

    def reading(self) -> dict[str, object]:
        """Where its slices lie, in mm along their normal: heads that smooth along them use the gaps."""
        return {"z_mm": self.properties["z_mm"]}

    def thumbnail(self, longest: int = 1024) -> NDArray[np.uint8]:
        """The middle slice, (height, width, 3), longest side as asked."""
        columns, rows, slices = self.extent
        (middle,), _ = self.read(np.array([[0, 0, slices // 2]], dtype=np.int32), self.tile_size)
        width, height = (max(1, round(length * longest / max(columns, rows))) for length in (columns, rows))
        return np.asarray(PIL.Image.fromarray(middle).resize((width, height), PIL.Image.Resampling.BICUBIC))

    def arrays(self) -> dict[str, NDArray[np.int16]]:
        """The HU volume (z, y, x)."""
        return {"hu": self._volume}
