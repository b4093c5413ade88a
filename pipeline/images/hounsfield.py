"""Stored values become Hounsfield units (HU), and evidence that they are none is counted.

In this order: padding is found among the stored values, 12-bit values that have wrapped are unwrapped, slope and
intercept are applied, padding becomes AIR, all is clipped. Stored values are never inverted: MONOCHROME1 is a matter of
display alone.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.dicom import Coding

AIR, HIGHEST = -1024, 3071
"""HU range that is kept: 4096 values, what ordinary scanners store. Padding becomes AIR."""

WRAP_CUT = 1024
"""Where wrapped 12-bit values are cut: v becomes ((v + cut) mod 4096) - cut, just the range that is kept."""

WRAPPED = (3072, 4095)
"""Stored values that air has when it has wrapped, and that nothing outside of a patient has otherwise."""

AIR_HU, TISSUE_HU = (-1050, -900), (-30, 120)
"""HU between which a pixel counts as air or as soft tissue, the limits themselves not."""

NOTHING_HU = (-1_000_000, -1100)
"""HU between which a pixel lies outside of what was scanned, whether the header names it padding or not."""

LEAST_AIR, LEAST_TISSUE = 0.05, 0.015
"""Shares of pixels that a series in HU exceeds.

ASSUME: measured on seven real series and on 28 damaged ones made of them, which the two together tell apart and neither
alone does. Closely cropped images can lack air.
"""

SAMPLE = 1 << 13
"""The median of the tissue is that of so many pixels of a slice, about: of all, it would take 0.5 ms at 512 x 512."""


def to_hounsfield(stored: NDArray[Any], coding: Coding, out: NDArray[np.int16], wrapped_at: int | None = None) -> None:
    """Stored values (y, x) as HU in `out` (y, x), between AIR and HIGHEST.

    Padding becomes AIR, and so does, by clipping, padding that the header does not name, which lies below -1100 HU.

    Args:
        stored: integers of 8, 16 or 32 bits, in the signedness that `coding.padding` has.
        coding: what they mean.
        out: takes the result.
        wrapped_at: the cut of a series whose 12-bit values have wrapped; its slope and intercept say nothing then.
    """
    if stored.itemsize == 4:
        out[:] = _hounsfield(stored, coding, wrapped_at)
        return
    wide = _widened(stored)
    if wrapped_at is None and (limits := _shift_limits(coding, wide.dtype.kind == "i")) is not None:
        # An eighth of the table's 0.2 ms; nearly all series are such.
        np.clip(wide, *limits, out=out.view(wide.dtype))
        out += np.array(int(coding.intercept) & 0xFFFF, dtype=np.uint16).astype(np.int16)  # modulo 2^16 is exact here
        return
    table = hu_table(coding, wide.dtype.kind == "i", wrapped_at)
    np.take(table, wide.view(np.uint16), out=out, mode="clip")  # the default mode would copy `out`


@lru_cache(maxsize=16)  # 128 KB each; slope and intercept of a series differ rarely, and PET/CT's for each slice
def hu_table(coding: Coding, signed: bool, wrapped_at: int | None) -> NDArray[np.int16]:
    """What each 16-bit stored value becomes: HU (65536,), by its bits as an unsigned number. Read-only."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    table = _hounsfield(bits.view(np.int16) if signed else bits, coding, wrapped_at)
    table.flags.writeable = False
    return table


def _hounsfield(stored: NDArray[Any], coding: Coding, wrapped_at: int | None) -> NDArray[np.int16]:
    values = stored.astype(np.float64)
    if wrapped_at is None:
        hounsfield = np.rint(values * coding.slope + coding.intercept)
    else:
        hounsfield = (values + wrapped_at) % 4096 - wrapped_at
    if coding.padding is not None:
        hounsfield[(values >= coding.padding[0]) & (values <= coding.padding[1])] = AIR
    return np.clip(hounsfield, AIR, HIGHEST).astype(np.int16)


