"""Stores and JSON files appear whole or not at all, are never overwritten, and damage is found."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import ItemsView, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, GzipCodec

from pipeline import chunks as chunks_module
from pipeline.chunks import is_ours, rows_per_chunk
from pipeline.errors import StoreError
from pipeline.store import Store, digest, file_digest, read_json, write_bytes, write_json, write_store

KEY = {"key": "k"}
EMBEDDINGS = np.arange(30, dtype=np.float16).reshape(10, 3)
ZEROS = np.zeros((10, 2), np.int32)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with several chunks in each of its arrays, one of them all zeros."""
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 16)
    path = tmp_path / "k.zarr"
    write_store(path, {"embeddings": EMBEDDINGS, "zeros": ZEROS}, KEY)
    return path


def chunk_files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file() and path.name != "zarr.json")


def everything(path: Path, key: str = "k") -> dict[str, NDArray[Any]]:
    store = Store(path, key)
    return {name: store.read(name) for name in store.names()}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read_with_its_type_and_attributes(written: Path) -> None:
    found = everything(written)
    assert found.keys() == {"embeddings", "zeros"}
    for name, values in (("embeddings", EMBEDDINGS), ("zeros", ZEROS)):
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    attributes = Store(written, "k").attributes
    assert {name: attributes[name] for name in ("key", "schema")} == {"key": "k", "schema": 1}


def test_some_rows_are_read_alone(written: Path) -> None:
    np.testing.assert_array_equal(Store(written, "k").read("embeddings", slice(3, 5)), [[9, 10, 11], [12, 13, 14]])


@pytest.mark.parametrize(
    "rows",
    [
        slice(0, 0),
        slice(1, None, 3),
        slice(-4, None),
        slice(8, 2, -2),
        slice(5, 99),
        np.array([], np.int64),
        np.array([9, 0, 4]),
        np.array([1, 0]),  # a whole chunk, its rows the other way round
        np.array([0, 1, 0, 1, 3, 2]),  # and more often than once
        np.array([-1, -10]),
    ],
    ids=str,
)
def test_rows_are_chosen_as_numpy_chooses_them(written: Path, rows: Any) -> None:
    found = Store(written, "k").read("embeddings", rows)
    np.testing.assert_array_equal(found, EMBEDDINGS[rows])
    assert found.shape == EMBEDDINGS[rows].shape


def test_rows_that_are_not_there_are_no_damage(written: Path) -> None:
    with pytest.raises(IndexError):
        Store(written, "k").read("embeddings", np.array([10]))


def test_of_some_rows_only_their_chunks_are_read(written: Path) -> None:
    (written / "embeddings" / "c" / "2" / "0").unlink()  # rows 4 and 5
    store = Store(written, "k")
    np.testing.assert_array_equal(store.read("embeddings", slice(0, 4)), EMBEDDINGS[:4])
    np.testing.assert_array_equal(store.read("embeddings", np.array([9, 6])), EMBEDDINGS[[9, 6]])
    with pytest.raises(StoreError, match="embeddings: chunk c/2/0 is gone"):
        store.read("embeddings", np.array([0, 5]))


def test_threads_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 20_000)
    values = np.random.default_rng(0).integers(0, 1000, (999, 50), np.int16)
    write_store(tmp_path / "k.zarr", {"hu": values}, KEY)
    store = Store(tmp_path / "k.zarr", "k")
    wanted = [slice(number, None, 1 + number % 3) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for rows, found in zip(wanted, pool.map(lambda rows: store.read("hu", rows), wanted), strict=True):
            np.testing.assert_array_equal(found, values[rows])


SHAPES = [(7,), (7, 3), (5, 2, 3), (0,), (0, 2), (0, 0), (4, 0), (1, 1)]
TYPES = ["float16", "float32", "int32", "int16", "uint8", "bool", "int64", "float64"]


def example(shape: tuple[int, ...], data_type: str) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 2 if data_type == "bool" else 100, shape).astype(data_type)


