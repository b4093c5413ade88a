"""A CT series: a volume in Hounsfield units (HU), shown through three windows as three channels."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.config import QualitySettings, SeriesSettings, Window
from pipeline.errors import ImageError
from pipeline.images import READ_OK
from pipeline.images.dicom import AIR, HIGHEST, choose_series, quiet_pydicom, read_headers, read_volume, stack


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
        self.min_foreground = 0.0
        self.quality = QualitySettings()
        self.properties = properties
        self._volume = volume
        self._table = window_table(settings.windows)

    @classmethod
    def from_dicom(cls, folder: Path, settings: SeriesSettings) -> Self:
        """Read the CT series with the most slices among the files of a folder; subfolders are not searched.

        Raises:
            ImageError: there is no CT series, or not one only, or its slices cannot be read or do not fit together.
        """
        with quiet_pydicom() as caught:
            headers, excluded = read_headers(folder)
            chosen = choose_series(headers, excluded)
            positions, normal = stack(chosen)
            if len(positions) < settings.min_slices:
                raise ImageError(
                    f"{len(positions)} slices, fewer than min_slices {settings.min_slices}: "
                    "lower series.min_slices, or leave this series out"
                )
            volume = read_volume(list(positions.values()))
        z = list(positions)
        travel = np.subtract(positions[z[-1]][0].position, positions[z[0]][0].position)
        cosine = float(travel @ normal / np.linalg.norm(travel)) if len(z) > 1 else 1.0
        unstated = any(header.unit == "US" for header in chosen)
        properties: dict[str, Any] = {
            "z_mm": [round(value, 4) for value in z],
            "spacing": list(chosen[0].spacing),
            "thickness": sorted({value for header in chosen for value in header.thickness}),
            "tilt_deg": round(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), 2),
            "n_files": len(chosen) + excluded.total(),
            "excluded": dict(sorted(excluded.items())),
            "duplicates": len(chosen) - len(z),
            "transfer_syntax": ", ".join(sorted({header.syntax.name for header in chosen})),
            "warnings": len(caught),
            "notes": ["rescale type US: the unit of its values is not stated, taken as HU"] if unstated else [],
        }
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
        """Pixels (tile, height, width, 3), one window per channel, and a status (tile,), always READ_OK."""
        width, height, _ = size
        pixels = np.empty((len(origins), height, width, 3), dtype=np.uint8) if out is None else out[: len(origins)]
        for tile, (x, y, z) in zip(pixels, origins.tolist(), strict=True):
            hounsfield = self._volume[z, y : y + height, x : x + width]
            np.take(self._table, hounsfield - AIR, axis=0, out=tile, mode="clip")  # "raise" would copy once more
        return pixels, np.full(len(origins), READ_OK, dtype=np.uint8)

    def reading(self) -> dict[str, object]:
        """Nothing: its slices come from the store."""
        return {}

    def thumbnail(self, longest: int = 1024) -> NDArray[np.uint8]:
        """The middle slice, (height, width, 3), longest side as asked."""
        columns, rows, slices = self.extent
        (middle,), _ = self.read(np.array([[0, 0, slices // 2]], dtype=np.int32), self.tile_size)
        width, height = (max(1, round(length * longest / max(columns, rows))) for length in (columns, rows))
        return np.asarray(PIL.Image.fromarray(middle).resize((width, height), PIL.Image.Resampling.BICUBIC))

    def arrays(self) -> dict[str, NDArray[np.int16]]:
        """The HU volume (z, y, x)."""
        return {"hu": self._volume}


def window_table(windows: tuple[Window, Window, Window]) -> NDArray[np.uint8]:
    """What each HU from AIR to HIGHEST becomes in each channel: (4096, 3).

    The plain window, DICOM's LINEAR_EXACT: 255 * clip((HU - (centre - width / 2)) / width, 0, 1), rounded half to even.
    """
    hounsfield = np.arange(AIR, HIGHEST + 1)[:, None]
    centre, width = np.array(windows, dtype=np.float64).T
    share = np.clip((hounsfield - (centre - width / 2)) / width, 0, 1)
    table: NDArray[np.uint8] = np.rint(255 * share).astype(np.uint8)
    return table
