"""The two tables of `sort-dicom`: what became of each file, which is its journal too, and the series that came of it.

Texts stand in them escaped, so that a line is a row and a tab parts two cells, whatever files and patients are called.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ConfigError

TABLE, SERIES = "sort-dicom.tsv", "series.tsv"
SERIES_COLUMNS = ("folder", "patient", "study", "series", "number", "slices", "files")
PLACE = re.compile(r"study-[0-9a-f]{10}/series-[0-9a-f]{10}/[0-9a-f]{16}\.dcm")


class Row(NamedTuple):
    """A line of TABLE: a file below SOURCE and what became of it. Texts are escaped by `cell`."""

    source: str
    bytes: int
    mtime_ns: int
    status: str
    """`sorted`, `left` (it holds no CT slice) or `failed` (tried again by the next run)."""
    destination: str = ""
    reason: str = ""
    slices: int = 0
    patient: str = ""
    study: str = ""
    series: str = ""
    number: str = ""


@dataclass(slots=True)
class Group:
    """A series as SERIES shows it; patient and UIDs as they stand in the headers."""

    patient: str
    study: str
    series: str
    number: int | None
    slices: int = 0
    files: int = 0


@dataclass(slots=True)
class Tally:
    """What TABLE holds so far."""

    rows: Counter[str] = field(default_factory=Counter)
    """By status."""
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By status and reason, without the rows that have none."""
    series: dict[str, Group] = field(default_factory=dict)
    """By folder below DEST."""
    opened: int = 0
    """Files that this run looked at; the others were in TABLE."""
    gone: int = 0
    """Sorted files that are no longer below SOURCE."""

    def add(self, row: Row) -> None:
        """Count one row."""
        self.rows[row.status] += 1
        if row.reason:
            self.reasons[row.status, row.reason] += 1
        if row.status != "sorted":
            return
        number = int(row.number) if row.number else None
        folder = row.destination.rpartition("/")[0]
        group = self.series.setdefault(folder, Group(row.patient, row.study, row.series, number))
        if number is not None and (group.number is None or number < group.number):
            group.number = number
        group.slices += row.slices
        group.files += 1


def cell(text: str) -> str:
    r"""A text that stands in a table as it is, different for different texts: `\t` for a tab, `\\` for a backslash.

    Quotes are escaped too, so that readers that know of quoted cells and those that do not see the same.
    """
    if text.isprintable() and "\\" not in text and '"' not in text:
        return text
    return "".join(_escaped(character) for character in text)


def uncell(text: str) -> str:
    """What `cell` was given.

    Raises:
        ValueError: that cannot have been.
    """
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\" in text else text


def _escaped(character: str) -> str:
    if character == '"':
        return r"\x22"
    plain = character.isprintable() and character != "\\"
    return character if plain else character.encode("unicode_escape").decode("ascii")


def table_line(cells: tuple[object, ...]) -> bytes:
    """A line of a table; texts are escaped already."""
    return ("\t".join(map(str, cells)) + "\n").encode()


def parse_row(line: bytes) -> Row | None:
    """A line of TABLE; None: the header, or what was left when a run was killed or a disk lost power."""
    try:
        *first, end = line.decode().split("\t")
        source, size, mtime_ns, status, destination, reason, slices, patient, study, series = first
        row = Row(
            source, int(size), int(mtime_ns), status, destination, reason, int(slices),
            patient, study, series, end.removesuffix("\n"),
        )  # fmt: skip
        int(row.number or 0)
        whole = end.endswith("\n") and "\0" not in uncell(source)
    except ValueError:
        return None
    placed = PLACE.fullmatch(destination) if status == "sorted" else status in ("left", "failed") and not destination
    return row if whole and placed else None


def series_table(tally: Tally) -> bytes:
    """SERIES: a line for each series, by patient and study."""
    groups = sorted(tally.series.items(), key=lambda item: (item[1].patient, item[1].study, item[0]))
    lines = [
        table_line((folder, g.patient, g.study, g.series, "" if g.number is None else g.number, g.slices, g.files))
        for folder, g in groups
    ]
    return table_line(SERIES_COLUMNS) + b"".join(lines)


def check_own_table(path: Path, columns: tuple[str, ...]) -> None:
    """Refuse a file that is no table with these columns; its header may have been torn when a run was killed.

    Raises:
        ConfigError: it is somebody's own.
    """
    header = table_line(columns)
    if path.exists():
        with path.open("rb") as file:
            if not header.startswith(file.read(len(header))):
                raise ConfigError(f"{path}: is no table that sort-dicom wrote: move it away, or name another DEST")