def write_by_zarr(
    path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, object], **packing: Any
) -> None:
    """A store whose files come from Zarr alone, with the attributes that a store has."""
    group = zarr.create_group(path, attributes={**attributes, "schema": 1})
    for name, values in arrays.items():
        rows = max(1, min(2, len(values)))
        options = {"chunks": (rows, *values.shape[1:]), "compressors": [Crc32cCodec()], **packing}
        group.create_array(name, data=values, config={"write_empty_chunks": True}, **options)
    group.attrs["arrays"] = {name: file_digest(path / name / "zarr.json") for name in arrays}
    group.attrs["checksum"] = digest(dict(group.attrs))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("data_type", TYPES)
def test_zarr_reads_what_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], data_type: str
) -> None:
    values = example(shape, data_type)
    rows = max(1, min(2, shape[0]))
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", max(rows, rows * values[:1].nbytes))
    attributes = {"key": "k", "words": "ü", "nested": {"a": [1, 2.5, None, True]}}
    write_store(tmp_path / "k.zarr", {"x": values}, attributes)

    group = zarr.open_group(tmp_path / "k.zarr", mode="r")
    assert {name: group.attrs[name] for name in attributes} == attributes
    assert group.attrs["schema"] == 1
    array = group["x"]
    assert isinstance(array, zarr.Array)
    assert array.dtype == values.dtype
    np.testing.assert_array_equal(array[...], values)
    assert (array.shape, array.fill_value) == (values.shape, 0)
    assert array.nchunks == array.nchunks_initialized

    write_by_zarr(tmp_path / "theirs.zarr", {"x": values}, attributes)
    ours, theirs = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*/c/**/[0-9]*")
         if path.is_file()}
        for name in ("k.zarr", "theirs.zarr")
    )  # fmt: skip
    assert ours == theirs  # chunks to the byte, checksums and padding included
    described = [json.loads((tmp_path / name / "x" / "zarr.json").read_bytes()) for name in ("k.zarr", "theirs.zarr")]
    assert described[0] == described[1]


def test_zarr_verifies_the_checksums_that_are_written_here(written: Path) -> None:
    chunk = written / "embeddings" / "c" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    array = zarr.open_array(written / "embeddings", mode="r")
    with pytest.raises(ValueError, match="checksum"):
        array[0:1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_store_that_zarr_wrote_is_read_without_zarr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    arrays = {name: example(shape, name) for name in TYPES}
    write_by_zarr(tmp_path / "k.zarr", arrays, KEY)
    monkeypatch.setitem(sys.modules, "zarr", None)  # importing it would fail
    found = everything(tmp_path / "k.zarr")
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "packing",
    [
        {"compressors": [GzipCodec(), Crc32cCodec()]},
        {"compressors": []},
        {"shards": (4, 3)},
        {"chunks": (2, 2)},
        {"fill_value": 7},
        {"filters": [zarr.codecs.TransposeCodec(order=(1, 0))]},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
        {"serializer": zarr.codecs.BytesCodec(endian="big")},
    ],
    ids=lambda packing: next(iter(packing)),
)
def test_what_was_packed_otherwise_is_read_by_zarr(tmp_path: Path, packing: dict[str, Any]) -> None:
    path = tmp_path / "k.zarr"
    write_by_zarr(path, {"x": EMBEDDINGS}, KEY, **packing)
    assert not is_ours(json.loads((path / "x" / "zarr.json").read_bytes()))
    np.testing.assert_array_equal(everything(path)["x"], EMBEDDINGS)
    np.testing.assert_array_equal(Store(path, "k").read("x", slice(3, 6)), EMBEDDINGS[3:6])
    np.testing.assert_array_equal(Store(path, "k").read("x", np.array([9, 2])), EMBEDDINGS[[9, 2]])
    chunk_files(path)[0].unlink()
    with pytest.raises(StoreError, match="stored chunks are there"):
        everything(path)


@pytest.mark.parametrize("description", [[], {}, None, 3, {"shape": 1}, {"shape": ["x"], "data_type": {"name": "r8"}}])
def test_a_description_of_another_kind_is_not_ours(description: Any) -> None:
    assert not is_ours(description)


