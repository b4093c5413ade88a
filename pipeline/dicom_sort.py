"""A dump of DICOM files as one folder per CT series, by links or copies, with a table of what went where.

Names of folders and files are hashes; only the tables `sort-dicom.tsv` and `series.tsv` name patients. The first of
them is the journal too: what it holds is not opened again, and a run that was killed goes on from it.
"""

import fcntl
import os
import stat
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dicom_table import (
    SERIES,
    SERIES_COLUMNS,
    TABLE,
    Row,
    Tally,
    cell,
    check_own_table,
    parse_row,
    series_table,
    table_line,
    uncell,
)
from pipeline.errors import ConfigError, ImageError, one_line
from pipeline.images.dicom import read_file
from pipeline.images.elements import quiet_pydicom
from pipeline.store import digest, write_bytes

TAKEN = "its place is taken: move away what is there and run again"

SAME_TIME_NS = 2_000_000_000
"""ASSUME: a file system that cannot keep a modification time as it is, is wrong by less (FAT counts in 2 s)."""


def sort_dicom(source: Path, dest: Path, copy: bool, tell: Callable[[Tally], None]) -> Tally:
    """Sort the CT slices below `source` into one folder per series below `dest`, and list all files that are there.

    Memory is some 24 bytes for each file that an earlier run has sorted, and half a kilobyte for each series.

    Args:
        source: searched in depth; links are followed, each folder is entered once, and nothing is written there.
        dest: is made; what others have put there stays as it is.
        copy: copies in place of symbolic links.
        tell: is called after each file.

    Raises:
        ConfigError: the folders cannot be used like this, or another run is at work there.
        OSError: the disk of `dest` does not take what is written; TABLE is right, and the next run goes on.
    """
    root, there = os.path.realpath(source), os.path.realpath(dest)
    if not os.path.isdir(root):
        found = "is no folder" if os.path.exists(root) else "is not there"
        raise ConfigError(f"{source}: {found}: name the folder that holds the DICOM files")
    if os.path.exists(there) and not os.path.isdir(there):
        raise ConfigError(f"{dest}: is a file: name the folder to sort into")
    if os.path.commonpath([root, there]) in (root, there):
        raise ConfigError(f"{dest}: SOURCE and DEST lie in one another: name a DEST outside of SOURCE")
    os.makedirs(there, exist_ok=True)
    with _alone(dest):
        for name, columns in ((TABLE, Row._fields), (SERIES, SERIES_COLUMNS)):
            check_own_table(dest / name, columns)
        _check_same_order(dest, digest({"source": root, "copy": copy}))
        # It is there again when the run has come to its end.
        (dest / SERIES).unlink(missing_ok=True)
        sorter = _Sorter(root, there, copy, tell)
        sorter.run()
        write_bytes(dest / SERIES, series_table(sorter.tally))
    return sorter.tally


def files_below(root: str, avoid: str) -> Iterator[tuple[str, str]]:
    """Paths below a folder of all that is no folder, and of folders that cannot be opened, with the reason.

    In no order, because that would need all names at once. Each folder is entered once, whatever links lead to it,
    those that are no links first; `avoid` and what is in it never; nor are hidden folders (bins, snapshots), whose
    paths are given instead.
    """
    entered = {_inode(os.stat(avoid))}
    folders, links = [""], list[str]()
    while folders or links:
        links.sort(reverse=True)
        below = folders.pop() if folders else links.pop()
        path = os.path.join(root, below)
        try:
            here = _inode(os.stat(path))
            if here in entered or (os.path.realpath(path) + "/").startswith(avoid + "/"):
                continue
            entered.add(here)
            with os.scandir(path) as entries:
                for entry in entries:
                    if _is_folder(entry) and not entry.name.startswith("."):
                        (links if entry.is_symlink() else folders).append(f"{below}{entry.name}/")
                    else:
                        yield below + entry.name, ""
        except OSError as error:
            yield below or "./", f"a folder cannot be opened: {error.strerror}"


