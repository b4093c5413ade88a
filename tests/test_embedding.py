"""The model never waits for what can be done beside it, and every image gets its own tiles' embeddings or a reason."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import embedding as embedding_module
from pipeline.backbone import Backbone, load_backbone
from pipeline.embedding import MOST_WRITES, Embeds, embed
from pipeline.errors import ImageError, PipelineError
from pipeline.feeding import ROOMS, Entry, Row, Source
from pipeline.image_settings import BackboneSettings
from pipeline.partial import Partial
from support.disk import fill_disk
from support.images import Breaks, Numbered


class Sent:
    """A batch that is computed when its result is asked for, from the memory it was given."""

    def __init__(self, model: "Reads", number: int, tiles: NDArray[np.uint8]) -> None:
        self.model, self.number, self.tiles, self.as_given = model, number, tiles, tiles.copy()

    def result(self) -> tuple[NDArray[np.float32], float, float, float]:
        self.model.log.append(f"result {self.number}")
        assert np.array_equal(self.tiles, self.as_given), "the memory of a batch changed before its result was there"
        red, green, blue = self.tiles[:, 0, 0].astype(np.float32).T
        return np.stack([red, 256 * green + blue], axis=1), 0.25, 0.5, 1.0


class Reads:
    """A model whose embedding of a tile is (image, number), as its colours say."""

    def __init__(self, depth: int = 0, batch: int = 4) -> None:
        self.depth, self.batch = depth, batch
        self.log: list[str] = []
        self.batches: list[NDArray[np.uint8]] = []
        self.rooms = 0

    def begin(self) -> None:
        self.log.append("begin")

    def room(self, size: int) -> NDArray[np.uint8]:
        self.rooms += 1
        return np.full(size, 99, np.uint8)

    def submit(self, tiles: NDArray[np.uint8]) -> Sent:
        self.log.append(f"submit {len(self.batches)}")
        self.batches.append(tiles.copy())
        return Sent(self, len(self.batches) - 1, tiles)


class Shard:
    """Images with so many tiles each, and what came of embedding them."""

    def __init__(
        self, folder: Path, *images: tuple[Numbered, int] | Row | Exception, max_unreadable: float = 0
    ) -> None:
        self.folder, self.images, self.max_unreadable = folder, images, max_unreadable
        self.stores: dict[int, tuple[NDArray[Any], NDArray[np.uint8]]] = {}
        """Embeddings and statuses of finished images."""
        self.sources: dict[int, Source] = {}
        self.beats: list[tuple[int, int]] = []

    def partial(self, number: int) -> Partial:
        return Partial(self.folder / f"{number}.partial", f"{number}")

    @contextlib.contextmanager
    def opened(self, entry: Entry) -> Iterator[Source | Row]:
        number = entry["number"]
        found = self.images[number]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, dict):
            yield found
            return
        image, count = found
        yield Source(entry, image, image.origins(count), image.tile_size, self.partial(number))

    def finish(self, source: Source) -> Row:
        number = source.entry["number"]
        self.sources[number] = source
        with contextlib.closing(source.partial):
            values = source.readable(self.max_unreadable)
            self.stores[number] = values.copy(), source.status.copy()
        return {"instances": len(values), "seconds": source.seconds}

    def start(self, model: Embeds, threads: int = 1) -> Iterator[tuple[Entry, Row | ImageError]]:
        entries = [{"number": number} for number in range(len(self.images))]
        return embed(entries, self.opened, self.finish, model, threads, lambda *beat: self.beats.append(beat))

    def run(self, model: Embeds | None = None) -> dict[int, Row | ImageError]:
        """Outcomes by the images' numbers."""
        outcomes = list(self.start(model or Reads()))
        found = {entry["number"]: outcome for entry, outcome in outcomes}
        assert len(found) == len(outcomes) == len(self.images), "an image has no outcome, or two"
        return found

    def values(self) -> dict[int, list[list[float]]]:
        return {number: values.tolist() for number, (values, _) in self.stores.items()}

    def left(self) -> list[str]:
        return sorted(os.listdir(self.folder))