def test_arrays_are_stored_little_endian_and_row_by_row_however_they_lie_in_memory(tmp_path: Path) -> None:
    arrays = {
        "big": np.array([[1, 256], [3, 4]], ">i2"),
        "columns": np.asfortranarray(EMBEDDINGS),
        "steps": EMBEDDINGS[::-2],
        "same": np.broadcast_to(np.uint8(3), (4, 2)),
    }
    write_store(tmp_path / "k.zarr", arrays, KEY)
    assert (tmp_path / "k.zarr/big/c/0/0").read_bytes()[:-4] == b"\1\0\0\1\3\0\4\0"
    for name, values in everything(tmp_path / "k.zarr").items():
        np.testing.assert_array_equal(values, arrays[name])


def test_objects_are_refused_and_not_pickled(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="object cannot be stored"):
        write_store(tmp_path / "k.zarr", {"x": np.array([object()])}, KEY)
    assert files_in(tmp_path) == []


def test_bytes_are_stored_as_they_are(written: Path) -> None:
    """Uncompressed, little-endian, with four bytes of checksum: no reader needs Zarr to rescue the numbers."""
    raw = b"".join(
        path.read_bytes()[:-4] for path in sorted(written.glob("embeddings/c/*/0"), key=lambda p: int(p.parts[-2]))
    )
    assert raw[: EMBEDDINGS.nbytes] == EMBEDDINGS.tobytes()


def test_a_flipped_byte_in_any_chunk_is_found(written: Path) -> None:
    chunks = chunk_files(written)
    assert len(chunks) > 6
    for chunk in chunks:
        whole = chunk.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            chunk.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(StoreError, match=r"k\.zarr: cannot be read .*verify --repair"):
                everything(written)
        chunk.write_bytes(whole)
    everything(written)


@pytest.mark.parametrize("left", [0, 3, 10])
def test_a_chunk_that_was_cut_short_is_found(written: Path, left: int) -> None:
    for chunk in chunk_files(written):
        whole = chunk.read_bytes()
        assert len(whole) > left
        chunk.write_bytes(whole[:left])
        with pytest.raises(StoreError, match="is cut short"):
            everything(written)
        chunk.write_bytes(whole)


def test_a_chunk_with_bytes_after_its_checksum_is_found(written: Path) -> None:
    for chunk in chunk_files(written):
        whole = chunk.read_bytes()
        chunk.write_bytes(whole + b"\0")
        with pytest.raises(StoreError, match="not as it was written"):
            everything(written)
        chunk.write_bytes(whole)


def test_the_checksum_of_a_chunk_is_its_crc32c(tmp_path: Path) -> None:
    # RFC 3720, B.4: 32 bytes of zeros, of ones, and incrementing from 0.
    arrays = {"zeros": np.zeros((1, 32), np.uint8), "ones": np.full((4, 8), 255, np.uint8)}
    arrays["incrementing"] = np.arange(32, dtype=np.uint8)
    write_store(tmp_path / "k.zarr", arrays, KEY)
    found = {path.relative_to(tmp_path / "k.zarr").parts[0]: path for path in chunk_files(tmp_path / "k.zarr")}
    assert found["zeros"].read_bytes()[-4:].hex() == "aa36918a"
    assert found["ones"].read_bytes()[-4:].hex() == "43aba862"
    assert found["incrementing"].read_bytes()[-4:].hex() == "4e79dd46"


def test_a_lost_chunk_is_found_also_when_it_was_all_zeros(written: Path) -> None:
    chunks = chunk_files(written)
    assert any("zeros" in path.parts for path in chunks)
    for chunk in chunks:
        kept = chunk.read_bytes()
        chunk.unlink()
        with pytest.raises(StoreError, match="is gone"):
            everything(written)
        chunk.write_bytes(kept)
    everything(written)


