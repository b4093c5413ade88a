"""Tiles of many images come in batches of one size, in order, and never more of them than there are rooms."""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import feeding
from pipeline.errors import ImageError
from pipeline.feeding import ROOMS, Batch, End, Entry, Reader, Row, Source
from pipeline.images import READ_FAILED, READ_OK
from pipeline.partial import Partial
from support.images import Breaks, Numbered


class Memory:
    """Rooms for batches of four tiles, full of what was there before."""

    batch = 4

    def __init__(self) -> None:
        self.made: list[int] = []

    def room(self, size: int) -> NDArray[np.uint8]:
        self.made.append(size)
        return np.full(size, 99, np.uint8)


class Wide(Numbered):
    """Tiles of 4 x 2 pixels."""

    tile_size = (4, 2)


class Shard:
    """Images with so many tiles each, or their rows; and what came of reading them."""

    def __init__(self, folder: Path, **images: tuple[Numbered, int] | Row | Exception) -> None:
        self.folder, self.images = folder, images
        self.memory = Memory()
        self.taken: list[str] = []
        self.closed: list[str] = []

    def entries(self) -> Iterator[Entry]:
        for name in self.images:
            self.taken.append(name)
            yield {"id": name}

    @contextlib.contextmanager
    def opened(self, entry: Entry) -> Iterator[Source | Row]:
        found = self.images[entry["id"]]
        if isinstance(found, Exception):
            raise found
        try:
            yield found if isinstance(found, dict) else self.source(entry, *found)
        finally:
            self.closed.append(entry["id"])

    def source(self, entry: Entry, image: Numbered, count: int) -> Source:
        return Source(entry, image, image.origins(count), image.tile_size, self.partial(entry["id"]))

    def partial(self, name: str) -> Partial:
        return Partial(self.folder / f"{name}.partial", name)

    def reader(self, threads: int = 1) -> Reader:
        return Reader(self.entries(), self.opened, self.memory, threads)

    def read(self) -> list[Any]:
        """All that the reader has to say; a batch as (its tiles, its parts)."""
        reader, found = self.reader(), []
        while (item := reader.ready.get(timeout=10)) is not End:
            if isinstance(item, Batch):
                found.append(
                    (item.tiles.copy(), [(p.source.entry["id"], p.first, p.status.tolist()) for p in item.parts])
                )
                reader.rooms.put(item.room)
            elif isinstance(item, Exception):
                raise item
            else:
                found.append(item)
        reader._thread.join(10)
        assert not reader._thread.is_alive()
        return found


