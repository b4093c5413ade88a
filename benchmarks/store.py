"""Embedding stores: reading and writing against np.load and other layouts; small stores; flipped bytes."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Figure, figure, main, say
from numpy.typing import NDArray

ROWS, WIDTH, SOME, FLIPS = 15_000, 1536, 256, 300
SMALL = (40, 512)
"""A CT series: slices and features."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """One way of keeping an array (row, feature)."""

    what: str
    write: Callable[[Path, Array], None]
    read: Callable[[Path], Array]
    rows: Callable[[Path, Array], Array]
    """Some rows, whose numbers are given in order."""


def measure(folder: Path, quick: bool) -> list[Figure]:
    """Small stores, all layouts in turns, flipped bytes; on the disk of temporary files."""
    rounds = 2 if quick else 15
    rng = np.random.default_rng(0)
    say("small stores")  # first: what is written later keeps the disk busy for a while
    small = small_stores(folder, 5 if quick else 100)
    values = rng.standard_normal((ROWS // 10 if quick else ROWS, WIDTH)).astype(np.float16)
    say(f"{len(layouts())} layouts of {len(values)} x {WIDTH} fp16, {rounds} rounds")
    found = [*compare(folder, values, np.sort(rng.choice(len(values), SOME, replace=False)), rounds), *small]
    say("flipped bytes")
    return [*found, flipped(folder, values[: ROWS // 10], 20 if quick else FLIPS)]


def arrays_of(values: Array) -> dict[str, Array]:
    """What `embed` stores beside embeddings."""
    return {
        "embeddings": values,
        "origins": np.arange(len(values) * 2, dtype=np.int32).reshape(-1, 2),
        "status": np.zeros(len(values), np.uint8),
    }


def layouts() -> dict[str, Layout]:
    """By name; the first is ours."""
    from pipeline.store import Store, write_store

    def write_ours(path: Path, values: Array) -> None:
        write_store(path, arrays_of(values), {"key": "k"})

    found = {
        "ours": Layout(
            "our store, with origins and status",
            write_ours,
            lambda path: Store(path, "k").read("embeddings"),
            lambda path, rows: Store(path, "k").read("embeddings", rows),
        ),
        "npy": Layout(
            "np.save and np.load, no checksum", write_npy, np.load, lambda p, r: np.load(p, mmap_mode="r")[r]
        ),
    }
    theirs = by_zarr("", 1, None)
    found["ours_by_zarr"] = Layout(
        "our store, read through Zarr",
        write_ours,
        lambda path: theirs.read(path / "embeddings"),
        lambda path, rows: theirs.rows(path / "embeddings", rows),
    )
    for rows in (512, 1024, 4096):
        found[f"zarr_{rows}"] = by_zarr(f"Zarr, chunks of {rows} rows", rows, None)
    found["zarr_one"] = by_zarr("Zarr, one chunk", 0, None)
    found["zarr_shards"] = by_zarr("Zarr, chunks of 512 rows in shards of 4,096", 512, 4096)
    found["zarr_one_shard"] = by_zarr("Zarr, chunks of 512 rows in one shard", 512, 0)
    found["h5_1"] = by_h5("HDF5, chunks of 1 row, no checksum", (1, WIDTH))
    found["h5_512"] = by_h5("HDF5, chunks of 512 rows, no checksum", (512, WIDTH))
    found["h5_contiguous"] = by_h5("HDF5, contiguous, no checksum", None)
    return found


def write_npy(path: Path, values: Array) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def by_zarr(what: str, chunk: int, shard: int | None) -> Layout:
    """Through Zarr's own writer and reader, uncompressed, with crc32c; 0 stands for all rows."""
    import zarr
    from zarr.codecs import Crc32cCodec

    def write(path: Path, values: Array) -> None:
        rows = min(chunk or len(values), len(values))
        shards = None if shard is None else (-(-(shard or len(values)) // rows) * rows, WIDTH)
        zarr.create_array(path, data=values, chunks=(rows, WIDTH), shards=shards, compressors=[Crc32cCodec()])

    def some(path: Path, rows: Array) -> Array:
        return np.asarray(opened(path).get_orthogonal_selection((rows, slice(None))))

    def opened(path: Path) -> "zarr.Array[Any]":
        return zarr.open_array(path, mode="r")

    return Layout(what + ", crc32c", write, lambda path: np.asarray(opened(path)[:]), some)


def by_h5(what: str, chunks: tuple[int, int] | None) -> Layout:
    import h5py

    def write(path: Path, values: Array) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("x", data=values, chunks=chunks and (min(chunks[0], len(values)), chunks[1]))

    def read(path: Path, rows: "Array | slice" = slice(None)) -> Array:
        with h5py.File(path, "r") as file:
            return np.asarray(file["x"][rows])

    return Layout(what, write, read, read)


def compare(folder: Path, values: Array, some: Array, rounds: int) -> list[Figure]:
    """Every layout in every round: written, read, some rows read, from the page cache. The first does not count."""
    kept = layouts()
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for name, layout in kept.items():
            path = folder / name
            remove(path)
            jobs: dict[str, Callable[[], object]] = {
                "write": partial(layout.write, path, values),
                "read": partial(layout.read, path),
                "rows": partial(layout.rows, path, some),
            }
            for job, do in jobs.items():
                took = seconds_of(do)
                if number:
                    times.setdefault((name, job), []).append(took)
    for name, layout in kept.items():
        assert np.array_equal(layout.read(folder / name), values), name
        assert np.array_equal(layout.rows(folder / name, some), values[some]), name

    def ratio(name: str) -> float:
        return median(npy / its for npy, its in zip(times["npy", "read"], times[name, "read"], strict=True))

    def said(name: str) -> str:
        read, write = (values.nbytes / 1e6 / median(times[name, job]) for job in ("read", "write"))
        held = files(folder / name)
        size = sum(path.stat().st_size for path in held) / 1e6
        return (
            f"{kept[name].what}: read {read:.0f} MB/s, written {write:.0f} MB/s, {SOME} random rows "
            f"{median(times[name, 'rows']) * 1e3:.1f} ms, {len(held)} files, {size:.1f} MB"
        )

    what = f"np.load over `Store` and `read`, {values.shape} fp16, page cache, {rounds} rounds in turns: "
    others = [name for name in kept if name not in {"ours", "npy"}]
    found = [
        figure("store.read_vs_npy", ratio("ours"), "x", None, f"{what}{said('ours')}; {said('npy')}", least=0.5),
        figure("store.files", len(files(folder / "ours")), "", 20, "of that store"),
        *(figure(f"store.{name}_vs_npy", ratio(name), "x", None, said(name)) for name in others),
    ]
    return found


def small_stores(folder: Path, rounds: int) -> list[Figure]:
    """A store of a CT series, and the same arrays written and read by Zarr, in turns."""
    import zarr
    from zarr.codecs import Crc32cCodec

    from pipeline.store import Store, write_store

    arrays = arrays_of(np.random.default_rng(0).standard_normal(SMALL).astype(np.float16))
    ours, theirs = folder / "small", folder / "theirs"

    def write_theirs() -> None:
        group = zarr.create_group(theirs, attributes={"key": "k"})
        for name, values in arrays.items():
            group.create_array(name, data=values, chunks=values.shape, compressors=[Crc32cCodec()])

    jobs: dict[str, tuple[str, Callable[[], object]]] = {
        "write_small": ("a store", lambda: write_store(ours, arrays, {"key": "k"})),
        "read_small": ("opened, and its embeddings read", lambda: Store(ours, "k").read("embeddings")),
        "zarr_write_small": ("the same arrays through Zarr, without digests and rename", write_theirs),
        "zarr_read_small": ("through Zarr, without digests", lambda: zarr.open_group(theirs)["embeddings"][:]),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (_, job) in jobs.items():
            times[name].append(seconds_of(job))
        remove(ours)
        remove(theirs)
    of = f"{SMALL} fp16 with origins and status, {rounds} rounds in turns"
    say_of = {name: f"{what}; {of}" for name, (what, _) in jobs.items()}
    return [figure(f"store.{name}_ms", median(times[name]) * 1e3, "ms", None, say_of[name]) for name in jobs]


def flipped(folder: Path, values: Array, flips: int) -> Figure:
    """The share of flipped bits that reading notices, at random places in every file of a store."""
    from pipeline.errors import StoreError
    from pipeline.store import Store, write_store

    path, rng, noticed = folder / "flipped", np.random.default_rng(0), 0
    write_store(path, arrays_of(values), {"key": "k"})
    for number in range(flips):
        held = files(path)
        file = held[number % len(held)]
        whole = file.read_bytes()
        torn = bytearray(whole)
        torn[rng.integers(len(torn))] ^= 1 << int(rng.integers(8))
        file.write_bytes(torn)
        try:
            store = Store(path, "k")
            for name in store.names():
                store.read(name)
        except StoreError:
            noticed += 1
        file.write_bytes(whole)
    what = f"of {flips} bits flipped one at a time, in all files of a store of {values.shape} fp16 in turn"
    return figure("store.flips_found", noticed / flips, "", None, what, least=1)


def seconds_of(job: Callable[[], object]) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def files(path: Path) -> list[Path]:
    return sorted(each for each in [path, *path.rglob("*")] if each.is_file())


def remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", measure))
