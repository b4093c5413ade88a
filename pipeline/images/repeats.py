"""Several slices at one position become one: duplicates are dropped, and of several volumes one is read."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images.decoding import read_stored
from pipeline.images.dicom import SliceHeader
from pipeline.images.elements import PHASES
from pipeline.images.stacking import Stack, stack

NEARLY_ALL = 0.9
"""ASSUME: share of all places at which each of several phases has a slice."""


def one_at_each(stacked: Stack, settings: SeriesSettings) -> tuple[Stack, int, int]:
    """A stack with one slice at each position, the number of duplicates left out, and that of other volumes left out.

    Raises:
        ImageError: different slices lie at one position, and nothing tells them apart, or the settings do not choose.
    """
    repeated = [number for number, at_position in enumerate(stacked.slices) if len(at_position) > 1]
    if not repeated:
        return stacked, 0, 0
    places = len(stacked.slices)
    distinct = list(stacked.slices)
    for number in repeated:
        distinct[number] = without_duplicates(stacked.slices[number], f"slice {number + 1} of {places}")
    duplicates = sum(map(len, stacked.slices)) - sum(map(len, distinct))
    repeated = [number for number in repeated if len(distinct[number]) > 1]
    if not repeated:
        return replace(stacked, slices=tuple(distinct)), duplicates, 0
    volumes = divide([header for at_position in distinct for header in at_position], places)
    if not volumes:
        first = repeated[0]
        raise ImageError(
            f"{len(distinct[first])} different slices lie at the position of slice {first + 1} of {places} "
            f"(positions with such: {len(repeated)}): keep one phase only"
        )
    if settings.repeats == "refuse":
        raise ImageError(
            f"{len(volumes)} volumes of {len(volumes[0])} slices lie at one place, such as phases: set series.repeats "
            "to first or last, or keep one of them"
        )
    chosen = stack(volumes[0 if settings.repeats == "first" else -1])
    return chosen, duplicates, len(volumes) - 1


def without_duplicates(headers: Sequence[SliceHeader], place: str) -> tuple[SliceHeader, ...]:
    """Of the slices at one position those that differ: in their stored values, or in what these mean."""
    kept: list[tuple[SliceHeader, NDArray[Any]]] = []
    for header in headers:
        stored, _ = read_stored(header, place)
        if not any(header.coding == other.coding and np.array_equal(stored, values) for other, values in kept):
            kept.append((header, stored))
    return tuple(header for header, _ in kept)


def divide(headers: Sequence[SliceHeader], places: int) -> list[list[SliceHeader]]:
    """Volumes by the first of PHASES that tells them apart, in the order of its values; none: nothing does."""
    for number in range(len(PHASES)):
        volumes: dict[str, list[SliceHeader]] = defaultdict(list)
        for header in headers:
            volumes[header.phase[number]].append(header)
        if len(volumes) > 1 and "" not in volumes and all(is_whole(volume, places) for volume in volumes.values()):
            return [volumes[value] for value in sorted(volumes, key=in_order)]
    return []


def is_whole(volume: Sequence[SliceHeader], places: int) -> bool:
    """Whether slices lie at different places, and at nearly all: two blocks that overlap are no repeats."""
    return len({header.position for header in volume}) == len(volume) and len(volume) >= NEARLY_ALL * places


def in_order(value: str) -> tuple[float, str]:
    """Sorts numbers by value, and before words."""
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
