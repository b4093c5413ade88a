"""Turns the tiles of many images into embeddings, while the model never waits for what can be done beside it.

    reader's thread            caller's thread          writer's thread
    open, read, decode   ->    copy, forward      ->    store

The reader (pipeline/feeding.py) keeps batches ready; what is finished is written behind the model's back.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, StoreError
from pipeline.feeding import Batch, End, Entry, Memory, Opened, Reader, Row, Source
from pipeline.partial import Embeddings

SAVE_SECONDS = 30.0
"""What was embedded of one image is kept so often: a killed job loses no more, and a few batches."""

MOST_WRITES = 8
"""Finished images that may wait to be written before the model waits too."""


class Pending(Protocol):
    """A batch on its way through the model."""

    def result(self) -> tuple[Embeddings, float, float, float]:
        """Embeddings (tile, feature); seconds that the model stood still before it, of its copy and of its forward."""
        ...


class Embeds(Memory, Protocol):
    """What is needed of a backbone."""

    @property
    def depth(self) -> int:
        """Batches that may be on their way before the first is asked for."""
        ...

    def begin(self) -> None:
        """From now on the model stands still until it is given a batch."""
        ...

    def submit(self, tiles: NDArray[np.uint8]) -> Pending:
        """Start a whole batch (tile, height, width, 3); its memory must not change before its result is there."""
        ...


Finish = Callable[[Source], Row]
"""Writes what came of an image, in another thread; its row."""


def embed(
    entries: Iterable[Entry],
    opened: Opened,
    finish: Finish,
    backbone: Embeds,
    threads: int = 1,
    beat: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[tuple[Entry, Row | ImageError | StoreError]]:
    """The rows of images, or why there is none, as they are finished.

    Args:
        entries: what `opened` needs to know of each image; taken only as fast as the model works.
        opened: gives an image to read.
        finish: called with every image whose tiles are all embedded, or that cannot be read on.
        backbone: the model.
        threads: that read and decode.
        beat: called with tiles done and tiles in all of the image that is worked on.

    Raises:
        Exception: what `opened`, `finish`, a reader or the model raise, unless it is an ImageError, or a StoreError of
            `opened`, which are outcomes.
    """
    reader = Reader(entries, opened, backbone, threads)
    writes: deque[tuple[Source, Future[Row | None]]] = deque()
    computing: deque[tuple[Batch, Pending]] = deque()
    with ThreadPoolExecutor(1) as writer:
        try:
            backbone.begin()
            settled = time.perf_counter()
            while True:
                match item := reader.ready.get():
                    case Batch():
                        computing.append((item, backbone.submit(item.tiles)))
                    case Source():
                        writes.append((item, writer.submit(finish, item)))
                    case BaseException():
                        raise item
                    case (entry, outcome):
                        yield entry, outcome
                while len(computing) > (0 if item is End else backbone.depth):
                    batch, pending = computing.popleft()
                    for source in settle(batch, pending, settled):
                        if source.done == len(source.origins):
                            writes.append((source, writer.submit(finish, source)))
                        elif time.monotonic() - source.saved_at > SAVE_SECONDS:
                            source.saved_at = time.monotonic()
                            writes.append((source, writer.submit(source.save, source.done)))
                        beat(source.done, len(source.origins))
                    settled = time.perf_counter()
                    reader.rooms.put(batch.room)
                while writes and (writes[0][1].done() or len(writes) > MOST_WRITES or item is End):
                    yield from written(*writes.popleft())
                if item is End:
                    return
        finally:
            reader.stop()


def settle(batch: Batch, pending: Pending, since: float) -> list[Source]:
    """Put the embeddings of a batch where they belong, and the time it took; the images that have more now."""
    values, wait, copy, forward = pending.result()
    took = time.perf_counter() - since
    at, images = 0, []
    for part in batch.parts:
        count = len(part.status)
        share = count / batch.filled
        source = part.source
        source.seconds += took * share
        source.times.wait += wait * share
        source.times.copy += copy * share
        source.times.forward += forward * share
        if not source.error:
            source.take(part.first, values[at : at + count], part.status)
            images.append(source)
        at += count
    return images


def written(source: Source, future: "Future[Row | None]") -> Iterator[tuple[Entry, Row | ImageError]]:
    """The row of an image, or why it has none, once its store is written; nothing when a part of it is."""
    try:
        if row := future.result():
            yield source.entry, row
    except ImageError as error:
        yield source.entry, error
