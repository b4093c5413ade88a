"""Embeddings in tables: which columns are features, and which say something else."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np

from pipeline.errors import ImageError
from pipeline.feature_formats import Raw

LABELS = frozenset(("class", "fold", "outcome", "split", "target", "y"))
PLACES = frozenset(("col", "column", "id", "idx", "image", "index", "level", "patch", "row", "slide", "tile"))


def read_csv(path: Path) -> Raw:
    """A row of numbers a tile, with or without names of the columns; those called x and y are coordinates."""
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
        more = any(line.strip() for line in file)
    delimiter = max(",;\t", key=first.count)
    cells = next(csv.reader([first], delimiter=delimiter))
    names = [cell.strip().lower() for cell in cells]
    counted = len(cells) > 1 and cells == [str(number) for number in range(len(cells))]  # as pandas names columns
    named = counted or not all(_is_number(cell) for cell in cells)
    at = [names.index("x"), names.index("y")] if {"x", "y"} <= set(names) else []
    unnamed = [column for column, name in enumerate(names) if named and (not name or name.startswith("unnamed:"))]
    if named:
        _refuse_names([name for column, name in enumerate(names) if column not in (*unnamed, *at)])
    if named and not more:
        return Raw(np.zeros((0, len(names)), np.float32))
    values = np.loadtxt(
        path, np.float64, None, delimiter, skiprows=int(named), ndmin=2, encoding="utf-8-sig", quotechar='"'
    )
    if values.shape[1] != len(names):
        raise ImageError(f"its first line has {len(names)} columns and the others {values.shape[1]}: write it again")
    others = [*unnamed, *at]
    kept = (np.delete(values, others, axis=1) if others else values).astype(np.float32)
    notes = ["numbers of a table became float32"]
    if counted:
        notes.append("the first line, 0, 1, 2 and so on, is taken for the names of the columns")
    if unnamed:
        notes.append("a column without a name is left out: it is taken for the numbers of the rows")
    return Raw(kept, values[:, at] if at else None, notes=tuple(notes))


def _refuse_names(names: list[str]) -> None:
    """Refuse a column whose name says that it is no feature, or that is not called like most of the others."""
    if any(_is_number(name) and not name.isdigit() for name in names):
        raise ImageError("its first line holds names and numbers: is a number lacking there?")
    if any("label" in name or name in LABELS for name in names):
        raise ImageError("has a column called a label, which features must not hold: take it out")
    without_numbers = [re.sub(r"\d+", "", name) for name in names]
    count = max(Counter(without_numbers).values(), default=0)
    other = len(names) - count if count > len(names) / 2 else sum(name in PLACES for name in names)
    if other:
        raise ImageError(f"{other} of its columns are called otherwise than features: keep those, x and y alone")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