@lru_cache(maxsize=16)
def _shift_limits(coding: Coding, signed: bool) -> tuple[np.generic, np.generic] | None:
    """Between which stored values to clip, where HU are those plus the intercept; None: it takes the table."""
    shift = coding.intercept
    if coding.slope != 1 or shift != math.trunc(shift) or abs(shift) > 0xFFFF:
        return None
    if coding.padding is not None and coding.padding[1] + shift > AIR:
        return None  # clipping alone would not make it AIR
    dtype = np.int16 if signed else np.uint16
    lowest = max(AIR - int(shift), np.iinfo(dtype).min)
    highest = min(HIGHEST - int(shift), np.iinfo(dtype).max)
    return (dtype(lowest), dtype(highest)) if lowest <= highest else None


def border_evidence(stored: NDArray[Any], coding: Coding) -> tuple[int, int]:
    """Of the pixels of an image's outermost rows and columns, without padding: those within WRAPPED, and all."""
    inner = stored[1:-1]
    border = np.concatenate([stored[0], *stored[1:][-1:], inner[:, 0], *inner[:, 1:][:, -1:].T])
    if coding.padding is not None:
        border = border[(border < coding.padding[0]) | (border > coding.padding[1])]
    return int(np.count_nonzero((border >= WRAPPED[0]) & (border <= WRAPPED[1]))), border.size


def may_be_wrapped(coding: Coding) -> bool:
    """Whether the header allows that 12-bit values have wrapped, which by itself says nothing."""
    return coding.bits_stored == 12 and not coding.signed and abs(coding.intercept) < 100


def is_wrapped(high: int, border: int) -> bool:
    """Whether 12-bit values that may have wrapped have: more than half of the images' borders shows it.

    Args:
        high: border pixels within WRAPPED, of all slices of a series that `may_be_wrapped`.
        border: all of their border pixels.
    """
    return 2 * high > border


def wrap_evidence(high: int, border: int) -> str:
    """What `border_evidence` found in a series, in words."""
    share = f"{high / border:.0%}" if border else "none"
    return f"{share} of {border:,} border pixels in {WRAPPED[0]}..{WRAPPED[1]}"


