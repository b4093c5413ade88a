"""Reads the tiles of many images into batches of one size, in a thread of its own.

Tiles of one image after the other fill a batch, so that the end of one image and the beginning of the next share one.
A few rooms for batches go round: the thread stops when all are full, so memory does not grow.
"""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError, StoreError
from pipeline.images import READ_OK, Image
from pipeline.partial import Embeddings, Partial
from pipeline.timing import Times

ROOMS = 4
"""Batches in memory: one being filled, one waiting, one computed, and one behind it so that no core stands still."""

Entry = dict[str, Any]
Row = dict[str, Any]


@dataclass(eq=False)
class Source:
    """An image on its way: what is read of it, and what came back."""

    entry: Entry
    image: Image
    origins: NDArray[np.int32]
    """(tile, axis), x first."""
    size: tuple[int, ...]
    """Of a tile, x first."""
    partial: Partial
    times: Times = field(default_factory=Times)
    status: NDArray[np.uint8] = field(init=False)
    """(tile,), of those embedded so far READ_OK or READ_FAILED."""
    embeddings: Embeddings | None = None
    """(tile, feature) of all tiles; those that could not be read stand for nothing."""
    done: int = 0
    saved: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    error: ImageError | None = None
    """Why reading it ended early."""
    seconds: float = 0.0
    """Of the whole that this image took; those of all images add up to it."""

    def __post_init__(self) -> None:
        """Take up what an earlier process left."""
        self.status = np.zeros(len(self.origins), np.uint8)
        if kept := self.partial.load():
            values, status = kept
            self.done = self.saved = len(status)
            self.status[: self.done] = status
            self._store(0, values)

    def take(self, first: int, values: Embeddings, status: NDArray[np.uint8]) -> None:
        """Put in place what came back of some tiles in a row."""
        self._store(first, values)
        self.status[first : first + len(values)] = status
        self.done = first + len(values)

    def _store(self, first: int, values: Embeddings) -> None:
        if self.embeddings is None:
            self.embeddings = np.empty((len(self.origins), values.shape[1]), values.dtype)
        self.embeddings[first : first + len(values)] = values

    def readable(self, most: float) -> Embeddings:
        """The embeddings (tile, feature) of the tiles that could be read.

        Raises:
            ImageError: reading ended early, more than the share `most` of the tiles could not be read, or none could.
        """
        if self.error:
            raise self.error
        read = self.status == READ_OK
        lost = len(read) - int(read.sum())
        if lost == len(read):
            raise ImageError(f"none of its {lost} tiles can be read: is the file whole?")
        if lost > most * len(read):
            raise ImageError(
                f"{lost} of {len(read)} tiles cannot be read (max_unreadable {most:g}): is the file whole?"
            )
        assert self.embeddings is not None
        return self.embeddings if not lost else self.embeddings[read]

    def save(self, end: int) -> None:
        """Keep what is new up to tile number `end`, so that a process that starts anew has it."""
        assert self.embeddings is not None
        with self.times.spent_on("write"):
            self.partial.save(self.saved, self.embeddings[self.saved : end], self.status[self.saved : end])
        self.saved = end


@dataclass
class Part:
    """Tiles of one image in a batch."""

    source: Source
    first: int
    """Number of the first of them in the image."""
    status: NDArray[np.uint8]


@dataclass
class Batch:
    """Tiles of one size, of one image or several in a row."""

    room: NDArray[np.uint8]
    tiles: NDArray[np.uint8]
    """(tile, height, width, 3), in `room`."""
    parts: list[Part] = field(default_factory=list)
    filled: int = 0


Opened = Callable[[Entry], AbstractContextManager[Source | Row]]
"""Opens an image for as long as it is read; or gives the row of one that is finished already."""

End = object()
"""Comes after the last batch."""


class Memory(Protocol):
    """What is needed of a backbone to read for it."""

    @property
    def batch(self) -> int:
        """Tiles of one batch."""
        ...

    def room(self, size: int) -> NDArray[np.uint8]:
        """So many bytes of memory, from which copies to the device are fast."""
        ...


class Reader:
    """Opens images and reads their tiles into batches, in a thread of its own."""

    def __init__(self, entries: Iterable[Entry], opened: Opened, backbone: Memory, threads: int) -> None:
        self.ready: SimpleQueue[Any] = SimpleQueue()
        """Batches; images that need none any more, with (entry, row or error) or to be finished; errors; last, End."""
        self.rooms: SimpleQueue[NDArray[np.uint8] | None] = SimpleQueue()
        for _ in range(ROOMS):
            self.rooms.put(np.empty(0, np.uint8))
        self._entries, self._opened, self._backbone, self._threads = entries, opened, backbone, threads
        self._filling: Batch | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end, which may stand before a room."""
        self._stopped = True
        self.rooms.put(None)
        self._thread.join(5.0)  # a decoder that never comes back must not hide what was raised

    def _run(self) -> None:
        try:
            for entry in self._entries:
                if self._stopped:
                    return
                self._read(entry)
            self._send()
            self.ready.put(End)
        except Stopped:
            pass
        except BaseException as error:
            self.ready.put(error)

    def _read(self, entry: Entry) -> None:
        """All tiles of one image into batches."""
        source = None
        began = time.perf_counter()
        try:
            with self._opened(entry) as found:
                if isinstance(found, dict):
                    self.ready.put((entry, found))
                    return
                source = found
                source.times.open += time.perf_counter() - began - source.times.read
                first = source.done
                if first == len(source.origins):  # a process died that had only the store to write
                    self.ready.put(source)
                while first < len(source.origins):
                    first += self._fill(source, first)
                self._tell_apart(source)
        except StoreError as error:
            self.ready.put((entry, error))
        except ImageError as error:
            if source:  # it is finished like others, for something of it may be kept
                source.error = error
            self.ready.put(source or (entry, error))

    def _tell_apart(self, source: Source) -> None:
        """Say what of the seconds under `decode` were waits for the disk, where the image knows."""
        read = float(str(source.image.reading().get("read_seconds", 0.0))) / self._threads
        read = min(read, source.times.decode)
        source.times.read += read
        source.times.decode -= read

    def _fill(self, source: Source, first: int) -> int:
        """Read as many tiles as the batch that is being filled has room for; how many."""
        shape = (source.size[1], source.size[0], 3)
        if self._filling and self._filling.tiles.shape[1:] != shape:
            self._send()
        batch = self._filling = self._filling or self._new(shape)
        origins = source.origins[first : first + len(batch.tiles) - batch.filled]
        began = time.perf_counter()
        _, status = source.image.read(origins, source.size, self._threads, batch.tiles[batch.filled :])
        source.times.decode += time.perf_counter() - began
        batch.parts.append(Part(source, first, status))
        batch.filled += len(origins)
        if batch.filled == len(batch.tiles):
            self._send()
        return len(origins)

    def _new(self, shape: tuple[int, ...]) -> Batch:
        """An empty batch; waits until there is room."""
        room = self.rooms.get()
        if room is None or self._stopped:
            raise Stopped
        needed = self._backbone.batch * int(np.prod(shape))
        if room.size < needed:
            room = self._backbone.room(needed)
        return Batch(room, room[:needed].reshape(self._backbone.batch, *shape))

    def _send(self) -> None:
        """Hand the batch on; one that is not full is filled with black, so that all have one size."""
        batch, self._filling = self._filling, None
        if batch and not batch.filled:  # the image that it was begun for cannot be read
            self.rooms.put(batch.room)
        elif batch:
            batch.tiles[batch.filled :] = 0
            self.ready.put(batch)


class Stopped(Exception):
    """Nobody wants batches any more."""
