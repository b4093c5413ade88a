"""Stores and JSON files appear whole or not at all, are never overwritten, and damage is found."""

import hashlib
import json
import os
import shutil
from collections.abc import ItemsView, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import store as store_module
from pipeline.errors import StoreError
from pipeline.store import Store, digest, file_digest, read_json, write_bytes, write_json, write_store

KEY = {"key": "k"}
EMBEDDINGS = np.arange(30, dtype=np.float16).reshape(10, 3)
ZEROS = np.zeros((10, 2), np.int32)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with several chunks in each of its arrays, one of them all zeros."""
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 16)
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
        chunk.write_bytes(whole[:left])
        with pytest.raises(StoreError):
            everything(written)
        chunk.write_bytes(whole)


def test_a_lost_chunk_is_found_also_when_it_was_all_zeros(written: Path) -> None:
    chunks = chunk_files(written)
    assert any("zeros" in path.parts for path in chunks)
    for chunk in chunks:
        kept = chunk.read_bytes()
        chunk.unlink()
        with pytest.raises(StoreError, match="chunks are there"):
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
    assert -(-rows // store_module._chunk_rows(values)) == chunks


def test_a_large_embedding_store_is_at_most_twenty_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 rows, narrow ones, with chunks made smaller in the same proportion."""
    monkeypatch.setattr(store_module, "CHUNK_BYTES", (4 << 20) * 2 // 1536)
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


def test_a_flipped_bit_in_metadata_changes_no_value_unnoticed(written: Path) -> None:
    """Metadata has no checksum of Zarr's own: a flipped digit of a shape would be read as another array."""
    wrong = 0
    for path in sorted(written.rglob("zarr.json")):
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                found = everything(written)
            except StoreError:
                continue
            finally:
                path.write_bytes(whole)
            same = np.array_equal(found["embeddings"], EMBEDDINGS) and np.array_equal(found["zeros"], ZEROS)
            wrong += not same or found.keys() != {"embeddings", "zeros"}
    assert wrong == 0


def test_a_lost_array_is_found(written: Path) -> None:
    shutil.rmtree(written / "zeros")
    with pytest.raises(StoreError, match="cannot be read"):
        everything(written)
