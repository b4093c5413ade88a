"""Tiles go to the model in order, in batches of one size, read one batch ahead."""

import threading
from collections import defaultdict

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.embedding import embed
from pipeline.errors import ImageError
from pipeline.images import READ_FAILED, READ_OK
from support.images import StandIn

SIZE = (2, 2)


class Numbered(StandIn):
    """An image whose every tile shows its own number; some tiles cannot be read."""

    extent = (100, 2)

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken = broken
        self.reads: list[tuple[list[int], int]] = []
        self.begun: defaultdict[int, threading.Event] = defaultdict(threading.Event)

    def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        numbers = origins[:, 0] // 2
        self.reads.append((numbers.tolist(), threads))
        self.begun[len(self.reads)].set()
        tiles = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 2, 3)).astype(np.uint8)
        return tiles, np.where(np.isin(numbers, self.broken), READ_FAILED, READ_OK).astype(np.uint8)


class Doubles:
    """A model whose embedding of a tile is (number, twice the number)."""

    batch = 4

    def __init__(self) -> None:
        self.calls: list[int] = []

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        self.calls.append(len(tiles))
        numbers = tiles[:, 0, 0, 0].astype(np.float16)
        return np.stack([numbers, 2 * numbers], axis=1)


def origins(count: int) -> NDArray[np.int32]:
    return np.array([[2 * number, 0] for number in range(count)], np.int32)


def run(
    image: Numbered, count: int, max_unreadable: float = 0.0, threads: int = 1, model: Doubles | None = None
) -> tuple[list[list[float]], list[int]]:
    """All embeddings and all statuses."""
    batches = list(embed(image, origins(count), SIZE, model or Doubles(), max_unreadable, threads))
    return [row for values, _ in batches for row in values.tolist()], [s for _, status in batches for s in status]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_embeddings_come_in_the_order_of_the_tiles(count: int) -> None:
    values, status = run(Numbered(), count)
    assert values == [[number, 2 * number] for number in range(count)]
    assert status == [READ_OK] * count


def test_tiles_are_read_in_batches_of_the_models_size_with_the_threads_given() -> None:
    image, model = Numbered(), Doubles()
    run(image, 10, threads=3, model=model)
    assert image.reads == [([0, 1, 2, 3], 3), ([4, 5, 6, 7], 3), ([8, 9], 3)]
    assert model.calls == [4, 4, 2]


def test_unreadable_tiles_are_left_out_and_every_tile_has_a_status() -> None:
    values, status = run(Numbered(broken=(1, 6)), 9, max_unreadable=0.25)
    assert [row[0] for row in values] == [0, 2, 3, 4, 5, 7, 8]
    assert status == [0, 1, 0, 0, 0, 0, 1, 0, 0]


def test_a_batch_without_a_readable_tile_never_reaches_the_model() -> None:
    model = Doubles()
    values, status = run(Numbered(broken=(4, 5, 6, 7)), 9, max_unreadable=0.5, model=model)
    assert model.calls == [4, 1]
    assert [row[0] for row in values] == [0, 1, 2, 3, 8]
    assert len(status) == 9


@pytest.mark.parametrize(("broken", "fails"), [((0,), False), ((0, 9), True)])
def test_an_image_with_too_many_unreadable_tiles_fails(broken: tuple[int, ...], fails: bool) -> None:
    """Of ten tiles, one may be unreadable at max_unreadable 0.1, and two not."""
    if not fails:
        assert len(run(Numbered(broken), 10, max_unreadable=0.1)[0]) == 9
        return
    with pytest.raises(ImageError, match="2 of 10 tiles cannot be read .max_unreadable 0.1.: is the file whole"):
        run(Numbered(broken), 10, max_unreadable=0.1)


def test_a_reader_that_raises_is_heard() -> None:
    class Raises(Numbered):
        def look(self, origins: NDArray[np.int32], threads: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
            if self.reads:
                raise ImageError("the file ended")
            return super().look(origins, threads)

    with pytest.raises(ImageError, match="the file ended"):
        run(Raises(), 9)


def test_one_batch_is_read_while_the_model_works_and_never_two() -> None:
    """While the model has batch k, batch k+1 is being read, and k+2 is not: memory holds two batches."""
    image = Numbered()

    class Watches(Doubles):
        def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
            number = len(self.calls) + 1
            if number < 3:
                assert image.begun[number + 1].wait(10), "the next batch is not read ahead"
            assert len(image.reads) == min(number + 1, 3)
            return super().embed(tiles)

    assert len(run(image, 12, model=Watches())[0]) == 12
