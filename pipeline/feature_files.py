"""Reads embeddings that exist already: files of CLAM, TRIDENT, STAMP and HIPT, of numpy, tables, and our own.

What a file holds is data and nothing else: no pickle is run, nothing outside of the file is followed, and what it
claims to hold is compared with its size before memory is taken for it. What is said of it repeats nothing that it says.
"""

import csv
import hashlib
import os
import stat
import struct
import tokenize
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline import feature_formats, feature_tables
from pipeline.errors import CONTENT_ERRORS, ImageError
from pipeline.feature_formats import Raw
from pipeline.store import digest, file_digest

READERS: dict[str, tuple[str, Callable[[Path], Raw]]] = {
    ".h5": ("HDF5", feature_formats.read_h5),
    ".hdf5": ("HDF5", feature_formats.read_h5),
    ".pt": ("PyTorch", feature_formats.read_pt),
    ".pth": ("PyTorch", feature_formats.read_pt),
    ".npy": ("npy", feature_formats.read_npy),
    ".npz": ("npz", feature_formats.read_npz),
    ".csv": ("CSV", feature_tables.read_csv),
    ".zarr": ("Zarr", feature_formats.read_zarr),
}
"""What each suffix is called, and its reader."""

DECODER_ERRORS: tuple[type[Exception], ...] = (
    *CONTENT_ERRORS,
    AssertionError,  # torch
    BadZipFile,
    csv.Error,
    struct.error,
    tokenize.TokenError,  # numpy, of the head of an array
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class Features:
    """What a file, or the files of a folder, say about one image."""

    embeddings: NDArray[np.float16] | NDArray[np.float32]
    """(instance, feature), finite."""
    origins: NDArray[np.int32] | NDArray[np.float64] | None
    """(instance, axis), x first, the corner of each tile; whole numbers as int32. None: not stated."""
    origins_unit: str
    """`level0_pixels` or `micrometres`; empty: not known."""
    size: tuple[float, ...]
    """Of a tile, x first, in the same unit; empty: not known."""
    notes: tuple[str, ...]
    """What was changed or left out, in our own words."""
    rows: tuple[int, ...]
    """Instances of each file, in the order of the files' names."""


def read_features(path: Path) -> Features:
    """The embeddings of one file, or of a Zarr folder.

    Cost: the whole file is in memory, at times twice.

    Raises:
        ImageError: it holds no such thing, more than one, or something else; names no file.
    """
    name, reader = READERS[path.suffix.lower()]
    _open(path)
    try:
        found = reader(path)
    except UnpicklingError:
        raise ImageError("holds something else than tensors, and a pickle is not run: save the tensor alone") from None
    except DECODER_ERRORS as error:  # its own text may quote the file, or name it
        raise ImageError(f"cannot be read as {name} ({type(error).__name__}): is the file whole?") from None
    notes = list(found.notes)
    embeddings = _embeddings(found.embeddings, notes)
    origins = _origins(found.origins, len(embeddings), notes)
    known = origins is not None
    unit, size = (found.unit, tuple(float(side) for side in found.size)) if known else ("", ())
    return Features(embeddings, origins, unit, size, tuple(notes), (len(embeddings),))


def read_folder(paths: Sequence[Path]) -> Features:
    """The embeddings of several files as those of one image, a patient say, in the order of the files' names.

    Raises:
        ImageError: as `read_features`, or the files differ in the width of their embeddings.
    """
    parts: list[Features] = []
    for number, path in enumerate(sorted(paths, key=lambda path: path.name), start=1):
        try:
            parts.append(read_features(path))
        except ImageError as error:
            raise ImageError(f"file {number} of {len(paths)}: {error}") from None
    if len(parts) == 1:
        return parts[0]
    widths = sorted({part.embeddings.shape[1] for part in parts})
    if len(widths) > 1:
        raise ImageError(f"its files have embeddings of widths {widths}: bring those of one backbone")
    notes = [f"{len(parts)} files", *dict.fromkeys(note for part in parts for note in part.notes)]
    if any(part.origins is not None for part in parts):
        notes.append("coordinates are left out: those of several files are of several pictures")
    embeddings = np.concatenate(
        [part.embeddings for part in parts], dtype=np.result_type(*(p.embeddings for p in parts))
    )
    return Features(embeddings, None, "", (), tuple(notes), tuple(len(part.embeddings) for part in parts))


def content(paths: Sequence[Path]) -> str:
    """Hexadecimal sha256 of a file's bytes; of several files, or a Zarr folder, over the sums and names of all.

    Raises:
        ImageError: one cannot be opened.
    """
    for path in paths:
        _open(path)
    try:
        sums = [(path.name, _folder_digest(path) if path.is_dir() else file_digest(path)) for path in paths]
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror}): mend it, then `python -m pipeline retry`") from None
    return sums[0][1] if len(sums) == 1 else digest(sorted(sums))


