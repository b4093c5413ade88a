"""Which of the CT series in a folder is read, and why the others are not.

The slices of one series (study and series UID) are divided where they cannot belong to one stack: by orientation,
pixel spacing and kernel; never by AcquisitionNumber or ImageType, which differ within good stacks.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images.dicom import SliceHeader, read_headers
from pipeline.images.elements import quiet_pydicom
from pipeline.images.vocabulary import REFORMATS, is_sharp
from pipeline.store import digest

SAME = 1.5e-3  # cosines are written with three decimals, too
"""Largest difference of direction cosines, and of mm between pixels, within one stack."""

SORT = "`python -m pipeline sort-dicom` gives each series a folder of its own"

MOST_STACKS = 100
"""ASSUME: of one series: rotating projections have more."""

MANY_FILES, SAMPLE, MOST_SERIES = 5000, 64, 8
"""Files of a folder that are sampled before all are read; how many are; and CT series in one study, ASSUME: at most."""


@dataclass(frozen=True)
class Candidate:
    """Slices that may be one stack."""

    headers: tuple[SliceHeader, ...]

    @property
    def first(self) -> SliceHeader:
        """Any of its slices: for what all have in common."""
        return self.headers[0]

    @property
    def slices(self) -> int:
        """Different places; without any, different numbers."""
        return len({header.position or header.instance for header in self.headers})

    @property
    def oblique(self) -> float:
        """Degrees between its planes and axial ones; 0 when no place is stated."""
        if not self.first.orientation:
            return 0.0
        ax, ay, _, bx, by, _ = self.first.orientation
        return math.degrees(math.acos(min(1.0, abs(ax * by - ay * bx))))

    @property
    def reformatted(self) -> bool:
        """Whether it was computed from another series."""
        return any(not REFORMATS.isdisjoint(header.words) for header in self.headers)

    @property
    def thickness(self) -> float:
        """The median; infinite when none is stated."""
        return median([header.thickness or math.inf for header in self.headers])


PREFERENCES: dict[str, Callable[[Candidate, SeriesSettings], float]] = {
    "original": lambda series, _: any("DERIVED" in header.words for header in series.headers),
    "no_contrast": lambda series, _: any(header.contrast for header in series.headers),
    "contrast": lambda series, _: not any(header.contrast for header in series.headers),
    "soft_kernel": lambda series, _: is_sharp(series.first.kernel),
    "sharp_kernel": lambda series, _: not is_sharp(series.first.kernel),
    "thickness": lambda series, settings: abs(series.thickness - settings.thickness_mm),
    "most_slices": lambda series, _: -series.slices,
    "lowest_number": lambda series, _: min(math.inf if h.number is None else h.number for h in series.headers),
}
"""What `series.prefer` can name: the series with the lowest value stay."""


@dataclass(frozen=True)
class Choice:
    """The series that is read."""

    headers: tuple[SliceHeader, ...]
    rejected: tuple[str, ...]
    """Of the other series, in words and numbers: slices and reason."""


def choose(
    headers: Sequence[SliceHeader], excluded: Counter[str], settings: SeriesSettings, wanted: str = ""
) -> Choice:
    """The series that is read, by the rules of the settings.

    Args:
        headers: of all CT slices of a folder.
        excluded: other files by the reason why they are no slices; slices without a place are added.
        settings: of the series.
        wanted: `digest` of the SeriesNumber or SeriesInstanceUID that the labels ask for; empty: any.

    Raises:
        ImageError: there is none, or more than one patient, or nothing tells the best from the next.
    """
    found = ", ".join(f"{count} {reason}" for reason, count in sorted(excluded.items())) or "no files"
    if not headers:
        raise ImageError(f"no CT slices ({found}): leave this folder out")
    if settings.order == "position":
        placed = [header for header in headers if header.position]
        if not placed:
            raise ImageError(
                f"none of {len(headers)} CT slices states its position: set series.order to instance_number if their "
                "numbers can be trusted, or leave this series out"
            )
        if len(placed) < len(headers):
            excluded["no position or orientation"] += len(headers) - len(placed)
        headers = placed
    all_of_them = candidates = divide(headers)
    if wanted:
        candidates = [series for series in candidates if wanted in names(series.first)]
        if not candidates:
            raise ImageError("no CT series has the number or UID that the labels' `series` names: correct it there")
    patients = len({header.patient for series in candidates for header in series.headers if header.patient})
    if patients > 1:
        raise ImageError(f"slices of {patients} patients in one folder: {SORT}")
    reasons = {id(series): "not named by the labels" for series in all_of_them}
    reasons |= {id(series): unfit(series, settings) for series in candidates}
    left = [series for series in candidates if not reasons[id(series)]]
    if any(not series.reformatted for series in left):
        reasons.update({id(series): "reformatted, beside an original" for series in left if series.reformatted})
        left = [series for series in left if not series.reformatted]
    if not left:
        raise ImageError(none_fit(candidates, reasons, settings))
    for rule in settings.prefer:
        values = [PREFERENCES[rule](series, settings) for series in left]
        best = min(values)
        worse = [series for series, value in zip(left, values, strict=True) if value > best]
        reasons.update({id(series): f"not preferred by {rule}" for series in worse})
        left = [series for series, value in zip(left, values, strict=True) if value == best]
    if len(left) > 1:
        raise ImageError(equally_good(left))
    rejected = [
        f"{series.slices} slices{' of the same series' if is_same(series, left[0]) else ''}: {reasons[id(series)]}"
        for series in all_of_them
        if series is not left[0]
    ]
    return Choice(left[0].headers, tuple(sorted(rejected)))


def is_same(one: Candidate, other: Candidate) -> bool:
    """Whether two stacks are parts of one series."""
    return (one.first.study, one.first.series) == (other.first.study, other.first.series)


def equally_good(left: Sequence[Candidate]) -> str:
    """What is said when no rule tells the best series from the next."""
    if all(is_same(series, left[0]) for series in left):
        return (
            f"one series has {len(left)} stacks of {left[0].slices} slices that differ in direction, pixel spacing or "
            "kernel and are equally good: change series.prefer, or keep one of them"
        )
    return (
        f"{len(left)} CT series of {left[0].slices} slices are equally good: name one by its SeriesNumber or "
        f"SeriesInstanceUID in the column `series` of the labels, or change series.prefer; {SORT}"
    )


def refuse_dump(files: Sequence[Path]) -> None:
    """Refuse a folder of many files when a sample of them shows that it holds whole archives.

    Raises:
        ImageError: more than one patient, or more than MOST_SERIES series.
    """
    if len(files) <= MANY_FILES:
        return
    with quiet_pydicom():
        headers, _ = read_headers(files[:: len(files) // SAMPLE])
    patients = len({header.patient for header in headers if header.patient})
    series = len({(header.study, header.series) for header in headers})
    if patients > 1 or series > MOST_SERIES:
        raise ImageError(f"{len(files)} files, of {series} CT series and more, in one folder: {SORT}")


def divide(headers: Sequence[SliceHeader]) -> list[Candidate]:
    """Headers by what may be one stack, in the order of their series.

    Raises:
        ImageError: a series has more than MOST_STACKS.
    """

    def series(header: SliceHeader) -> tuple[str, str]:
        return header.study, header.series

    candidates = []
    for _, group in groupby(sorted(headers, key=series), key=series):
        stacks: list[list[SliceHeader]] = []
        for header in group:
            home = next((stack for stack in stacks if belongs(header, stack[0])), None)
            if home is None:
                if len(stacks) == MOST_STACKS:
                    raise ImageError(
                        f"one series has more than {MOST_STACKS} stacks that differ in direction, pixel spacing or "
                        "kernel: export it again, or leave it out"
                    )
                stacks.append([header])
            else:
                home.append(header)
        candidates += [Candidate(tuple(stack)) for stack in stacks]
    return candidates


def belongs(header: SliceHeader, other: SliceHeader) -> bool:
    """Whether two slices of a series may lie in one stack. Of which size they are is checked where they are stacked."""
    mine, others = header.orientation + header.spacing, other.orientation + other.spacing
    same = len(mine) == len(others) and all(abs(a - b) <= SAME for a, b in zip(mine, others, strict=True))
    return same and header.kernel == other.kernel


def unfit(series: Candidate, settings: SeriesSettings) -> str:
    """Why a series is not to be read, whatever else there is; empty when it may be."""
    if series.oblique > settings.max_oblique_deg:
        return "not axial"
    return "too few slices" if series.slices < settings.min_slices else ""


def none_fit(candidates: Sequence[Candidate], reasons: dict[int, str], settings: SeriesSettings) -> str:
    """What is said when no series may be read."""
    best = max(candidates, key=lambda series: series.slices)
    several = f" in the largest of {len(candidates)} CT series" if len(candidates) > 1 else ""
    if reasons[id(best)] == "too few slices":
        return too_few(f"{best.slices} slices{several}", settings)
    return (
        f"{best.slices} slices{several} lie {best.oblique:.0f} degrees from axial, more than max_oblique_deg "
        f"{settings.max_oblique_deg:g}: raise series.max_oblique_deg, or leave this series out"
    )


def too_few(found: str, settings: SeriesSettings) -> str:
    """What is said of so many slices."""
    return f"{found}, fewer than min_slices {settings.min_slices}: lower series.min_slices, or leave this series out"


def names(header: SliceHeader) -> set[str]:
    """The digests under which the labels may ask for a slice's series; plans and results hold no UIDs."""
    number = "" if header.number is None else str(header.number)
    return {digest(name, 16) for name in (header.series, number) if name}
