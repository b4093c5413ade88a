"""Which gaps between slices tell of slices that are missing, and which are meant. Lengths are mm."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

EQUAL = 0.05
"""ASSUME: lengths that differ by less than this share of the smaller one are meant to be equal."""

NEAR_MULTIPLE = 0.25
"""ASSUME: a gap of many usual ones may be off by this share of one, however many they are."""

NEIGHBOURS = 4
"""ASSUME: gaps on either side that say what is usual at a place."""

SUPPORT = 1.5
"""ASSUME: usual is what is found this many times as often as the gap in question. Two interleaved stacks, whose gaps
take turns, and three slices alone do not show which of their gaps is usual."""

PLATEAU = 3
"""Equal gaps in a row that are meant so."""


def find_missing(gaps: Sequence[float], thicknesses: Sequence[float]) -> list[int]:
    """For each slice that seems to be missing, the index of the last one before it.

    A gap tells of missing slices where it is a multiple of what is usual around it, alone or with one equal gap beside
    it. Three equal gaps in a row are meant so, and so is a gap at which the thickness changes: scanners pass from thin
    slices at the skull base to thick ones above.

    Args:
        gaps: from each slice to the next.
        thicknesses: of each slice, one more than there are gaps; 0: not stated.
    """
    missing: list[int] = []
    if not gaps or equal(min(gaps), max(gaps)):  # nearly all stacks
        return missing
    changes = [i for i in range(len(gaps)) if not equal(thicknesses[i], thicknesses[i + 1])]
    for before, change in pairwise([-1, *changes, len(gaps)]):
        inside = gaps[before + 1 : change]
        for index in range(len(inside)):
            missing += [before + 1 + index] * _missing_in(inside, index)
    return missing


def _missing_in(gaps: Sequence[float], index: int) -> int:
    """How many slices are missing in one of the gaps between slices of one thickness."""
    own = gaps[index]
    near = gaps[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1]
    often = {gap: sum(equal(gap, other) for other in near) for gap in near}
    usual = min(near, key=lambda gap: (-often[gap], gap))
    usual = float(np.median([gap for gap in near if equal(gap, usual)]))
    multiple = round(own / usual)
    if multiple < 2 or abs(own / usual - multiple) > min(EQUAL * multiple, NEAR_MULTIPLE):
        return 0
    in_a_row = (gaps[first : first + PLATEAU] for first in range(max(0, index + 1 - PLATEAU), index + 1))
    if any(len(row) == PLATEAU and all(equal(own, gap) for gap in row) for row in in_a_row):
        return 0
    return multiple - 1 if max(often.values()) >= SUPPORT * often[own] else 0


def equal(one: float, other: float) -> bool:
    """Whether two lengths are meant to be equal."""
    return abs(one - other) <= EQUAL * min(one, other)