def tiles_of(number: int, count: int) -> list[list[float]]:
    """What `Reads` makes of the first tiles of an image."""
    return [[number, tile] for tile in range(count)]


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("counts", [(1,), (3,), (4,), (5, 1, 1, 1), (11, 2, 7), (300, 4, 1)])
def test_every_image_gets_the_embeddings_of_its_own_tiles_in_their_order(
    tmp_path: Path, counts: tuple[int, ...], depth: int
) -> None:
    shard = Shard(tmp_path, *((Numbered(number), count) for number, count in enumerate(counts)))
    model = Reads(depth)
    outcomes = shard.run(model)
    assert shard.values() == {number: tiles_of(number, count) for number, count in enumerate(counts)}
    assert [outcomes[number]["instances"] for number in outcomes] == list(counts)  # type: ignore[index]
    assert list(outcomes) == sorted(outcomes)
    assert {len(batch) for batch in model.batches} == {4}
    assert len(model.batches) == -(-sum(counts) // 4)
    assert model.rooms == min(len(model.batches), ROOMS)
    assert (model.batches[-1][sum(counts) % 4 or 4 :] == 0).all()
    assert shard.left() == []


def test_with_depth_a_batch_is_submitted_before_the_one_before_is_asked_for(tmp_path: Path) -> None:
    model = Reads(depth=1)
    Shard(tmp_path, (Numbered(), 12)).run(model)
    assert model.log == ["begin", "submit 0", "submit 1", "result 0", "submit 2", "result 1", "result 2"]


def test_without_depth_a_batch_is_asked_for_at_once(tmp_path: Path) -> None:
    model = Reads()
    Shard(tmp_path, (Numbered(), 12)).run(model)
    assert model.log == ["begin", "submit 0", "result 0", "submit 1", "result 1", "submit 2", "result 2"]


def test_tiles_are_read_while_the_model_works_and_never_more_than_there_are_rooms(tmp_path: Path) -> None:
    """While the model has batch k, the three behind it are read, and none beyond."""
    read = threading.Condition()

    class Announces(Numbered):
        def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            with read:
                read.notify_all()
                return super().look(origins, threads)

    class Waits(Reads):
        def submit(self, tiles: NDArray[np.uint8]) -> Sent:
            ahead = min(len(self.batches) + ROOMS, 8)
            with read:
                assert read.wait_for(lambda: len(image.reads) >= ahead, 10), "nothing is read ahead"
            time.sleep(0.02)  # for what must not happen
            assert len(image.reads) == ahead
            return super().submit(tiles)

    image = Announces()
    shard = Shard(tmp_path, (image, 32))
    shard.run(Waits())
    assert shard.values() == {0: tiles_of(0, 32)}


def test_stores_are_written_while_the_model_works_and_not_too_many_wait(tmp_path: Path) -> None:
    model = Reads(batch=1)
    seen: list[int] = []

    class Slow(Shard):
        def finish(self, source: Source) -> Row:
            if not seen:
                end = time.monotonic() + 10
                while len(model.batches) < MOST_WRITES + 1 and time.monotonic() < end:
                    time.sleep(0.001)
                time.sleep(0.1)  # for what must not happen
                seen.append(len(model.batches))
            return super().finish(source)

    shard = Slow(tmp_path, *((Numbered(number), 1) for number in range(30)))
    shard.run(model)
    assert seen == [MOST_WRITES + 1]
    assert shard.values() == {number: tiles_of(number, 1) for number in range(30)}


def test_unreadable_tiles_are_left_out_and_every_tile_has_a_status(tmp_path: Path) -> None:
    shard = Shard(tmp_path, (Numbered(1, broken=(1, 6)), 9), (Numbered(2, broken=(0,)), 4), max_unreadable=0.25)
    shard.run()
    assert shard.values() == {0: [[1, n] for n in (0, 2, 3, 4, 5, 7, 8)], 1: [[2, n] for n in (1, 2, 3)]}
    assert shard.stores[0][1].tolist() == [0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert shard.stores[1][1].tolist() == [1, 0, 0, 0]


def test_an_image_with_too_many_unreadable_tiles_fails_alone(tmp_path: Path) -> None:
    images = [(Numbered(1), 3), (Numbered(2, broken=(0, 9)), 10), (Numbered(3, broken=(0, 1)), 2), (Numbered(4), 3)]
    shard = Shard(tmp_path, *images, max_unreadable=0.1)
    outcomes = shard.run()
    assert str(outcomes[1]) == "2 of 10 tiles cannot be read (max_unreadable 0.1): is the file whole?"
    assert str(outcomes[2]) == "none of its 2 tiles can be read: is the file whole?"
    assert shard.values() == {0: [[1, n] for n in range(3)], 3: [[4, n] for n in range(3)]}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("at", [0, 1, 6, 18])
def test_an_image_that_breaks_costs_itself_and_those_in_its_batches_are_right(
    tmp_path: Path, at: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when some of it was kept already."""
    monkeypatch.setattr(embedding_module, "SAVE_SECONDS", 0)
    error = ImageError("the file ended")
    shard = Shard(tmp_path, (Numbered(0), 3), (Breaks(1, at, error), 19), (Numbered(2), 6))
    outcomes = shard.run(Reads(depth))
    assert outcomes[1] is error
    assert shard.values() == {0: tiles_of(0, 3), 2: tiles_of(2, 6)}
    assert shard.left() == []


def test_an_image_that_cannot_be_opened_or_finished_costs_itself(tmp_path: Path) -> None:
    class Refuses(Shard):
        def finish(self, source: Source) -> Row:
            if source.entry["number"] == 2:
                raise ImageError("its slices make no volume")
            return super().finish(source)

    closed = ImageError("it is no slide")
    shard = Refuses(tmp_path, (Numbered(0), 3), closed, (Numbered(2), 3), (Numbered(3), 3))
    outcomes = shard.run()
    assert outcomes[1] is closed
    assert str(outcomes[2]) == "its slices make no volume"
    assert shard.values() == {0: tiles_of(0, 3), 3: tiles_of(3, 3)}


def test_rows_of_images_that_are_finished_already_pass_through(tmp_path: Path) -> None:
    row = {"instances": 7, "store": "there"}
    shard = Shard(tmp_path, row, (Numbered(1), 2), row)
    model = Reads()
    outcomes = shard.run(model)
    assert (outcomes[0], outcomes[2]) == (row, row)
    assert len(model.batches) == 1


def test_nothing_is_asked_of_the_model_when_nothing_can_be_read(tmp_path: Path) -> None:
    model = Reads()
    Shard(tmp_path, ImageError("no"), (Breaks(1, 0, ImageError("no")), 3), {"instances": 1}).run(model)
    assert model.batches == []


class Fails(Reads):
    """A model whose machine breaks at its nth batch."""

    def __init__(self, at: int, where: str, depth: int = 0) -> None:
        super().__init__(depth)
        self.at, self.where = at, where

    def submit(self, tiles: NDArray[np.uint8]) -> Sent:
        if self.where == "submit" and len(self.batches) == self.at:
            raise PipelineError("device: the GPU stopped working")
        sent = super().submit(tiles)
        if self.where == "result" and sent.number == self.at:
            sent.result = self._broken  # type: ignore[method-assign]
        return sent

    def _broken(self) -> Any:
        raise PipelineError("device: the GPU stopped working")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("where", ["opening", "reading", "finish", "submit", "result"])
def test_what_is_no_images_fault_stops_everything_and_leaves_no_thread(tmp_path: Path, where: str, depth: int) -> None:
    before = set(threading.enumerate())
    error = OSError(errno.ENOSPC, "No space left on device")

    class Full(Shard):
        def finish(self, source: Source) -> Row:
            if where == "finish" and source.entry["number"] == 1:
                raise error
            return super().finish(source)

    second = {"opening": error, "reading": (Breaks(1, 3, error), 90)}.get(where, (Numbered(1), 90))
    shard = Full(tmp_path, (Numbered(0), 8), second, (Numbered(2), 900))  # type: ignore[arg-type]
    model = Fails(3, where, depth) if where in ("submit", "result") else Reads(depth)
    outcomes: list[tuple[Entry, Row | ImageError]] = []
    with pytest.raises((OSError, PipelineError), match="No space left|the GPU stopped working") as caught:
        outcomes.extend(shard.start(model))
    assert where in ("submit", "result") or caught.value is error
    assert set(threading.enumerate()) <= before
    assert [entry["number"] for entry, _ in outcomes] in ([], [0])
    assert 2 not in shard.stores


def test_whoever_wants_no_more_rows_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    shard = Shard(tmp_path, (Numbered(0), 8), (Numbered(1), 4000))
    rows = shard.start(Reads())
    assert next(rows)[0] == {"number": 0}
    rows.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before


def test_seconds_of_a_batch_are_shared_by_the_tiles_of_its_images(tmp_path: Path) -> None:
    """Each batch waits 0.25 s, is copied in 0.5 s and takes 1 s; the last is half empty."""
    shard = Shard(tmp_path, (Numbered(0), 5), (Numbered(1), 5))
    shard.run()
    # One whole batch and a quarter of the second; three quarters of that, and all that there is in the third.
    for number, batches in ((0, 1.25), (1, 1.75)):
        times = shard.sources[number].times
        assert (times.wait, times.copy, times.forward) == (0.25 * batches, 0.5 * batches, batches)


def test_seconds_of_all_images_add_up_to_those_that_the_loop_took(tmp_path: Path) -> None:
    class Works(Reads):
        def submit(self, tiles: NDArray[np.uint8]) -> Sent:
            time.sleep(0.02)
            return super().submit(tiles)

    shard = Shard(tmp_path, (Numbered(0), 50), (Numbered(1), 3), (Numbered(2), 30))
    began = time.perf_counter()
    outcomes = shard.run(Works())
    took = time.perf_counter() - began
    each = [outcomes[number]["seconds"] for number in range(3)]  # type: ignore[index]
    assert 0.8 * took <= sum(each) <= took
    assert each[0] > each[2] > each[1] > 0


def test_every_batch_says_how_far_its_images_are(tmp_path: Path) -> None:
    shard = Shard(tmp_path, (Numbered(0), 6), (Numbered(1), 5))
    shard.run()
    assert shard.beats == [(4, 6), (6, 6), (2, 5), (5, 5)]


CPU = torch.device("cpu")
SETTINGS = BackboneSettings(model="test_resnet", weights="random", input_size=32, batch=4)


class Noise(Numbered):
    """Tiles of 32 x 32 pixels of noise, each its own; some cannot be read."""

    tile_size = (32, 32)

    def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        _, status = super().look(origins, threads)
        seeds = [[self.number, int(x)] for x in origins[:, 0]]
        noise = [np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8) for seed in seeds]
        return np.stack(noise), status


class Dies:
    """A backbone whose process ends at its nth batch."""

    def __init__(self, backbone: Backbone, at: int) -> None:
        self.backbone, self.at = backbone, at
        self.batch, self.depth, self.begin, self.room = backbone.batch, 0, backbone.begin, backbone.room
        self.submitted = 0

    def submit(self, tiles: NDArray[np.uint8]) -> Any:
        if self.submitted == self.at:
            raise PipelineError("killed")
        self.submitted += 1
        return self.backbone.submit(tiles)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(SETTINGS, CPU)


def noise(folder: Path) -> Shard:
    """23 tiles and 9 of two images; of the first some cannot be read."""
    return Shard(folder, (Noise(0, broken=(2, 17)), 23), (Noise(1), 9), max_unreadable=0.2)


def bits(shard: Shard) -> dict[int, tuple[bytes, bytes]]:
    return {number: (values.tobytes(), status.tobytes()) for number, (values, status) in shard.stores.items()}


@pytest.fixture(scope="module")
def uninterrupted(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[bytes, bytes]]:
    shard = noise(tmp_path_factory.mktemp("uninterrupted"))
    shard.run(backbone)
    assert [len(values) for values, _ in shard.stores.values()] == [21, 9]
    return bits(shard)


@pytest.fixture
def kept_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_module, "SAVE_SECONDS", 0)


@pytest.mark.usefixtures("kept_at_once")
@pytest.mark.parametrize("at", range(8))
def test_a_killed_process_goes_on_where_it_was_and_ends_with_the_same_bits(
    tmp_path: Path, backbone: Backbone, uninterrupted: dict[int, tuple[bytes, bytes]], at: int
) -> None:
    """The two images are 32 tiles in 8 batches; killed at batch `at`, 4 * at tiles are embedded."""
    killed = noise(tmp_path)
    with pytest.raises(PipelineError, match="killed"):
        killed.run(Dies(backbone, at))
    again = noise(tmp_path)
    finished = set(killed.stores)
    if finished:  # the stage finds its store
        again.images = ({"instances": 21}, again.images[1])
    model = Dies(backbone, 99)
    again.run(model)
    assert model.submitted == -(-(32 - 4 * at) // 4)
    assert bits(killed) | bits(again) == uninterrupted
    assert again.left() == []


@pytest.mark.usefixtures("kept_at_once")
def test_killed_again_and_again_it_comes_to_the_same_end(
    tmp_path: Path, backbone: Backbone, uninterrupted: dict[int, tuple[bytes, bytes]]
) -> None:
    shard = Shard(tmp_path, noise(tmp_path).images[0], max_unreadable=0.2)
    for _ in range(5):
        with pytest.raises(PipelineError, match="killed"):
            shard.run(Dies(backbone, 1))
    assert shard.stores == {}
    model = Dies(backbone, 99)
    shard.run(model)
    assert model.submitted == 1
    assert bits(shard)[0] == uninterrupted[0]


@pytest.mark.usefixtures("kept_at_once")
@pytest.mark.parametrize(("damage", "batches"), [("none", 1), ("flipped", 3), ("cut", 3), ("another key", 6)])
def test_runs_that_cannot_be_trusted_are_embedded_again(
    tmp_path: Path, backbone: Backbone, uninterrupted: dict[int, tuple[bytes, bytes]], damage: str, batches: int
) -> None:
    """Five runs of four tiles are kept of 23: with the fourth damaged 11 are left to do, with none of this key all."""
    with pytest.raises(PipelineError, match="killed"):
        noise(tmp_path).run(Dies(backbone, 5))
    chunk = tmp_path / "0.partial/000000012.zarr/embeddings/c/0/0"
    content = bytearray(chunk.read_bytes())
    if damage == "flipped":
        content[3] ^= 16
    chunk.write_bytes(content[:-1] if damage == "cut" else content)
    shard = Shard(tmp_path, noise(tmp_path).images[0], max_unreadable=0.2)
    if damage == "another key":
        shard.partial = lambda number: Partial(tmp_path / "0.partial", "new")  # type: ignore[method-assign]
    model = Dies(backbone, 99)
    shard.run(model)
    assert model.submitted == batches
    assert bits(shard)[0] == uninterrupted[0]
    assert shard.left() == []


@pytest.mark.usefixtures("kept_at_once")
def test_an_image_that_had_only_its_store_to_be_written_needs_no_model(
    tmp_path: Path, backbone: Backbone, uninterrupted: dict[int, tuple[bytes, bytes]]
) -> None:
    class Full(Shard):
        def finish(self, source: Source) -> Row:
            source.save(source.done)
            raise OSError(errno.ENOSPC, "No space left on device", str(self.folder))

    image = noise(tmp_path).images[0]
    with pytest.raises(OSError, match="No space left"):
        Full(tmp_path, image).run(backbone)
    shard, model = Shard(tmp_path, image, max_unreadable=0.2), Dies(backbone, 0)
    shard.run(model)
    assert bits(shard)[0] == uninterrupted[0]
    assert shard.left() == []


def test_what_is_embedded_is_kept_as_often_as_promised_and_not_with_every_batch(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ages(Dies):
        """Lets half of the time between two runs pass with each batch."""

        def submit(self, tiles: NDArray[np.uint8]) -> Any:
            moment[0] += embedding_module.SAVE_SECONDS / 2 + 0.1
            return super().submit(tiles)

    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    shard = noise(tmp_path)
    monkeypatch.setattr(shard, "opened", with_clock(shard, moment))
    with pytest.raises(PipelineError, match="killed"):
        shard.run(Ages(backbone, 5))
    assert shard.left() == ["0.partial"]
    assert sorted(os.listdir(tmp_path / "0.partial")) == ["000000000.zarr", "000000008.zarr"]


def with_clock(shard: Shard, moment: list[float]) -> Any:
    """Opens images as the shard does, and looks at this clock."""
    opened = shard.opened

    @contextlib.contextmanager
    def open_at(entry: Entry) -> Iterator[Source | Row]:
        with opened(entry) as source:
            if isinstance(source, Source):
                source.saved_at = moment[0]
            yield source

    return open_at


@pytest.mark.usefixtures("kept_at_once")
def test_a_disk_that_is_full_for_what_is_kept_is_named_and_fails_no_image(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_disk(monkeypatch)
    outcomes: list[tuple[Entry, Row | ImageError]] = []
    with pytest.raises(OSError, match="No space left") as caught:
        outcomes.extend(noise(tmp_path).start(backbone))
    assert caught.value.filename == str(tmp_path / "0.partial")
    assert outcomes == []