def colours(tiles: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """(image, tile) of each tile, as all of its pixels say."""
    assert (tiles == tiles[:, :1, :1]).all()
    return [(int(red), 256 * int(green) + int(blue)) for red, green, blue in tiles[:, 0, 0]]


def test_the_end_of_one_image_and_the_beginning_of_the_next_share_a_batch_and_the_last_is_filled_with_black(
    tmp_path: Path,
) -> None:
    shard = Shard(tmp_path, a=(Numbered(1), 6), b=(Numbered(2), 3), c=(Numbered(3), 1))
    batches = shard.read()
    assert [colours(tiles) for tiles, _ in batches] == [
        [(1, 0), (1, 1), (1, 2), (1, 3)],
        [(1, 4), (1, 5), (2, 0), (2, 1)],
        [(2, 2), (3, 0), (0, 0), (0, 0)],
    ]
    assert [parts for _, parts in batches] == [
        [("a", 0, [0, 0, 0, 0])],
        [("a", 4, [0, 0]), ("b", 0, [0, 0])],
        [("b", 2, [0]), ("c", 0, [0])],
    ]


def test_numbers_of_tiles_beyond_a_byte_arrive(tmp_path: Path) -> None:
    batches = Shard(tmp_path, a=(Numbered(7), 1001)).read()
    assert len(batches) == 251
    assert [pair for tiles, _ in batches for pair in colours(tiles)][:1001] == [(7, n) for n in range(1001)]


def test_tiles_of_another_size_begin_a_batch(tmp_path: Path) -> None:
    batches = Shard(tmp_path, a=(Numbered(1), 3), b=(Wide(2), 2), c=(Numbered(3), 2)).read()
    assert [tiles.shape for tiles, _ in batches] == [(4, 2, 2, 3), (4, 2, 4, 3), (4, 2, 2, 3)]
    assert [colours(tiles) for tiles, _ in batches] == [
        [(1, 0), (1, 1), (1, 2), (0, 0)],
        [(2, 0), (2, 1), (0, 0), (0, 0)],
        [(3, 0), (3, 1), (0, 0), (0, 0)],
    ]


def test_an_image_is_read_batch_by_batch_with_the_threads_given(tmp_path: Path) -> None:
    first, second = Numbered(1), Numbered(2)
    shard = Shard(tmp_path, a=(first, 6), b=(second, 3))
    reader = shard.reader(threads=3)
    for _ in range(3):
        reader.ready.get(timeout=10)
    assert first.reads == [([0, 1, 2, 3], 3), ([4, 5], 3)]
    assert second.reads == [([0, 1], 3), ([2], 3)]
    reader.stop()


def test_every_tile_has_the_status_that_its_reader_gave_it(tmp_path: Path) -> None:
    (_, first), (_, second) = Shard(tmp_path, a=(Numbered(broken=(1, 4)), 6)).read()
    assert first == [("a", 0, [READ_OK, READ_FAILED, READ_OK, READ_OK])]
    assert second == [("a", 4, [READ_FAILED, READ_OK])]


def test_no_more_batches_are_read_than_there_are_rooms(tmp_path: Path) -> None:
    image = Numbered()
    shard = Shard(tmp_path, a=(image, 40), b=(Numbered(), 1))
    reader = shard.reader()
    batches = [reader.ready.get(timeout=10) for _ in range(ROOMS)]
    time.sleep(0.1)  # for what must not happen
    assert len(image.reads) == ROOMS
    assert shard.taken == ["a"]
    reader.rooms.put(batches[0].room)
    assert np.shares_memory(reader.ready.get(timeout=10).tiles, batches[0].room)
    time.sleep(0.1)
    assert len(image.reads) == ROOMS + 1
    reader.stop()


def test_rooms_are_made_once_and_used_by_all_batches(tmp_path: Path) -> None:
    shard = Shard(tmp_path, a=(Numbered(), 100), b=(Numbered(), 50))
    assert len(shard.read()) == 38
    assert shard.memory.made == [4 * 2 * 2 * 3] * ROOMS


def test_rooms_grow_with_the_tiles_and_do_not_shrink(tmp_path: Path) -> None:
    images = {f"{n}": ((Numbered, Wide)[n % 2](n), 20) for n in range(4)}
    shard = Shard(tmp_path, **images)
    shard.read()
    assert sorted(shard.memory.made) == [48] * ROOMS + [96] * ROOMS


def test_rows_of_images_that_are_finished_already_pass_through(tmp_path: Path) -> None:
    row = {"instances": 3}
    found = Shard(tmp_path, a=(Numbered(1), 4), b=row, c=(Numbered(3), 4)).read()
    assert found[1] == ({"id": "b"}, row)
    assert [colours(found[n][0])[0] for n in (0, 2)] == [(1, 0), (3, 0)]


def keep(partial: Partial, count: int) -> None:
    """What an earlier process left of an image."""
    partial.save(0, np.full((count, 2), 0.5, np.float16), np.array([READ_FAILED] + [READ_OK] * (count - 1), np.uint8))


def test_an_image_goes_on_behind_the_tiles_that_are_kept(tmp_path: Path) -> None:
    image = Numbered(1)
    shard = Shard(tmp_path, a=(image, 8))
    keep(shard.partial("a"), 5)
    ((tiles, parts),) = shard.read()
    assert colours(tiles) == [(1, 5), (1, 6), (1, 7), (0, 0)]
    assert parts == [("a", 5, [0, 0, 0])]


def test_an_image_whose_tiles_are_all_kept_is_given_to_be_finished_and_not_read(tmp_path: Path) -> None:
    image = Numbered(1)
    shard = Shard(tmp_path, a=(image, 5))
    keep(shard.partial("a"), 5)
    (source,) = shard.read()
    assert image.reads == []
    assert source.readable(0.2).tolist() == [[0.5, 0.5]] * 4
    assert source.status.tolist() == [1, 0, 0, 0, 0]


def test_an_image_that_cannot_be_opened_is_said_and_the_next_is_read(tmp_path: Path) -> None:
    error = ImageError("it is no slide")
    found = Shard(tmp_path, a=error, b=(Numbered(2), 4)).read()
    assert found[0] == ({"id": "a"}, error)
    assert colours(found[1][0])[0] == (2, 0)


def test_an_image_that_breaks_midway_is_given_to_be_finished_and_its_neighbours_are_whole(tmp_path: Path) -> None:
    error = ImageError("the file ended")
    shard = Shard(tmp_path, a=(Numbered(1), 2), b=(Breaks(2, 3, error), 9), c=(Numbered(3), 4))
    first, broken, *rest = shard.read()
    assert isinstance(broken, Source)
    assert broken.entry == {"id": "b"}
    with pytest.raises(ImageError) as caught:
        broken.readable(1.0)
    assert caught.value is error
    assert colours(first[0]) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert [pair for tiles, _ in rest for pair in colours(tiles)][:4] == [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert shard.closed == ["a", "b", "c"]


def test_images_that_break_at_their_first_tile_cost_no_batch(tmp_path: Path) -> None:
    bad = {f"{n}": (Breaks(n, 0, ImageError("no")), 3) for n in range(2 * ROOMS)}
    found = Shard(tmp_path, **bad, good=(Wide(9), 4), worse=(Breaks(3, 0, ImageError("no")), 2)).read()
    batches = [item for item in found if isinstance(item, tuple)]
    assert [colours(tiles) for tiles, _ in batches] == [[(9, 0), (9, 1), (9, 2), (9, 3)]]
    assert len(found) == 2 * ROOMS + 2


@pytest.mark.parametrize("where", ["opening", "reading", "entries"])
def test_what_is_no_images_fault_ends_the_reader_and_is_handed_on(tmp_path: Path, where: str) -> None:
    error = OSError(28, "No space left on device")

    def entries() -> Iterable[Entry]:
        yield {"id": "a"}
        if where == "entries":
            raise error
        yield {"id": "b"}

    shard = Shard(tmp_path, a=(Numbered(1), 4), b=error if where == "opening" else (Breaks(2, 1, error), 4))
    reader = Reader(entries(), shard.opened, shard.memory, 1)
    assert isinstance(reader.ready.get(timeout=10), Batch)
    assert reader.ready.get(timeout=10) is error
    reader._thread.join(10)
    assert not reader._thread.is_alive()


@pytest.mark.parametrize("images", ["many tiles", "many rows"])
def test_a_reader_that_is_stopped_closes_its_image_and_takes_no_other(tmp_path: Path, images: str) -> None:
    """Before a room, and also where it needs none."""
    begun, go = threading.Event(), threading.Event()

    class Waits(Numbered):
        def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            begun.set()
            assert go.wait(10)
            return super().look(origins, threads)

    shard = Shard(tmp_path, a=(Waits(1), 400 if images == "many tiles" else 1), **{f"{n}": {"n": n} for n in range(99)})
    reader = shard.reader()
    assert begun.wait(10)
    stopping = threading.Timer(0.1, go.set)
    stopping.start()
    reader.stop()  # comes back when the thread has ended
    assert not reader._thread.is_alive()
    assert shard.taken in (["a"], ["a", "0"])  # the next may have been asked for, and is not opened
    assert shard.closed == ["a"]


@pytest.mark.parametrize(("read_seconds", "read", "decode"), [(8.0, 4.0, 16.0), (100.0, 20.0, 0.0), (None, 0.0, 20.0)])
def test_seconds_are_told_apart_into_opening_reading_and_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_seconds: float | None, read: float, decode: float
) -> None:
    """Two threads waited 8 s of 20 s for the disk, 4 s each. An image that cannot tell decoded all the time."""

    class Tells(Numbered):
        def reading(self) -> dict[str, object]:
            return {} if read_seconds is None else {"read_seconds": read_seconds}

    clock = iter([0.0, 3.0, 10.0, 30.0])  # asked for, opened, read from and to
    monkeypatch.setattr(feeding, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    reader = Shard(tmp_path, a=(Tells(), 4)).reader(threads=2)
    (part,) = reader.ready.get(timeout=10).parts
    assert reader.ready.get(timeout=10) is End
    times = part.source.times
    assert (times.open, times.read, times.decode) == (3.0, read, decode)


@pytest.mark.parametrize(
    ("broken", "most", "said"),
    [
        ((), 0.0, None),
        ((3,), 0.1, None),
        ((3, 7), 0.1, r"2 of 10 tiles cannot be read \(max_unreadable 0.1\): is the file whole\?"),
        (tuple(range(10)), 1.0, r"none of its 10 tiles can be read: is the file whole\?"),
    ],
)
def test_tiles_that_could_not_be_read_are_left_out_and_too_many_are_refused(
    tmp_path: Path, broken: tuple[int, ...], most: float, said: str | None
) -> None:
    image = Numbered(broken=broken)
    source = Shard(tmp_path).source({"id": "a"}, image, 10)
    _, status = image.read(source.origins, source.size)
    for first in (0, 4):
        numbers = np.arange(first, min(first + 6, 10), dtype=np.float32)
        source.take(first, np.stack([numbers, -numbers], 1), status[first : first + 6])
    assert source.done == 10
    if said:
        with pytest.raises(ImageError, match=said):
            source.readable(most)
        return
    assert source.readable(most).tolist() == [[n, -n] for n in range(10) if n not in broken]
