"""Keys, JSON files and Zarr stores: everything is written beside its final name, renamed once, never overwritten."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import CONTENT_ERRORS, StoreError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = 1
"""Version of the stores' layout."""

CHUNK_BYTES = 4 << 20
MOST_CHUNKS = 12
"""With three arrays, of which one is large, a store stays below 20 files."""


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
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    beside.mkdir(parents=True)
    try:
        yield beside
        try:
            beside.rename(path)
        except OSError:
            if not path.exists():  # nobody else finished first: the disk says no
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
    import zarr
    from zarr.codecs import Crc32cCodec

    if path.exists():
        return
    with new_folder(path) as beside:
        group = zarr.create_group(beside, attributes={**attributes, "schema": SCHEMA})
        for name, values in arrays.items():
            chunks = (_chunk_rows(values), *values.shape[1:])
            # A chunk of zeros is written too: otherwise a lost chunk would be read as zeros.
            group.create_array(
                name, data=values, chunks=chunks, compressors=[Crc32cCodec()], config={"write_empty_chunks": True}
            )
        # Chunks carry checksums, metadata does not: the attributes vouch for the arrays', and for themselves.
        metadata = {name: file_digest(beside / name / "zarr.json") for name in arrays}
        group.attrs["arrays"] = metadata
        group.attrs["checksum"] = digest(dict(group.attrs))


def _chunk_rows(values: "NDArray[Any]") -> int:
    rows = max(1, len(values))
    bytes_per_row = max(1, values.nbytes // rows)
    return min(rows, max(CHUNK_BYTES // bytes_per_row, -(-rows // MOST_CHUNKS), 1))


class Store:
    """A store opened for reading."""

    def __init__(self, path: Path, key: str) -> None:
        """Open a store.

        Raises:
            StoreError: it is missing, damaged, or its key is not the one asked for.
        """
        import zarr

        self.path = path
        try:
            self._group = zarr.open_group(path, mode="r")
        except CONTENT_ERRORS as error:
            raise self._damaged(error) from None
        self.attributes: dict[str, Any] = dict(self._group.attrs)
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
            StoreError: a byte is not as it was written, or a chunk is gone.
        """
        import numpy as np
        import zarr

        try:
            if file_digest(self.path / name / "zarr.json") != self.attributes["arrays"][name]:
                raise ValueError(f"{name}: its metadata are not as they were written")
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            if array.nchunks_initialized != array.nchunks:
                raise ValueError(f"{name}: {array.nchunks_initialized} of {array.nchunks} chunks are there")
            return np.asarray(array[rows])
        except CONTENT_ERRORS as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path}: cannot be read ({one_line(error)}): `python -m pipeline verify --repair` removes damaged "
            "stores, and the next run makes them anew"
        )
