"""Keys, JSON files and Zarr stores: everything is written beside its final name, renamed once, never overwritten."""

import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chunks import is_ours, read_chunks, write_array
from pipeline.errors import CONTENT_ERRORS, StoreError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
"""Version of the stores' layout."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def digest(value: object, length: int = 64) -> str:
    """Hexadecimal sha256 of a JSON value; the order of a mapping's keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp")  # not the file's own name, which may be 255 bytes long
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that it appears whole or not at all."""
    write_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path}: is missing: run snakemake again") from None
    except ValueError as error:
        raise StoreError(f"{path}: is damaged ({one_line(error)}): delete it and run snakemake again") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside a final name, renamed once when it is filled; a name taken by then keeps what it has."""
    beside = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp")  # not its own name, which may be 255 bytes long
    beside.mkdir(parents=True)
    try:
        yield beside
        try:
            beside.rename(path)
        except OSError:
            if not path.exists():  # nobody else finished first: the disk says no
                raise
    except OSError as error:
        if error.errno in DISK_FULL and not error.filename:  # a failed write does not say where it was
            error.filename = str(path.parent)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_store(path: Path, arrays: "Mapping[str, NDArray[Any]]", attributes: Mapping[str, object]) -> None:
    """Write a Zarr v3 group that appears whole or not at all; if it exists already, that one stays.

    Args:
        path: final name of the store, `<key>.zarr`.
        arrays: by name; uncompressed, with a crc32c checksum on every chunk. Rows are the first axis.
        attributes: JSON; must hold `key`. The layout's version is added.
    """
    if path.exists():
        return
    with new_folder(path) as beside:
        described = {name: write_array(beside / name, values) for name, values in arrays.items()}
        # Chunks carry checksums, metadata does not: the attributes vouch for the arrays', and for themselves.
        metadata = {name: hashlib.sha256(text).hexdigest() for name, text in described.items()}
        full = {**attributes, "schema": SCHEMA, "arrays": metadata}
        full["checksum"] = digest(full)
        group = {"attributes": full, "zarr_format": 3, "node_type": "group"}
        (beside / "zarr.json").write_bytes(json.dumps(group, indent=2).encode())


class Store:
    """A store opened for reading."""

    def __init__(self, path: Path, key: str) -> None:
        """Open a store.

        Raises:
            StoreError: it is missing, damaged, or its key is not the one asked for.
        """
        self.path = path
        try:
            group = json.loads((path / "zarr.json").read_bytes())
            if (group["node_type"], group["zarr_format"]) != ("group", 3):
                raise ValueError("it is no Zarr v3 group")
            self.attributes: dict[str, Any] = dict(group["attributes"])
        except CONTENT_ERRORS as error:
            raise self._damaged(error) from None
        checked = {name: value for name, value in self.attributes.items() if name != "checksum"}
        if self.attributes.get("checksum") != digest(checked):
            raise self._damaged(ValueError("its attributes are not as they were written"))
        if self.attributes.get("key") != key:
            raise self._damaged(ValueError(f"key {self.attributes.get('key')} where {key} was asked for"))

    def names(self) -> list[str]:
        """The names of its arrays.

        Raises:
            StoreError: the description of one is damaged.
        """
        try:
            return sorted(self.attributes["arrays"])
        except CONTENT_ERRORS as error:
            raise self._damaged(error) from None

    def read(self, name: str, rows: "slice | NDArray[np.int64]" = slice(None)) -> "NDArray[Any]":
        """Some rows of an array, checksums verified.

        Raises:
            StoreError: a byte of these rows' chunks is not as it was written, or a chunk is gone.
            IndexError: there are no such rows.
        """
        try:
            text = (self.path / name / "zarr.json").read_bytes()
            if hashlib.sha256(text).hexdigest() != self.attributes["arrays"][name]:
                raise ValueError(f"{name}: its metadata are not as they were written")
            description = json.loads(text)
            if is_ours(description):
                return read_chunks(self.path / name, description, rows)
            return self._read_by_zarr(name, rows)
        except IndexError:  # the caller's mistake, not the store's: its metadata are as they were written
            raise
        except CONTENT_ERRORS as error:
            raise self._damaged(error) from None

    def _read_by_zarr(self, name: str, rows: "slice | NDArray[np.int64]") -> "NDArray[Any]":
        """What others have packed anew, compressed or in shards."""
        import numpy as np
        import zarr

        array = zarr.open_array(self.path / name, mode="r")
        stored = array.shards or array.chunks
        expected = prod(-(-side // each) for side, each in zip(array.shape, stored, strict=True))
        found = array.nchunks_initialized // prod(s // c for s, c in zip(stored, array.chunks, strict=True))
        if found != expected:  # Zarr would read what is gone as its fill value
            raise ValueError(f"{name}: {found} of {expected} stored chunks are there")
        return np.asarray(array[rows])

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path}: cannot be read ({one_line(error)}): `python -m pipeline verify --repair` removes damaged "
            "stores, and the next run makes them anew"
        )
