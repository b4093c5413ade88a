"""Windows: which Hounsfield units (HU) a channel shows, from black to white; and which slices stand beside a slice.

Needs nothing while it is imported: the config knows the names of windows, and Snakemake's own process reads the config.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Window = tuple[float, float]
"""Centre and width in HU."""

NAMED: dict[str, Window] = {
    "brain": (40, 80),
    "subdural": (80, 200),
    "soft_tissue": (40, 380),
    "bone": (600, 2800),
    "stroke": (40, 40),
    "narrow_stroke": (32, 8),
    "blood": (75, 215),
    "wide_brain": (50, 100),
    "sa_dmil": (30, 30),
    "lung": (-600, 1500),
    "mediastinum": (50, 400),
    "liver": (60, 160),
}
"""Centre and width by name. What each shows, in HU: brain 0 to 80, subdural -20 to 180, soft_tissue -150 to 230,
bone -800 to 2000, stroke 20 to 60, narrow_stroke 28 to 36, blood -32.5 to 182.5, wide_brain 0 to 100, sa_dmil 15 to 45
(that of the published SA-DMIL code), lung -1350 to 150, mediastinum -150 to 250, liver -20 to 140.

Other people mean other numbers by the same names, so a picture says the numbers too."""

WIDE_GAP = 2.0
"""Times the median distance between slices: across more than this a slice is no neighbour."""
GAP_TOLERANCE = 0.02
"""ASSUME: share by which distances differ because positions were rounded when they were written. A single missing
slice makes a gap of twice the median, and must not be judged by the noise of its last digit."""


def resolve(value: str | Sequence[float]) -> Window:
    """Centre and width in HU of a window that is given by its name or by these two numbers.

    Raises:
        ValueError: there is no such name, or these are not a centre and a width above 0.
    """
    if isinstance(value, str):
        if value not in NAMED:
            raise ValueError(f"no window is called `{value}`: use one of {', '.join(NAMED)}, or [centre, width] in HU")
        return NAMED[value]
    if len(value) != 2 or not all(math.isfinite(number) for number in value):
        raise ValueError("a window that is no name is two numbers: use [centre, width] in HU")
    centre, width = value
    if width <= 0:
        raise ValueError(f"a window of width {width:g}: use a width above 0 HU")
    return centre, width


def describe(window: Window) -> str:
    """What a window shows in words, its name where it has one: `brain 0 to 80 HU`."""
    centre, width = window
    name = next((f"{name} ".replace("_", " ") for name, pair in NAMED.items() if pair == (centre, width)), "")
    return f"{name}{centre - width / 2:g} to {centre + width / 2:g} HU"


def window(hounsfield: "ArrayLike", shown: Window) -> "NDArray[np.float64]":
    """HU, of any shape, as brightness: 0 at and below the window's lower end, 1 at and above its upper end.

    DICOM's LINEAR_EXACT: clip((HU - (centre - width / 2)) / width, 0, 1). Its LINEAR reaches 1 one HU earlier.
    """
    import numpy as np

    centre, width = shown
    return np.clip((np.asarray(hounsfield) - (centre - width / 2)) / width, 0, 1)


def window_table(windows: Sequence[Window], lowest: int = -1024, highest: int = 3071) -> "NDArray[np.uint8]":
    """What each HU from `lowest` to `highest` becomes in each channel: (HU, window), 4096 rows if not told otherwise.

    255 times `window`, rounded half to even.
    """
    import numpy as np

    hounsfield = np.arange(lowest, highest + 1)
    return np.rint(255 * np.stack([window(hounsfield, shown) for shown in windows], axis=1)).astype(np.uint8)


def neighbours(z_mm: Sequence[float]) -> "NDArray[np.int64]":
    """For each slice the indices of the previous one, itself and the next one: (slice, 3).

    At the ends, and across a gap of more than WIDE_GAP times the median one, the slice itself stands in for the slice
    that is not there.

    Args:
        z_mm: (slice,), positions in the order of the slices, up or down.
    """
    import numpy as np

    own = np.arange(len(z_mm))
    indices = np.stack([own - 1, own, own + 1], axis=1)
    if not len(own):
        return indices
    gaps = np.abs(np.diff(z_mm))
    limit = WIDE_GAP * (1 + GAP_TOLERANCE) * np.median(gaps) if len(gaps) else 0.0
    apart = np.concatenate([[True], gaps > limit, [True]])
    indices[:, 0] += apart[:-1]
    indices[:, 2] -= apart[1:]
    return indices
