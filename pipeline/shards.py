"""Maps a stage over the images of a shard, so that one bad image costs one row and a finished image is never redone.

The worker is a light parent, which remembers, and a child, which reads images and may die of one. What is remembered is
a row per image, written the moment the image is finished:
`results/<stage>/<settings>/<image>/<what it was made of>.row.json`.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.errors import EmptyImage, ImageError, PipelineError, StoreError, one_line
from pipeline.store import digest, read_json, write_json

Row = dict[str, Any]
"""`id`, `kind`, `status` (done, empty, failed), `reason`, `stage`, `instances`, `seconds`; of a done one also `store`,
`key` and what else the stage reports."""

Beat = Callable[[int, int], None]
"""Called with tiles done and tiles in all, as often as is convenient: the parent sees that the child is alive."""

Entry = dict[str, Any]
"""What a plan's slice says of one image."""

Outcome = Row | ImageError | StoreError
"""What the row of an image says beside id and status; why the image cannot be used; or that what an earlier stage left
of it is damaged: it gets no row, and the job fails when the other images are done."""

Work = Callable[[Iterable[Entry], Beat], Iterator[tuple[Entry, Outcome]]]
"""Makes the stores of images, one by one or several at once, and gives each back with its outcome. Images count as
begun from when they are taken until then."""

Start = Callable[[Beat], Work]
"""Called once in the child, and only when there is work: imports what is heavy, loads a model."""

DEATHS = 2
"""A child that dies this often on one image makes it a failed row. Where several were begun, none is blamed yet for
more than one death: each is worked on alone next."""