class _Sorter:
    """One run, from real path to real path."""

    def __init__(self, root: str, dest: str, copy: bool, tell: Callable[[Tally], None]) -> None:
        self.root, self.dest, self.copy, self.tell = root, dest, copy, tell
        self.tally = Tally()
        self._made: set[str] = set()

    def run(self) -> None:
        known = self._revise()
        with quiet_pydicom() as caught, open(os.path.join(self.dest, TABLE), "ab") as table:
            for source, trouble in files_below(self.root, self.dest):
                key = hash(cell(source))
                at = known.searchsorted(key)
                if at < len(known) and known[at] == key:
                    continue
                self.tally.opened += 1
                row = self._row(source, trouble)
                table.write(table_line(row))
                table.flush()  # 1 µs, where opening the file costs hundreds
                self.tally.add(row)
                self.tell(self.tally)
                caught.clear()

    def _revise(self) -> NDArray[np.int64]:
        """Take those rows out of TABLE that no longer hold; the hashes of the others' sources, in order."""
        table, beside = Path(self.dest, TABLE), Path(self.dest, f".{TABLE}.tmp")
        known = array("q")
        table.touch()
        beside.unlink(missing_ok=True)
        with table.open("rb") as old, beside.open("xb") as new:
            new.write(table_line(Row._fields))
            for line in old:
                row = parse_row(line)
                if row is not None and self._holds(row):
                    new.write(line)
                    known.append(hash(row.source))
                    self.tally.add(row)
                    self.tell(self.tally)
        beside.replace(table)
        hashes = np.array(known, dtype=np.int64)
        hashes.sort()
        return hashes

    def _holds(self, row: Row) -> bool:
        """Whether a file is as it was and lies where it was put; the link or copy of one that changed is removed."""
        if row.status == "failed":
            return False
        path, place = os.path.join(self.root, uncell(row.source)), os.path.join(self.dest, row.destination)
        try:
            seen = os.stat(path)
        except OSError:
            if row.status == "left" or not os.path.lexists(place):
                return False
            self.tally.gone += 1
            return True
        same = (seen.st_size, seen.st_mtime_ns) == (row.bytes, row.mtime_ns)
        if row.status == "left" or same:
            return same and os.path.lexists(place)
        folder = os.path.dirname(place)
        if os.path.realpath(folder) == folder and self._is_ours(place, path, row.bytes, row.mtime_ns):
            os.unlink(place)
        return False

    def _row(self, source: str, trouble: str) -> Row:
        """Link or copy one file, if it holds CT slices."""
        path = os.path.join(self.root, source)
        size = mtime_ns = 0
        try:
            if trouble:
                raise ImageError(trouble)
            seen = _stat(path)
            size, mtime_ns = seen.st_size, seen.st_mtime_ns
            other = "a hidden folder" if stat.S_ISDIR(seen.st_mode) else "neither a file nor a folder"
            # A pipe would be waited for, for ever.
            found = read_file(Path(path)) if stat.S_ISREG(seen.st_mode) else other
            if isinstance(found, str):
                return Row(cell(source), size, mtime_ns, "left", reason=found)
            first = found[0]
            above = {"folder": source.rpartition("/")[0]}
            study = digest([first.patient, first.study or above], 10)
            series = digest([study, first.series or above], 10)
            folder = f"study-{study}/series-{series}"
            place = f"{folder}/{sha256(os.fsencode(source)).hexdigest()[:16]}.dcm"
            if not self._folder(f"study-{study}") or not self._folder(folder):
                raise ImageError(TAKEN)
            self._put(path, os.path.join(self.dest, place), seen)
        except ImageError as error:
            return Row(cell(source), size, mtime_ns, "failed", reason=one_line(error))
        uids = {"StudyInstanceUID": first.study, "SeriesInstanceUID": first.series}
        missing = " and no ".join(name for name, uid in uids.items() if not uid)
        return Row(
            source=cell(source),
            bytes=size,
            mtime_ns=mtime_ns,
            status="sorted",
            destination=place,
            reason=f"no {missing}: told apart by its folder" if missing else "",
            slices=len(found),
            patient=cell(first.patient),
            study=cell(first.study),
            series=cell(first.series),
            number="" if first.number is None else str(first.number),
        )

    def _folder(self, name: str) -> bool:
        """Make a folder in DEST; false when something else is there, as a link that leads elsewhere."""
        if name not in self._made:
            path = os.path.join(self.dest, name)
            with suppress(FileExistsError):
                os.mkdir(path)
            if os.path.islink(path) or not os.path.isdir(path):
                return False
            self._made.add(name)
        return True

    def _put(self, path: str, place: str, seen: os.stat_result) -> None:
        if os.path.lexists(place):
            if not self._is_ours(place, path, seen.st_size, seen.st_mtime_ns):
                raise ImageError(TAKEN)
        elif self.copy:
            _copy(path, place, seen)
        else:
            os.symlink(path, place)

    def _is_ours(self, place: str, path: str, size: int, mtime_ns: int) -> bool:
        """Whether what lies at a place is the link to a file, or the copy of one of this size and time."""
        if not self.copy:
            return os.path.islink(place) and os.readlink(place) == path
        with suppress(FileNotFoundError):
            there = os.lstat(place)
            near = abs(there.st_mtime_ns - mtime_ns) < SAME_TIME_NS
            return stat.S_ISREG(there.st_mode) and there.st_size == size and near
        return False


def _copy(path: str, place: str, seen: os.stat_result) -> None:
    """Copy a file, which keeps its time and appears whole or not at all.

    Raises:
        ImageError: it cannot be read, or is no longer as it was `seen`.
        OSError: it cannot be written.
    """
    folder, name = os.path.split(place)
    beside = Path(folder, f".{name}.tmp")  # found again, and removed, by the run after one that was killed
    beside.unlink(missing_ok=True)
    try:
        with beside.open("xb") as file:
            for block in _blocks(path):
                file.write(block)
            written = file.tell()
        now = _stat(path)
        if (now.st_size, now.st_mtime_ns, written) != (seen.st_size, seen.st_mtime_ns, seen.st_size):
            raise ImageError("a file changed while it was copied: run again")
        os.utime(beside, ns=(seen.st_mtime_ns, seen.st_mtime_ns))
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def _blocks(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                yield block
    except OSError as error:
        raise ImageError(f"a file cannot be read: {error.strerror}") from None


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise ImageError(f"a file cannot be read: {error.strerror}") from None


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which its row will say
        return False


@contextmanager
def _alone(dest: Path) -> Iterator[None]:
    with (dest / ".sort-dicom.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{dest}: another sort-dicom is at work there: wait until it has finished") from None
        yield


def _check_same_order(dest: Path, order: str) -> None:
    """Two dumps can have files of the same names, and a row does not say whether it stands for a link or a copy."""
    path = dest / ".sort-dicom.order"
    if not path.exists():
        write_bytes(path, order.encode())
    elif path.read_bytes() != order.encode():
        raise ConfigError(f"{dest}: was filled from another SOURCE, or without or with --copy: name a DEST of its own")
