"""Slices in order along their normal, and the geometry of the stack.

Lengths are mm in the patient's frame (x to the left, y to the back, z to the head). `z` is the place along the normal,
the cross product of the directions in which column and row numbers grow, and always increases: from the feet to the
head for axial slices.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.images.dicom import SliceHeader
from pipeline.images.gaps import equal, find_missing

SAME_POSITION = 0.01
"""ASSUME: slices closer than this, in mm along the normal, lie at the same position."""

SAME_ORIENTATION = 3.1e-3
"""Largest difference of direction cosines in one stack: selection takes what differs by 1.5e-3 from the first."""

TILTED = 0.5
"""ASSUME: degrees; less is the rounding of positions."""


@dataclass(frozen=True)
class Stack:
    """Slices in order. Several at one position are duplicates, or phases; the geometry is that of one at each."""

    z: tuple[float, ...]
    """Increasing."""
    slices: tuple[tuple[SliceHeader, ...], ...]
    """All at each position."""
    normal: tuple[float, ...]
    """Unit vector; empty when no positions are stated."""
    source: Literal["position", "instance number"]
    """What the order comes from."""


@dataclass(frozen=True)
class Geometry:
    """Where the slices of a stack lie."""

    z_mm: tuple[float, ...]
    gap_mm: tuple[float, ...]
    """From each slice to the next."""
    gap_min_mm: float | None
    """None, and the two below: one slice."""
    gap_median_mm: float | None
    gap_max_mm: float | None
    regular: bool
    """Whether all steps are equal, so that `affine` holds."""
    n_missing: int
    missing_after: tuple[int, ...]
    """For each missing slice, the index of the last one before it; increasing."""
    thicknesses: tuple[float, ...]
    """Different values of SliceThickness, increasing; empty: not stated."""
    mixed_thickness: bool
    normal: tuple[float, ...]
    """Unit vector; empty when no positions are stated."""
    tilt_deg: float | None
    """Between the way from the first slice to the last and the normal; None: one slice, or no positions."""
    tilt_tag_deg: float | None
    """GantryDetectorTilt, as stated; its sign means nothing."""
    spacing: tuple[float, ...]
    """(row, column): from one row to the next, from one column to the next; empty: not stated."""
    affine: tuple[tuple[float, ...], ...] | None
    """Rows of the 4 x 4 matrix from (column, row, slice, 1) to (x, y, z, 1); sheared when tilted. None: no positions,
    or no spacing."""
    order_source: str

    def properties(self) -> dict[str, Any]:
        """All of it as JSON has it: lengths and angles to 4 decimals, what is multiplied by pixels or slices to 8."""
        fine = ("normal", "spacing", "affine")
        return {name: _plain(value, 8 if name in fine else 4) for name, value in vars(self).items()}


def stack(headers: Sequence[SliceHeader], by_number: bool = False) -> Stack:
    """The slices of one candidate, at least one, in order along their normal. Never by file name.

    Args:
        headers: slices of one series that look in one direction.
        by_number: whether InstanceNumber gives the order, and the thickness of the first slice, else 1 mm, the gaps,
            when a slice states no position.

    Raises:
        ImageError: sizes or orientations differ, or there are no positions and no numbers that may take their place.
    """
    extents = Counter(header.extent for header in headers)
    if len(extents) > 1:
        found = ", ".join(f"{columns} x {rows}: {count}" for (columns, rows), count in sorted(extents.items()))
        raise ImageError(f"slices differ in size ({found}): keep those of one size")
    orientations = np.array([header.orientation for header in headers if header.orientation])
    if len(orientations) and np.ptp(orientations, axis=0).max() > SAME_ORIENTATION:
        raise ImageError("slices differ in orientation: keep those of one orientation")
    without = sum(not header.position for header in headers)
    if without and not by_number:
        raise ImageError(
            f"no position in {without} of {len(headers)} slices: "
            "leave those out, or set series.order to instance_number"
        )
    return _by_number(headers) if without else _by_position(headers, np.median(orientations, axis=0))


def _by_position(headers: Sequence[SliceHeader], orientation: NDArray[np.float64]) -> Stack:
    normal = np.cross(orientation[:3], orientation[3:])
    normal /= np.linalg.norm(normal)
    z: list[float] = []
    slices: list[list[SliceHeader]] = []
    for place, header in sorted(((float(normal @ h.position), h) for h in headers), key=lambda pair: pair[0]):
        if z and place - z[-1] < SAME_POSITION:
            slices[-1].append(header)
        else:
            z.append(place)
            slices.append([header])
    return Stack(tuple(z), tuple(map(tuple, slices)), tuple(normal.tolist()), "position")


def _by_number(headers: Sequence[SliceHeader]) -> Stack:
    counts = Counter(header.instance for header in headers)
    bad = sum(count for number, count in counts.items() if number == -1 or count > 1)
    if bad:
        raise ImageError(
            f"no position, and InstanceNumber is absent or repeated in {bad} of {len(headers)} slices: "
            "export this series again, or leave it out"
        )
    ordered = sorted(headers, key=lambda header: header.instance)
    gap = _thickness_or_1(ordered[0])
    z = tuple(gap * index for index in range(len(ordered)))
    return Stack(z, tuple((header,) for header in ordered), (), "instance number")


def measure(resolved: Stack) -> Geometry:
    """The geometry of a stack; of the first slice where there are several at one position."""
    slices = [at_position[0] for at_position in resolved.slices]
    gaps = np.diff(resolved.z)
    limits = (float(gaps.min()), float(np.median(gaps)), float(gaps.max())) if len(gaps) else (None, None, None)
    thicknesses = sorted({header.thickness for header in slices if header.thickness is not None})
    spacing = slices[0].spacing
    affine = None
    regular, tilt = False, None
    missing: list[int] = []
    if resolved.source == "position":
        positions, normal = np.array([header.position for header in slices]), np.array(resolved.normal)
        missing = find_missing(gaps.tolist(), [header.thickness or 0.0 for header in slices])
        # Slices can also be moved within their plane, which gaps do not show.
        sideways = np.diff(positions, axis=0) - gaps[:, None] * normal
        regular = _is_even(gaps) and _is_even(gaps, sideways)
        step = normal * _thickness_or_1(slices[0])
        if len(slices) > 1:
            step = (positions[-1] - positions[0]) / (len(slices) - 1)
            along = float(step @ normal)
            tilt = math.degrees(math.atan2(float(np.linalg.norm(step - along * normal)), along))
        if spacing:
            right, down = np.median([header.orientation for header in slices], axis=0).reshape(2, 3)
            columns = (right * spacing[1], down * spacing[0], step, positions[0])
            affine = (*map(tuple, np.transpose(columns).tolist()), (0.0, 0.0, 0.0, 1.0))
    return Geometry(
        z_mm=resolved.z,
        gap_mm=tuple(gaps.tolist()),
        gap_min_mm=limits[0],
        gap_median_mm=limits[1],
        gap_max_mm=limits[2],
        regular=regular,
        n_missing=len(missing),
        missing_after=tuple(missing),
        thicknesses=tuple(thicknesses),
        mixed_thickness=len(thicknesses) > 1 and not equal(thicknesses[0], thicknesses[-1]),
        normal=resolved.normal,
        tilt_deg=tilt,
        tilt_tag_deg=next((header.tilt for header in slices if header.tilt is not None), None),
        spacing=spacing,
        affine=affine,
        order_source=resolved.source,
    )


def _is_even(gaps: NDArray[np.float64], steps: NDArray[np.float64] | None = None) -> bool:
    """Whether gaps (gap,), or steps (gap, axis), differ from their median by no more than regular gaps may."""
    if not len(gaps):
        return True
    values = gaps[:, None] if steps is None else steps
    off = np.linalg.norm(values - np.median(values, axis=0), axis=1).max()
    return bool(off <= max(0.05, 0.02 * float(np.median(gaps))))


def _thickness_or_1(header: SliceHeader) -> float:
    return header.thickness if header.thickness is not None and header.thickness > 0 else 1.0


def notes(geometry: Geometry) -> list[str]:
    """What a reader should know, a sentence each; none for an ordinary stack."""
    found = []
    if geometry.order_source != "position":
        found.append("slices in the order of InstanceNumber, no positions are stated: their distances are a guess")
    places = Counter(geometry.missing_after)
    if places:
        found.append(_missing_note(geometry, places))
    if not _is_even(np.array([gap / (1 + places[index]) for index, gap in enumerate(geometry.gap_mm)])):
        found.append(f"gaps of {_ends(sorted(geometry.gap_mm))} mm")
    elif not geometry.regular and not places and geometry.order_source == "position":
        found.append("slices are moved within their plane, one against the next: the affine does not hold")
    if geometry.mixed_thickness:
        joint = " and " if len(geometry.thicknesses) == 2 else " to "
        found.append(f"slice thickness {_ends(geometry.thicknesses, joint)} mm")
    tilt, stated = geometry.tilt_deg, abs(geometry.tilt_tag_deg or 0.0)
    if tilt is not None and tilt >= TILTED:
        found.append(f"gantry tilt {tilt:.1f} degrees")
    if tilt is not None and stated and abs(tilt - stated) >= TILTED:
        found.append(
            f"the header states a gantry tilt of {stated:.1f} degrees, the positions {tilt:.1f}: these are taken"
        )
    if not geometry.spacing:
        found.append("no PixelSpacing is stated: lengths within a slice are not known")
    return found


def _missing_note(geometry: Geometry, places: Counter[int]) -> str:
    gaps = sorted(geometry.gap_mm[index] for index in places)
    usual = sorted(geometry.gap_mm[index] / (count + 1) for index, count in places.items())
    n = geometry.n_missing
    what = f"{n} slice{' is' if n == 1 else 's are'} missing"
    gap = f"a gap of {_ends(gaps)}" if len(gaps) == 1 else f"{len(gaps)} gaps of {_ends(gaps)}"
    return f"{what} ({gap} mm where {_ends(usual)} mm are usual)"


def _ends(lengths: Sequence[float], joint: str = " to ") -> str:
    """The first and the last of increasing lengths; one of them if they read the same."""
    return joint.join(dict.fromkeys(f"{length:.4g}" for length in (lengths[0], lengths[-1])))


def _plain(value: Any, digits: int) -> Any:
    if isinstance(value, tuple):
        return [_plain(item, digits) for item in value]
    return round(value, digits) + 0.0 if isinstance(value, float) else value  # + 0.0: no minus before a zero