def _folder_digest(folder: Path) -> str:
    # Of what a link leads to, changes would not be noticed; a pipe would be waited for, for ever.
    inside = [Path(top) / name for top, folders, names in os.walk(folder) for name in (*folders, *names)]
    if not all(stat.S_ISDIR(mode) or stat.S_ISREG(mode) for mode in (path.lstat().st_mode for path in inside)):
        raise ImageError("holds links or other things than files: write the arrays into the folder itself")
    files = sorted(path for path in inside if path.is_file())
    lines = [f"{file.relative_to(folder).as_posix()}\0{file_digest(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _open(path: Path) -> None:
    """Refuse what cannot be opened, or is empty."""
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            with path.open("rb") as file:
                if not file.read(1):
                    raise ImageError("is empty: copy the file again")
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror}): mend it, then `python -m pipeline retry`") from None


def _embeddings(values: NDArray[Any], notes: list[str]) -> NDArray[np.float16] | NDArray[np.float32]:
    """The embeddings, as float16 or float32 of this machine's byte order."""
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2:
        raise ImageError(f"its features have {values.ndim} axes, not 2 (instance, feature): save one row per tile")
    if values.dtype.kind != "f":
        raise ImageError(f"its features are {values.dtype.name}, not floating point numbers: save the embeddings")
    if 0 in values.shape:
        raise ImageError(
            f"its features have {values.shape[0]} rows of {values.shape[1]} numbers: embed the image again"
        )
    wanted = np.dtype(np.float16 if values.dtype.itemsize == 2 else np.float32)
    if values.dtype.itemsize > 4:
        notes.append(f"{values.dtype.name} became float32")
    with np.errstate(over="ignore"):
        kept = np.ascontiguousarray(values, dtype=wanted)
    if broken := len(kept) - int(np.isfinite(kept).all(axis=1).sum()):
        raise ImageError(
            f"{broken} of its {len(kept)} rows hold NaN, infinity or more than float32 takes: embed it again"
        )
    _refuse_other_columns(kept)
    return kept


def _refuse_other_columns(values: NDArray[Any]) -> None:
    """Refuse columns in front that are no features: the numbers of the rows, or a level and two coordinates."""
    rows, width = values.shape
    if rows < 3:
        return
    if width > 1 and any(np.array_equal(values[:, 0], np.arange(rows) + begin) for begin in (0, 1)):
        raise ImageError("its first column counts the rows, and is no feature: save the columns behind it alone")
    head, rest = values[:, :3], values[:, 3:]
    whole = bool((head == np.round(head)).all()) and bool((rest != np.round(rest)).any())
    if whole and (head[:, 0] == head[0, 0]).all() and len(np.unique(head, axis=0)) == rows:
        raise ImageError(
            "its first three columns look like a level and two coordinates, and not like features: save the columns "
            "behind them alone"
        )


def _origins(
    values: NDArray[Any] | None, rows: int, notes: list[str]
) -> NDArray[np.int32] | NDArray[np.float64] | None:
    """The coordinates, whole numbers as int32."""
    if values is None:
        return None
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or values.shape[1] not in (2, 3) or values.dtype.kind not in "iuf":
        notes.append("coordinates are left out: they are not two or three numbers a tile")
        return None
    if len(values) != rows:
        raise ImageError(f"has coordinates of {len(values)} tiles and features of {rows}: bring both of one run")
    numbers = values.astype(np.float64)  # exact up to 2^53 pixels
    if not np.isfinite(numbers).all():
        raise ImageError("some of its coordinates are NaN or infinity: write them again")
    if twice := rows - len(np.unique(numbers, axis=0)):
        raise ImageError(
            f"{twice} of its {rows} tiles have the coordinates of another one: was the file added to twice?"
        )
    if (numbers == np.round(numbers)).all() and np.abs(numbers).max() < 2**31:
        return numbers.astype(np.int32)
    return numbers