PROGRESS_SECONDS = 30
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take."""

    silence_seconds: float
    memory_mb: float


@dataclass(slots=True)
class Shard:
    """The images of one shard, and where what is known of them is kept."""

    stage: str
    folder: Path
    """results/<stage>/<settings>"""
    images: list[Entry]
    """Entries of the plan slice; `made_of` of each names what its row depends on beside the settings."""

    def row_path(self, image: Entry) -> Path:
        """Where the row of an image is kept."""
        return self.folder / str(image["id"]) / f"{digest(image['made_of'], 12)}.row.json"

    def remembered(self, image: Entry) -> Row | None:
        """The row of an image that was finished before, unless its store is gone."""
        path = self.row_path(image)
        if not path.exists():
            return None
        row: Row = read_json(path)
        gone = row["status"] == "done" and not Path(row["store"]).exists()
        return None if gone else row

    def remember(self, image: Entry, row: Row) -> Row:
        """Complete a row and keep it."""
        full: Row = {"id": image["id"], "kind": image["kind"], "stage": self.stage, "reason": "", "instances": 0, **row}
        write_json(self.row_path(image), full)
        return full


def map_shard(shard: Shard, start: Start, limits: Limits) -> list[Row]:
    """Rows of all images of a shard, in its order; only those that nobody finished before are worked on.

    Args:
        shard: the images.
        start: makes the function that works on one image.
        limits: on the child.

    Raises:
        PipelineError: the machine and not an image is at fault (disk full, no permission, no GPU, missing weights);
            what was finished stays finished.
    """
    rows = {image["id"]: row for image in shard.images if (row := shard.remembered(image)) is not None}
    todo = [image for image in shard.images if image["id"] not in rows]
    say(f"{shard.stage}: {len(shard.images)} images, {len(rows)} finished before, {len(todo)} to do")
    deaths: dict[str, int] = {}
    while todo:
        suspects = [image for image in todo if image["id"] in deaths]
        groups = [*([image] for image in suspects), [image for image in todo if image["id"] not in deaths]]
        finished, died_on, cause = _run_child(shard, groups, start, limits, len(shard.images) - len(todo))
        rows.update({row["id"]: row for row in finished})
        if cause and not died_on:
            raise PipelineError(
                f"{shard.stage}: the worker's process {cause} before its first image: see the log above"
            )
        for image in died_on:
            name = image["id"]
            deaths[name] = deaths.get(name, 0) + 1
            say(f"{name}: the process that read it {cause} ({deaths[name]} of {DEATHS})")
            if deaths[name] >= DEATHS:
                row = {"status": "failed", "reason": f"the process that read it {cause}, {DEATHS} times", "seconds": 0}
                rows[name] = shard.remember(image, row)
        todo = [image for image in todo if image["id"] not in rows]
    return [rows[image["id"]] for image in shard.images]


def one_by_one(make: Callable[[Entry, Beat], Row]) -> Work:
    """The work of a stage that makes one image after the other."""

    def work(entries: Iterable[Entry], beat: Beat) -> Iterator[tuple[Entry, Outcome]]:
        for entry in entries:
            try:
                outcome: Outcome = make(entry, beat)
            except (ImageError, StoreError) as error:
                outcome = error
            yield entry, outcome

    return work


def say(line: str) -> None:
    """Print a line of the log with the time of day, at once."""
    print(time.strftime("%H:%M:%S"), line.encode("utf-8", "backslashreplace").decode(), flush=True)


def _run_child(
    shard: Shard, groups: list[list[Entry]], start: Start, limits: Limits, before: int
) -> tuple[list[Row], list[Entry], str]:
    """Work through groups of images in a child: the rows it finished, the images it died on, and how ('': it lives)."""
    context = multiprocessing.get_context("fork")  # the parent has no threads and no CUDA, so a fork is safe and fast
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, shard, groups, start, os.getpid()), daemon=True)
    child.start()
    sender.close()
    finished: list[Row] = []
    begun: dict[str, Entry] = {}
    images = {image["id"]: image for group in groups for image in group}
    heard = shown = looked = time.monotonic()
    try:
        while True:
            waits = not receiver.poll(0.2)
            if waits or time.monotonic() - looked > 1:  # also while messages come thick and fast
                looked = time.monotonic()
                if cause := _excess(child.pid, looked - heard, limits):
                    return finished, list(begun.values()), cause
            if waits:
                continue
            try:
                message = json.loads(receiver.recv_bytes())
            except EOFError:
                child.join()
                return finished, list(begun.values()), _death(child.exitcode)
            heard = time.monotonic()
            match message["what"]:
                case "start":
                    begun[message["id"]] = images[message["id"]]
                case "beat" if heard - shown > PROGRESS_SECONDS:
                    shown = heard
                    say(f"{next(iter(begun), shard.stage)}: {message['done']} of {message['all']} tiles")
                case "row":
                    finished.append(message["row"])
                    del begun[message["row"]["id"]]
                    say(_summary(message["row"], before + len(finished), before + len(images)))
                case "left":
                    del begun[message["id"]]
                    say(f"{message['id']}: {message['line']}")
                case "error":
                    raise PipelineError(message["line"]) if message["ours"] else RuntimeError(message["line"])
                case "end":
                    return finished, [], ""
    finally:
        child.kill()
        child.join()


def _excess(pid: int | None, silence: float, limits: Limits) -> str:
    """How a child went beyond its limits; '' if it did not."""
    import psutil

    if silence > limits.silence_seconds:
        return f"said nothing for {limits.silence_seconds:g} s (silence_seconds)"
    try:
        used = psutil.Process(pid).memory_info().rss / 2**20
    except psutil.Error:
        return ""
    return f"took more than {limits.memory_mb:g} MB of memory (mem_mb)" if used > limits.memory_mb else ""


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


def _summary(row: Row, number: int, total: int) -> str:
    seconds = row.get("seconds", 0)
    if row["status"] != "done":
        return f"{number}/{total} {row['id']}: {row['status']}: {row['reason']}"
    rate = row["instances"] / seconds if seconds else 0
    return f"{number}/{total} {row['id']}: {row['instances']} tiles, {seconds:.2f} s, {rate:.0f} tiles/s"


def _child(sender: Connection, shard: Shard, groups: list[list[Entry]], start: Start, parent: int) -> None:
    """The child's life: start once, then group after group; all it knows it says through the pipe."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also out of a decoder that never comes back
    threading.Thread(target=_leave_with_parent, args=(parent,), daemon=True).start()
    last = 0.0
    began: dict[str, float] = {}
    pipe = threading.Lock()  # a stage may take its images in another thread than it finishes them in

    def tell(**message: object) -> None:
        with pipe:
            sender.send_bytes(json.dumps(message).encode())

    def begin(images: list[Entry]) -> Iterator[Entry]:
        for image in images:
            tell(what="start", id=image["id"])
            began[image["id"]] = time.monotonic()
            yield image

    def beat(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            tell(what="beat", done=done, all=of)

    try:
        work = start(beat)
        damaged: list[StoreError] = []
        for group in groups:
            for image, outcome in work(begin(group), beat):
                if isinstance(outcome, StoreError):
                    damaged.append(outcome)
                    tell(what="left", id=image["id"], line=one_line(outcome))
                    continue
                row: Row = {"status": "done", **outcome} if isinstance(outcome, dict) else _failed(outcome)
                row.setdefault("seconds", round(time.monotonic() - began[image["id"]], 3))
                tell(what="row", row=shard.remember(image, row))
        if damaged:
            raise PipelineError(f"{len(damaged)} images have damaged stores, the first: {damaged[0]}")
        tell(what="end")
    except PipelineError as error:
        tell(what="error", ours=True, line=one_line(error))
    except OSError as error:  # not an image's: the disk is full, results cannot be written
        tell(
            what="error",
            ours=True,
            line=f"{error.filename or shard.folder}: {one_line(error)}: mend this and run again",
        )
    except BaseException as error:
        traceback.print_exc()
        tell(what="error", ours=False, line=f"{type(error).__name__}: {one_line(error)}")


def _failed(error: ImageError) -> Row:
    """What a row says of an image that cannot be used."""
    return {"status": "empty" if isinstance(error, EmptyImage) else "failed", "reason": one_line(error)}


def _leave_with_parent(parent: int) -> None:
    """End this process when its parent is gone, so that a killed job leaves no orphan that writes."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