def test_lost_or_torn_metadata_is_found(written: Path) -> None:
    for metadata in sorted(written.rglob("zarr.json")):
        whole = metadata.read_bytes()
        for torn in (b"", whole[: len(whole) // 2], b"[]", b"{}"):
            metadata.write_bytes(torn)
            with pytest.raises(StoreError):
                everything(written)
        metadata.write_bytes(whole)
    shutil.rmtree(written / "zeros")
    with pytest.raises(StoreError):
        Store(written, "k").read("zeros")
    with pytest.raises(StoreError):
        Store(written.with_name("absent.zarr"), "k")


def test_a_store_with_another_key_is_refused(written: Path) -> None:
    with pytest.raises(StoreError, match="key k where other was asked for"):
        Store(written, "other")


def test_a_second_writer_leaves_the_first_store_as_it_is(written: Path) -> None:
    before = {path: path.stat().st_ino for path in written.rglob("*")}
    write_store(written, {"embeddings": EMBEDDINGS + 1, "zeros": ZEROS}, KEY)
    assert {path: path.stat().st_ino for path in written.rglob("*")} == before
    assert files_in(written.parent) == ["k.zarr"]


def test_of_two_writers_at_once_the_first_to_finish_wins(tmp_path: Path) -> None:
    path = tmp_path / "k.zarr"

    class Slow(dict[str, NDArray[Any]]):
        def items(self) -> ItemsView[str, NDArray[Any]]:
            write_store(path, {"x": np.array([1])}, KEY)  # the other one overtakes
            return super().items()

    write_store(path, Slow(x=np.array([2])), KEY)
    assert everything(path)["x"].tolist() == [1]
    assert files_in(tmp_path) == ["k.zarr"]


class FullDisk(dict[str, NDArray[Any]]):
    """Arrays of which the second cannot be had."""

    def items(self) -> Iterator[tuple[str, NDArray[Any]]]:  # type: ignore[override]
        yield "x", ZEROS
        raise OSError(28, "No space left on device")


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_store(tmp_path / "k.zarr", FullDisk(), KEY)
    assert files_in(tmp_path) == []

    def rename(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space left"):
        write_store(tmp_path / "k.zarr", {"x": ZEROS}, KEY)
    assert files_in(tmp_path) == []


class Disk:
    """A disk with so much room: what goes beyond fails as a full disk does, after part of it was written."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, opened = room, Path.open

        def limited(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            file = opened(path, mode, *rest, **options)
            return LimitedFile(file, self) if set(mode) & set("wxa") else file

        monkeypatch.setattr(Path, "open", limited)


class LimitedFile:
    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> "LimitedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        fits = bytes(content)[: self.disk.room]
        self.disk.room -= len(fits)
        self.file.write(fits)
        if len(fits) < len(bytes(content)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(fits)


def test_a_full_disk_is_named_and_leaves_nothing_behind_wherever_it_strikes(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    place = tmp_path / "embed"
    for room in range(0, needed, 101):
        with monkeypatch.context() as during:
            Disk(room, during)
            with pytest.raises(OSError, match="No space left") as caught:
                write_store(place / "k.zarr", {"embeddings": EMBEDDINGS, "zeros": ZEROS}, KEY)
        assert caught.value.filename == str(place)
        assert files_in(place) == []
    with monkeypatch.context() as during:
        Disk(needed, during)
        write_store(place / "k.zarr", {"embeddings": EMBEDDINGS, "zeros": ZEROS}, KEY)
    np.testing.assert_array_equal(everything(place / "k.zarr")["embeddings"], EMBEDDINGS)


def test_a_limit_of_the_system_on_files_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """As a quota is: the system takes part of a chunk, and no more."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np
from pipeline.store import write_store
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_store(Path(sys.argv[1]), {"x": np.zeros(20_000, np.uint8)}, {"key": "k"})
except OSError as error:
    print(error.errno, error.filename)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "k.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout == f"{errno.EFBIG} {tmp_path}\n"
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "row_bytes", "chunks"),
    [
        (60_000, 1536 * 2, 12),  # a large slide, fp16
        (1_365, 1536 * 2, 1),  # 4 MiB
        (1_366, 1536 * 2, 2),
        (400, 512 * 512 * 2, 12),  # HU of a CT series
        (30, 512 * 512 * 2, 4),  # 8 slices of 512 KiB in each
        (60_000, 8, 1),  # origins
        (1, 2, 1),
    ],
)
def test_an_array_has_at_most_twelve_chunks_of_some_megabytes(rows: int, row_bytes: int, chunks: int) -> None:
    values = np.broadcast_to(np.uint8(0), (rows, row_bytes))
    each = rows_per_chunk(values)
    assert -(-rows // each) == chunks
    assert each * chunks - rows < chunks  # the last one is padded: by less than a row for each chunk


def test_a_large_embedding_store_is_at_most_twenty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 rows, narrow ones, with chunks made smaller in the same proportion."""
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", (4 << 20) * 2 // 1536)
    arrays = {"embeddings": np.zeros((60_000, 2), np.float16), "status": np.zeros(600, np.uint8)}
    arrays["origins"] = np.zeros((600, 2), np.int32)
    write_store(tmp_path / "k.zarr", arrays, KEY)
    files = [path for path in (tmp_path / "k.zarr").rglob("*") if path.is_file()]
    assert len(files) == 12 + 1 + 1 + 4 <= 20


def test_an_array_without_rows_is_kept(tmp_path: Path) -> None:
    write_store(tmp_path / "k.zarr", {"origins": np.zeros((0, 2), np.int32)}, KEY)
    assert everything(tmp_path / "k.zarr")["origins"].shape == (0, 2)


def test_json_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}

    def replace(self: Path, target: Path) -> None:
        assert json.loads(self.read_bytes()) == {"a": 2}  # complete before it gets its name
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert files_in(path.parent) == ["x.json"]


def test_a_reader_of_the_old_file_is_not_disturbed_by_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, 1)
    with path.open() as old:
        write_json(path, 2)
        assert json.load(old) == 1
    assert read_json(path) == 2


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(("content", "said"), [(None, "is missing: run snakemake again"), (b"{", "is damaged")])
def test_json_that_is_missing_or_torn_is_said_in_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=said):
        read_json(path)


def test_a_digest_is_the_sha256_of_the_values_and_not_of_their_order() -> None:
    assert digest({"b": [1, "ü"], "a": None}) == hashlib.sha256(b'{"a":null,"b":[1,"\\u00fc"]}').hexdigest()
    assert digest({"a": 1, "b": 2}, 8) == digest({"b": 2, "a": 1}, 8)
    assert len(digest({}, 8)) == 8
    assert digest([1, 2]) != digest([2, 1])


def test_a_file_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert os.listdir(tmp_path) == ["x"]


def put(file: Path, place: int, byte: int) -> None:
    """Change a byte where it is: writing the file anew would make the disk work at every one."""
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(bytes([byte]))


def test_any_flipped_bit_of_a_store_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in metadata, which have no checksum of Zarr's own: a flipped digit of a shape would be another array."""
    path = tmp_path / "k.zarr"
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 12)  # two rows: the second chunk is half padding
    write_store(path, {"x": EMBEDDINGS[:3]}, {"key": "k", "mpp": 0.25})
    unnoticed = []
    for file in sorted(path.rglob("*")):
        if not file.is_file():
            continue
        whole = file.read_bytes()
        for place in range(len(whole)):
            for bit in range(8):
                put(file, place, whole[place] ^ 1 << bit)
                try:
                    everything(path)
                except StoreError:
                    continue
                unnoticed.append((file.name, place, whole[place : place + 1], bit))
            put(file, place, whole[place])
    everything(path)
    assert unnoticed == []


def test_a_lost_array_is_found(written: Path) -> None:
    shutil.rmtree(written / "zeros")
    with pytest.raises(StoreError, match="cannot be read"):
        everything(written)


def test_the_code_of_the_documentation_reads_a_store_with_zarr_and_with_numpy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks_module, "CHUNK_BYTES", 1)
    values = np.random.default_rng(0).standard_normal((25, 3)).astype(np.float16)  # chunks of 3: the last has one row
    write_store(tmp_path / "k.zarr", {"embeddings": values}, KEY)
    page = (Path(__file__).parents[1] / "docs" / "stores.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 2
    monkeypatch.chdir(tmp_path)
    for example in examples:
        found: dict[str, Any] = {}
        exec(example, found)
        np.testing.assert_array_equal(found["embeddings"], values)
