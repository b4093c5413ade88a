"""One Zarr v3 array as files: a description, and chunks of whole rows, uncompressed, each followed by its crc32c.

The layout is Zarr's own, to the byte, and Zarr reads it. It is written and read here without Zarr because that takes a
tenth of the time for the small stores of CT series, and for large ones half: rows go from the file straight into
their place in the result, and the checksum is taken while they are in the processor's cache.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DATA_TYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)

CHUNK_BYTES = 4 << 20
MOST_CHUNKS = 12
"""With three arrays, of which one is large, a store stays below 20 files."""

CACHED_BYTES = 256 << 10
"""Read and checked at once; ASSUME: what was just read is then still in the cache of a core (512 KB to 2 MB)."""

Description = dict[str, Any]
"""What `zarr.json` of an array says."""


def describe(shape: tuple[int, ...], data_type: str, chunk_rows: int) -> Description:
    """What Zarr says of an array of this layout, in its order of keys."""
    import numpy as np

    kind = np.dtype(data_type)
    order = {"configuration": {"endian": "little"}} if kind.itemsize > 1 else {}
    return {
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk_rows, *shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": kind.type(0).item(),
        "codecs": [{"name": "bytes", **order}, {"name": "crc32c"}],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def is_ours(description: Description) -> bool:
    """Whether `read_chunks` can read it; otherwise Zarr has to: another codec, shards, other chunks, another fill."""
    try:
        shape, data_type = tuple(description["shape"]), description["data_type"]
        chunk_rows = description["chunk_grid"]["configuration"]["chunk_shape"][0]
        known = data_type in DATA_TYPES and chunk_rows >= 1 and min(shape) >= 0
        return known and description == describe(shape, data_type, chunk_rows)
    except (LookupError, TypeError, ValueError):
        return False


def rows_per_chunk(values: "NDArray[Any]") -> int:
    """Rows of a chunk: at most 12 chunks, of 4 MB where these suffice, and all alike so that little is padding."""
    rows = max(1, len(values))
    most = max(CHUNK_BYTES // max(1, values.nbytes // rows), -(-rows // MOST_CHUNKS), 1)
    return -(-rows // -(-rows // most))


def write_array(folder: Path, values: "NDArray[Any]") -> bytes:
    """Write an array (row, ...) into a new folder.

    Returns:
        What its `zarr.json` holds.

    Raises:
        OSError: the disk is full, say; what was written is left behind.
    """
    import numpy as np

    assert values.ndim >= 1, "a store holds rows, not a single number"
    assert values.dtype.name in DATA_TYPES, f"{values.dtype} cannot be stored"
    most = rows_per_chunk(values)
    description = json.dumps(describe(values.shape, values.dtype.name, most), indent=2).encode()
    folder.mkdir()
    (folder / "zarr.json").write_bytes(description)
    little = values.dtype.newbyteorder("<")
    for begin in range(0, len(values) if values.size else 0, most):
        part = np.ascontiguousarray(values[begin : begin + most], dtype=little)
        # Every chunk has its full size. One of zeros is written too: otherwise a lost one would be read as zeros.
        _write_chunk(folder / _chunk_name(begin // most, values.ndim), part, (most - len(part)) * part[0].nbytes)
    return description


def read_chunks(folder: Path, description: Description, rows: "slice | NDArray[np.int64]") -> "NDArray[Any]":
    """Some rows of an array that `is_ours`, in the order asked for; chunks without such rows are not touched.

    Cost: a chunk is read whole, for its checksum. Threads may read at the same time; within one call a second thread
    gains nothing, because a checksum holds the interpreter.

    Raises:
        IndexError: there is no such row.
        ValueError: a chunk is gone, cut short, too long or not as it was written.
        OSError: the disk says no.
    """
    import numpy as np

    shape, dtype = tuple(description["shape"]), np.dtype(description["data_type"]).newbyteorder("<")
    most = description["chunk_grid"]["configuration"]["chunk_shape"][0]
    wanted = np.arange(shape[0])[rows]
    result = np.empty((len(wanted), *shape[1:]), dtype)
    if not result.size:
        return result
    for begin in range(0, shape[0], most):
        end = min(begin + most, shape[0])
        at = np.flatnonzero((wanted >= begin) & (wanted < end))
        if not len(at):
            continue
        place = slice(at[0], at[0] + end - begin)
        straight = np.array_equal(wanted[place], np.arange(begin, end)) and len(at) == end - begin
        part = result[place] if straight else np.empty((end - begin, *shape[1:]), dtype)
        _read_chunk(folder, _chunk_name(begin // most, len(shape)), part, (begin + most - end) * part[0].nbytes)
        if not straight:
            result[at] = part[wanted[at] - begin]
    return result


def _chunk_name(number: int, axes: int) -> str:
    return "/".join(["c", str(number), *["0"] * (axes - 1)])


def _pieces(part: "NDArray[Any]") -> "Iterator[NDArray[np.uint8]]":
    import numpy as np

    whole = part.reshape(-1).view(np.uint8)
    for start in range(0, len(whole), CACHED_BYTES):
        yield whole[start : start + CACHED_BYTES]


def _write_chunk(path: Path, part: "NDArray[Any]", padding: int) -> None:
    import google_crc32c
    import numpy as np

    found = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        for piece in (*_pieces(part), *_pieces(np.zeros(padding, np.uint8))):
            file.write(piece.data)
            found = google_crc32c.extend(found, piece)
        file.write(found.to_bytes(4, "little"))


def _read_chunk(folder: Path, name: str, part: "NDArray[Any]", padding: int) -> None:
    """Fill an array from a chunk, and verify the chunk."""
    import google_crc32c
    import numpy as np

    found = 0
    try:
        with (folder / name).open("rb") as file:
            for piece in (*_pieces(part), *_pieces(np.empty(padding, np.uint8))):
                if file.readinto(piece.data) != len(piece):
                    raise ValueError(f"{folder.name}: chunk {name} is cut short")
                found = google_crc32c.extend(found, piece)
            if file.read(5) != found.to_bytes(4, "little"):
                raise ValueError(f"{folder.name}: chunk {name} is not as it was written")
    except FileNotFoundError:
        raise ValueError(f"{folder.name}: chunk {name} is gone") from None
