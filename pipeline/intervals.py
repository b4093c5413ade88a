"""Intervals: percentiles of resampled figures, and score intervals where resampling would claim too much.

Pure numpy. A score interval holds all truths that a test with the deviation implied by that truth would not reject.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Judged(Protocol):
    """Bags that one head judged: their labels and patients, (bag,) each, and the number of classes."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each bag."""
        ...

    @property
    def patients(self) -> NDArray[np.str_]:
        """Patient of each bag."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes."""
        ...


def percentiles(replicates: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Ends of the middle `confidence` of resampled figures (replicate,)."""
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def ranked_classes(classes: int) -> range:
    """The classes that are ranked against the rest: with two classes one ranking says it all."""
    return range(1, 2) if classes == 2 else range(classes)


def score_interval(
    value: float, deviation: Callable[[float], tuple[float, float]], confidence: float
) -> tuple[float, float]:
    """All truths t that a two-sided normal test, with the deviation that t itself implies, would not reject.

    Args:
        value: what was observed, between 0 and 1.
        deviation: for a truth gives the standard deviation of the figure, and half of its smallest step: the
            correction for continuity. Both mirror: truth t and 1 - t give the same.
        confidence: coverage wanted.
    """
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)

    def lowest(observed: float) -> float:
        inside, outside = observed, 0.0
        for _ in range(50):
            truth = (inside + outside) / 2
            spread, correction = deviation(truth)
            if observed - truth - correction > quantile * spread:
                outside = truth
            else:
                inside = truth
        return outside

    return lowest(value), 1 - lowest(1 - value)


def auroc_deviation(parts: Sequence[Judged], truth: float) -> tuple[float, float]:
    """Standard deviation of the pooled-within-fold AUROC, and half a step.

    Per fold the variance of Hanley and McNeil (1982) as Newcombe (2006, method 5) made it symmetric; at 0.5 it is that
    of the Mann-Whitney test. ASSUME: bags of a patient say the same thing, so patients count and not bags, and unequal
    patients count by Kish's effective number. ASSUME: with more than two classes the rankings move together, the widest
    case.
    """
    spreads, steps = [], []
    for label in ranked_classes(parts[0].classes):
        variance, pairs, step = 0.0, 0.0, 0.0
        for part in parts:
            own = part.labels == label
            if own.all() or not own.any():
                continue
            size = float(own.sum()) * float((~own).sum())
            positive, negative = _effective(part.patients[own]), _effective(part.patients[~own])
            more = (positive + negative) / 2 - 1
            spread = 1 + more * (1 - truth) / (2 - truth) + more * truth / (1 + truth)
            variance += size**2 * truth * (1 - truth) * spread / (positive * negative)
            step += size**2 / (positive * negative)
            pairs += size
        spreads.append(math.sqrt(variance) / pairs)
        steps.append(step / pairs**2 / 2)
    return float(np.mean(spreads)), float(np.mean(steps))


def recall_deviation(parts: Sequence[Judged], truth: float) -> tuple[float, float]:
    """Standard deviation of the balanced accuracy when every class has the recall `truth` (Wilson), and half a step."""
    labels = np.concatenate([part.labels for part in parts])
    patients = np.concatenate([part.patients for part in parts])
    shares = [1 / _effective(patients[labels == label]) for label in range(parts[0].classes)]
    return math.sqrt(truth * (1 - truth) * sum(shares)) / len(shares), min(shares) / len(shares) / 2


def _effective(patients: NDArray[np.str_]) -> float:
    """Kish's effective number of patients, given the patient of each bag: their number when all have equally many."""
    _, bags = np.unique(patients, return_counts=True)
    return float(bags.sum() ** 2 / (bags**2).sum())
