"""Small drawings for the report, as SVG text."""

from collections.abc import Mapping
from io import StringIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which the colour-blind can tell apart."""
LINES: tuple[str, ...] = ("solid", "dashed", "dashdot", "dotted")


def roc_points(labels: ArrayLike, scores: ArrayLike, folds: ArrayLike) -> Curve:
    """The vertical average of the ROC curves of the folds, to be looked at.

    Scores of different folds come from different heads and are not comparable, so each fold draws its own curve and
    the curves are averaged at each false positive rate. Each fold weighs as many as it has pairs of a positive and a
    negative bag: the area below the average is then the share of pairs, within folds, that are in the right order (ties
    count half).

    Args:
        labels: (bag,), true where positive.
        scores: (bag,), higher where more positive, of the head that did not see the bag.
        folds: (bag,), the fold that each bag was tested in.

    Returns:
        False and true positive rates (point,), from (0, 0) to (1, 1), to be joined by straight lines. Empty when no
        fold holds both classes; folds that hold one class only are left out.
    """
    labels, scores, folds = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64), np.asarray(folds)
    curves: list[Curve] = []
    pairs: list[int] = []
    for fold in np.unique(folds):
        inside = folds == fold
        positives = int(labels[inside].sum())
        negatives = int(inside.sum()) - positives
        if positives and negatives:
            curves.append(_curve(labels[inside], scores[inside]))
            pairs.append(positives * negatives)
    if not curves:
        return np.empty(0), np.empty(0)
    rates = np.unique(np.concatenate([false_positive for false_positive, _ in curves]))
    # At each rate where a curve steps, the average steps too: from `before` to `after`.
    before = np.average([_height(curve, rates, "left") for curve in curves], axis=0, weights=pairs)
    after = np.average([_height(curve, rates, "right") for curve in curves], axis=0, weights=pairs)
    return (
        np.concatenate([[0.0], rates.repeat(2)]),
        np.concatenate([[0.0], np.stack([before, after], axis=1).ravel()]),
    )


def _curve(labels: NDArray[np.bool_], scores: Floats) -> Curve:
    """ROC points of one fold, threshold by threshold from the highest score down; tied scores make one slanted line."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true_positives = np.cumsum(labels[order])[last_of_ties]
    false_positives = last_of_ties + 1 - true_positives
    return (
        np.concatenate([[0.0], false_positives / false_positives[-1]]),
        np.concatenate([[0.0], true_positives / true_positives[-1]]),
    )


def _height(curve: Curve, rates: Floats, side: str) -> Floats:
    """Height of a curve at each false positive rate: where it stands upright there, its foot (left) or top (right)."""
    x, y = curve
    if side == "left":
        end = np.searchsorted(x, rates, side="left")
        start = np.maximum(end - 1, 0)
        known = end
    else:
        start = np.searchsorted(x, rates, side="right") - 1
        end = np.minimum(start + 1, len(x) - 1)
        known = start
    run = np.where(x[end] > x[start], x[end] - x[start], 1.0)
    between = y[start] + (y[end] - y[start]) * (rates - x[start]) / run
    return np.where(x[known] == rates, y[known], between)


def roc_svg(curves: Mapping[str, Curve]) -> str:
    """ROC curves with the chance diagonal and a legend, as SVG that is the same for the same curves.

    Args:
        curves: for each legend entry its false and true positive rates, as `roc_points` gives them.
    """
    # Letters become outlines, so the picture looks the same everywhere; `$` in a name is a dollar and no formula.
    with matplotlib.rc_context(
        {"svg.hashsalt": "roc", "svg.fonttype": "path", "text.parse_math": False, "font.size": 9}
    ):
        figure = Figure(figsize=(4.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=1, linestyle=(0, (2, 2)), label="chance")
        for number, (name, (false_positive, true_positive)) in enumerate(curves.items()):
            axes.plot(
                false_positive,
                true_positive,
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number % len(LINES)],
                linewidth=1.8,
                # The font of the picture has no letters beyond ASCII that one could rely on.
                label=name.encode("ascii", "replace").decode().lstrip("_"),
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel("false positive rate (1 − specificity)")
        axes.set_ylabel("true positive rate (sensitivity)")
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="#dddddd")
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()
