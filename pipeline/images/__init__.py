"""The Image protocol and `open_image`: the only place that knows about modalities.

Axis order, said once: tuples are x first, (x, y) or (x, y, z); arrays are (height, width, channel) and (z, y, x).
After `open_image` everything is pixels at the resolution the settings asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.image_settings import QualitySettings, SeriesSettings, SlideSettings

READ_OK, READ_FAILED = 0, 1
"""Status of one tile: its pixels are there, or could not be decoded (its pixels are then white or black filler)."""


@dataclass(frozen=True)
class Stated:
    """What the labels say about one image; its fields are what a plan's slice has under `stated`."""

    mpp: float | None = None
    """The user's own µm per pixel of a slide at its finest level."""
    mpp_policy: str = ""
    """What that is for, in place of the settings' own `mpp_policy`."""
    series: str = ""
    """Digest of the SeriesNumber or SeriesInstanceUID of the series to read of a folder that holds several."""


UNSTATED = Stated()


class Image(Protocol):
    """A calibrated image, opened at the resolution its settings ask for.

    `extent` is in pixels at that resolution, x first: (x, y) for a slide, (x, y, z) for a series.
    `tile_size` and `tile_stride` are in the same pixels. `properties` is JSON for the store's attributes: effective
    mpp and where it came from, spacing, window names. It holds nothing that identifies a patient.
    """

    extent: tuple[int, ...]
    tile_size: tuple[int, ...]
    tile_stride: tuple[int, ...]
    pads: bool
    """Whether tiles that reach over the far edge count."""
    channels: tuple[str, ...]
    """What each channel shows, in words; a single one: all three show it, of this slice and of its neighbours."""
    min_foreground: float
    quality: QualitySettings
    """Filters on the pixels of its tiles."""
    properties: dict[str, Any]

    def foreground(self, origins: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.float32]:
        """Share of each tile that shows something: (tile,) between 0 and 1. Origins (tile, axis), x first."""
        ...

    def read(
        self,
        origins: NDArray[np.int32],
        size: tuple[int, ...],
        threads: int = 1,
        out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pixels (tile, height, width, 3) and a status (tile,) READ_OK or READ_FAILED, in the order of `origins`.

        Args:
            origins: (tile, axis), x first.
            size: of a tile, x first.
            threads: that read at the same time.
            out: room for at least as many tiles, contiguous, whose beginning is filled and given back. Whoever reads
                batch after batch reuses it: new memory for each costs a fifth of the time of decoding.
        """
        ...

    def reading(self) -> dict[str, object]:
        """JSON for the attributes of an embedding store: which way a slide's tiles took, where a series' slices lie."""
        ...

    def thumbnail(self, longest: int = 1024) -> NDArray[np.uint8]:
        """A picture of the whole (the middle slice of a series): (height, width, 3), longest side as asked."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept to show or open the image without its raw files.

        A slide: `thumbnail` (height, width, 3) uint8 and `outline` of its tissue (point, 3) int32. A series: `hu`
        (z, y, x) int16.
        """
        ...


def refuse_early(files: Sequence[Path], settings: SlideSettings | SeriesSettings) -> None:
    """Refuse what a look shows to be no image, before its bytes are hashed: a folder that holds a whole archive.

    Raises:
        ImageError: it is.
    """
    if isinstance(settings, SeriesSettings):
        from pipeline.images.selection import refuse_dump

        refuse_dump(files)


def open_image(path: Path, settings: SlideSettings | SeriesSettings, stated: Stated = UNSTATED) -> Image:
    """Open a slide file or a folder of DICOM files with the reader its settings are for.

    Args:
        path: a slide's first file, or a folder of CT DICOM files.
        settings: the modality's section of the config.
        stated: what the labels say about it.

    Raises:
        ImageError: the content cannot be used; the message says what was found and what to do, and names no path.
    """
    match settings:
        case SlideSettings():
            from pipeline.images.slide import Slide

            return Slide(path, settings, stated.mpp, stated.mpp_policy)
        case SeriesSettings():
            from pipeline.images.series import Series

            return Series.from_dicom(path, settings, stated.series)


def reopen_image(
    path: Path,
    settings: SlideSettings | SeriesSettings,
    arrays: dict[str, NDArray[Any]],
    properties: dict[str, Any],
    stated: Stated = UNSTATED,
) -> Image:
    """Open an image that `tile` has seen: a slide from its raw file, a series from the arrays its store keeps.

    Windows are applied here and not at `tile`, so that a new window set never reads DICOM again.
    """
    match settings:
        case SlideSettings():
            return open_image(path, settings, stated)
        case SeriesSettings():
            from pipeline.images.series import Series

            return Series(arrays["hu"], settings, properties)