class Shares:
    """Counts of what tells whether a series is in HU: air, soft tissue, and the tissue's median.

    HU are counted before they are clipped. Padding is no tissue, and air only where its value is that of air; it is
    part of all pixels. Not to be counted into by several threads at once.
    """

    def __init__(self) -> None:
        self.pixels = 0
        self._air = self._tissue = self._outside = 0
        self._histogram = np.zeros(TISSUE_HU[1] - TISSUE_HU[0] + 1, dtype=np.int64)
        self._above, self._inside = np.empty(0, np.uint16), np.empty(0, bool)

    @property
    def air(self) -> float:
        """Share of pixels within AIR_HU."""
        return self._air / max(1, self.pixels)

    @property
    def tissue(self) -> float:
        """Share of pixels within TISSUE_HU."""
        return self._tissue / max(1, self.pixels)

    @property
    def looks_like_hu(self) -> bool:
        """Whether the shares are those of HU in an image of a patient with air around or inside.

        Deviates from the measured rule in that air is a share of what was scanned, above NOTHING_HU and no padding: a
        patient who fills the circle that was scanned leaves 4.4 % of all pixels and 5.6 % of these.
        """
        scanned = max(1, self.pixels - self._outside)
        return self._air > LEAST_AIR * scanned and self.tissue > LEAST_TISSUE

    @property
    def tissue_median(self) -> float | None:
        """Median HU of the tissue of a sample of pixels, to a whole one; None: there is no tissue."""
        counted = np.cumsum(self._histogram)
        return float(np.searchsorted(counted, counted[-1] / 2) + TISSUE_HU[0]) if counted[-1] else None

    def add(self, stored: NDArray[Any], coding: Coding, wrapped_at: int | None = None) -> None:
        """Count the pixels of one slice (y, x), as `to_hounsfield` takes them."""
        self.pixels += stored.size
        if wrapped_at is not None or stored.itemsize == 4:
            stored, coding = self._unusual(stored, coding, wrapped_at)
        values = _widened(stored).reshape(-1)
        if self._above.size != values.size:
            self._above, self._inside = np.empty(values.size, np.uint16), np.empty(values.size, bool)
        air, (first, last) = _stored_between(coding, AIR_HU), _stored_between(coding, TISSUE_HU)
        nothing = _stored_between(coding, NOTHING_HU)
        self._air += self._count(values, *air)
        self._outside += self._count(values, *nothing)
        if coding.padding is not None:
            low, high = coding.padding
            if not nothing[0] <= low <= high <= nothing[1]:
                counted = [self._count(values, max(low, ends[0]), min(high, ends[1])) for ends in (air, nothing)]
                self._outside += self._count(values, low, high) - sum(counted)
            self._tissue -= self._count(values, max(low, first), min(high, last))
        found = self._count(values, first, last)
        self._tissue += found
        if found:  # the histogram is made of what the count has just left
            first = max(first, int(np.iinfo(values.dtype).min))
            step = max(1, values.size // SAMPLE) | 1  # odd, so that it does not walk down a column
            each = np.bincount(self._above[::step][self._inside[::step]])
            those = np.arange(first, first + len(each))
            if coding.padding is not None:
                each[(those >= coding.padding[0]) & (those <= coding.padding[1])] = 0
            np.add.at(
                self._histogram, np.rint(those * coding.slope + coding.intercept).astype(int) - TISSUE_HU[0], each
            )

    def _unusual(self, stored: NDArray[Any], coding: Coding, wrapped_at: int | None) -> tuple[NDArray[Any], Coding]:
        """Slices whose HU are not in one line with 16-bit stored values: as HU, without their padding."""
        if coding.padding is not None:
            kept = (stored < coding.padding[0]) | (stored > coding.padding[1])
            self._outside += stored.size - int(np.count_nonzero(kept))
            stored = stored[kept]
        hounsfield = np.rint(stored * coding.slope + coding.intercept)
        if wrapped_at is not None:
            hounsfield = (stored.astype(np.int32) + wrapped_at) % 4096 - wrapped_at
        plain = replace(coding, signed=True, slope=1.0, intercept=0.0, padding=None)
        return np.clip(hounsfield, -32768, 32767).astype(np.int16), plain

    def _count(self, values: NDArray[Any], first: int, last: int) -> int:
        """Values (value,) of 16 bits from first to last, which stay marked in `_inside`.

        As a difference modulo 2^16, which takes one comparison in place of two; into arrays that are kept, because new
        ones of this size cost more than the counting.
        """
        info = np.iinfo(values.dtype)
        first, last = max(first, int(info.min)), min(last, int(info.max))
        if last < first:
            return 0
        np.subtract(values.view(np.uint16), np.uint16(first % (1 << 16)), out=self._above)
        np.less_equal(self._above, np.uint16(last - first), out=self._inside)
        return int(np.count_nonzero(self._inside))


def _widened(stored: NDArray[Any]) -> NDArray[Any]:
    """Values of 8 or 16 bits as 16 bits, in their own signedness."""
    return stored.astype(f"{stored.dtype.kind}2", copy=False)


def _stored_between(coding: Coding, limits: tuple[int, int]) -> tuple[int, int]:
    """First and last stored value whose HU lie between limits; the last before the first: none does."""
    if coding.slope == 0:
        return 0, -1
    ends = sorted((limit - coding.intercept) / coding.slope for limit in limits)
    low, high = (min(max(end, -(2.0**33)), 2.0**33) for end in ends)  # beyond 32 bits in any case
    return math.floor(low) + 1, math.ceil(high) - 1
