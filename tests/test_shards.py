"""One bad image costs one row; a machine's fault costs the job; what is finished is never done again."""

import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest

from pipeline.errors import EmptyImage, ImageError, PipelineError, StoreError
from pipeline.shards import Beat, Entry, Limits, Row, Shard, Work, map_shard, one_by_one

NO_LIMITS = Limits(silence_seconds=60, memory_mb=float("inf"))
Action = Callable[[Beat], None]


class Stage:
    """A stage over ten images whose work can be made to go wrong. Children tell what they did in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        images = [{"id": f"{n}.svs", "kind": "slide", "made_of": [n]} for n in range(10)]
        self.shard = Shard("tile", folder / "results/tile/settings", images)
        self.actions: dict[str, Action] = {}

    def start(self, beat: object) -> Work:
        self.note("start")

        def work(entry: dict[str, Any], beat: Beat) -> Row:
            self.note(entry["id"])
            self.actions.get(entry["id"], lambda beat: None)(beat)
            store = self.folder / "stores" / entry["id"]
            store.parent.mkdir(exist_ok=True)
            store.write_text("store")
            return {"store": str(store), "key": "k", "instances": 3}

        return one_by_one(work)

    def note(self, what: str) -> None:
        with (self.folder / "log").open("a") as log:
            log.write(what + "\n")

    def log(self) -> list[str]:
        """What the children did since the last time this was asked."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def run(self, limits: Limits = NO_LIMITS) -> list[Row]:
        return map_shard(self.shard, self.start, limits)

    def statuses(self, rows: list[Row]) -> dict[str, str]:
        assert [row["id"] for row in rows] == [image["id"] for image in self.shard.images]
        return {row["id"]: row["status"] for row in rows}


ALL = [f"{n}.svs" for n in range(10)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def done_except(**others: str) -> dict[str, str]:
    return dict.fromkeys(ALL, "done") | {f"{name.removeprefix('image')}.svs": s for name, s in others.items()}


def abort(beat: Beat) -> None:
    faulthandler.disable()  # no page of tracebacks in the log of the tests
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.abort()


def hang(beat: Beat) -> None:
    time.sleep(60)


def eat(beat: Beat) -> None:
    """Take 20 MB after 20 MB, touching every page, and stop before the machine suffers."""
    taken = []
    for _ in range(30):
        taken.append(bytearray(os.urandom(1 << 20) * 20))
        time.sleep(0.02)
    time.sleep(60)


def raises(error: Exception) -> Action:
    def act(beat: Beat) -> None:
        raise error

    return act


def test_rows_come_in_the_order_of_the_shard_and_say_what_was_made(stage: Stage) -> None:
    rows = stage.run()
    assert stage.log() == ["start", *ALL]
    assert stage.statuses(rows) == done_except()
    seconds = rows[4].pop("seconds")
    assert rows[4] == {
        "id": "4.svs",
        "kind": "slide",
        "stage": "tile",
        "status": "done",
        "reason": "",
        "instances": 3,
        "store": str(stage.folder / "stores/4.svs"),
        "key": "k",
    }
    assert 0 <= seconds < 5


def test_a_second_call_starts_nothing(stage: Stage) -> None:
    stage.actions["3.svs"] = raises(ImageError("bad"))
    rows = stage.run()
    stage.log()
    assert stage.run() == rows
    assert stage.log() == []


def test_a_deleted_store_is_made_again_alone(stage: Stage) -> None:
    rows = stage.run()
    stage.log()
    Path(rows[5]["store"]).unlink()
    assert stage.statuses(stage.run()) == done_except()
    assert stage.log() == ["start", "5.svs"]


def test_an_image_that_became_another_one_is_done_again_alone(stage: Stage) -> None:
    stage.run()
    stage.log()
    stage.shard.images[2]["made_of"] = ["new"]
    stage.run()
    assert stage.log() == ["start", "2.svs"]


def test_a_reader_that_dies_of_one_image_costs_that_image(stage: Stage) -> None:
    stage.actions["4.svs"] = abort
    rows = stage.run()
    assert stage.statuses(rows) == done_except(image4="failed")
    assert rows[4]["reason"] == "the process that read it was killed by SIGABRT, 2 times"
    assert stage.log() == ["start", *ALL[:5], "start", "4.svs", "start", *ALL[5:]]


def test_a_reader_that_died_once_is_tried_again(stage: Stage) -> None:
    def die_once(beat: Beat) -> None:
        if not (stage.folder / "died").exists():
            (stage.folder / "died").touch()
            os._exit(3)

    stage.actions["4.svs"] = die_once
    assert stage.statuses(stage.run()) == done_except()


def test_a_reader_that_falls_silent_costs_that_image(stage: Stage) -> None:
    stage.actions["0.svs"] = hang
    rows = stage.run(Limits(silence_seconds=1, memory_mb=float("inf")))
    assert stage.statuses(rows) == done_except(image0="failed")
    assert rows[0]["reason"] == "the process that read it said nothing for 1 s (silence_seconds), 2 times"


def test_a_slow_reader_that_says_so_is_left_alone(stage: Stage) -> None:
    def slow(beat: Beat) -> None:
        for number in range(4):
            time.sleep(0.6)
            beat(number, 4)

    stage.actions["9.svs"] = slow
    assert stage.statuses(stage.run(Limits(silence_seconds=1.5, memory_mb=float("inf")))) == done_except()


def test_a_reader_that_eats_memory_costs_that_image(stage: Stage) -> None:
    stage.actions["9.svs"] = eat
    memory = psutil.Process().memory_info()
    # A fork starts with its parent's own pages; those of libraries come when it touches them.
    limit = (memory.rss - getattr(memory, "shared", 0)) / 2**20 + 300
    rows = stage.run(Limits(silence_seconds=60, memory_mb=limit))
    assert stage.statuses(rows) == done_except(image9="failed")
    assert rows[9]["reason"] == f"the process that read it took more than {limit:g} MB of memory (mem_mb), 2 times"


def test_an_images_own_errors_are_rows_with_the_reason(stage: Stage) -> None:
    stage.actions["1.svs"] = raises(ImageError("no mpp:\nstate it"))
    stage.actions["2.svs"] = raises(EmptyImage("no tissue"))
    rows = stage.run()
    assert stage.statuses(rows) == done_except(image1="failed", image2="empty")
    assert [(row["reason"], row["instances"]) for row in rows[1:3]] == [("no mpp: state it", 0), ("no tissue", 0)]
    assert stage.log() == ["start", *ALL]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "results/x"), "results/x: .*No space left on device.*mend this and ru"),
        (PipelineError("backbone: gives NaN: are the weights whole?"), "backbone: gives NaN: are the weights whole"),
    ],
)
def test_the_machines_fault_fails_the_job_and_no_image(stage: Stage, error: Exception, said: str) -> None:
    stage.actions["2.svs"] = raises(error)
    with pytest.raises(PipelineError, match=said):
        stage.run()
    assert stage.log() == ["start", *ALL[:3]]
    kept = sorted(json.loads(path.read_bytes())["id"] for path in stage.folder.rglob("*.row.json"))
    assert kept == ["0.svs", "1.svs"]
    stage.actions.clear()
    assert stage.statuses(stage.run()) == done_except()
    assert stage.log() == ["start", *ALL[2:]]


def test_a_damaged_store_fails_the_job_when_the_other_images_are_done(
    stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is no fault of the image, so it gets no row; it is left for the run after `verify --repair`."""
    for name in ("2.svs", "5.svs"):
        stage.actions[name] = raises(StoreError(f"results/{name}.zarr: cannot be read (a byte): verify --repair"))
    with pytest.raises(
        PipelineError, match="^2 images have damaged stores, the first: results/2.svs.zarr: cannot be r"
    ):
        stage.run()
    assert stage.log() == ["start", *ALL]
    assert "5.svs: results/5.svs.zarr: cannot be read" in capfd.readouterr().out
    kept = sorted(json.loads(path.read_bytes())["id"] for path in stage.folder.rglob("*.row.json"))
    assert kept == [name for name in ALL if name not in ("2.svs", "5.svs")]
    stage.actions.clear()
    assert stage.statuses(stage.run()) == done_except()
    assert stage.log() == ["start", "2.svs", "5.svs"]


def test_a_bug_of_ours_is_no_users_error(stage: Stage, capfd: pytest.CaptureFixture[str]) -> None:
    stage.actions["2.svs"] = raises(KeyError("oops"))
    with pytest.raises(RuntimeError, match="KeyError: 'oops'"):
        stage.run()
    assert "Traceback" in capfd.readouterr().err


def test_a_worker_that_cannot_start_fails_the_job(stage: Stage) -> None:
    def start(beat: object) -> Work:
        raise PipelineError("backbone.file: is not there: name it")

    with pytest.raises(PipelineError, match="backbone.file: is not there: name it"):
        map_shard(stage.shard, start, NO_LIMITS)
    assert not list(stage.folder.rglob("*.row.json"))


def test_a_worker_that_dies_before_its_first_image_fails_the_job(stage: Stage) -> None:
    def start(beat: object) -> Work:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(PipelineError, match="was killed by SIGKILL before its first image"):
        map_shard(stage.shard, start, NO_LIMITS)


def test_no_child_is_left_when_the_call_is_over(stage: Stage) -> None:
    before = psutil.Process().children()
    stage.actions["0.svs"] = raises(PipelineError("no"))
    with pytest.raises(PipelineError):
        stage.run()
    assert psutil.Process().children() == before


class Ahead(Stage):
    """A stage that has three images in its hands at once, and works on the first of them."""

    def start(self, beat: object) -> Work:
        make = super().start(beat)

        def work(entries: Iterable[Entry], beat: Beat) -> Iterator[tuple[Entry, Row | ImageError]]:
            begun: deque[Entry] = deque()
            for entry in entries:
                begun.append(entry)
                if len(begun) == 3:
                    yield from make([begun.popleft()], beat)
            yield from make(begun, beat)

        return work


def journal(stage: Stage) -> dict[str, Row]:
    """The rows on disk."""
    return {row["id"]: row for path in stage.folder.rglob("*.row.json") if (row := json.loads(path.read_bytes()))}


def test_of_several_images_in_hand_when_a_process_dies_the_guilty_one_is_found(tmp_path: Path) -> None:
    """4, 5 and 6 were begun: each is worked on alone next, and only 4 has the process die of it again."""
    stage = Ahead(tmp_path)
    stage.actions["4.svs"] = abort
    rows = stage.run()
    assert stage.log() == ["start", *ALL[:5], "start", "4.svs", "start", *ALL[5:]]
    assert stage.statuses(rows) == done_except(image4="failed")
    assert rows[4]["reason"] == "the process that read it was killed by SIGABRT, 2 times"
    assert journal(stage) == {row["id"]: row for row in rows}
    assert stage.run() == rows
    assert stage.log() == []


def test_two_guilty_images_in_hand_together_are_both_found_and_the_one_between_is_done(tmp_path: Path) -> None:
    stage = Ahead(tmp_path)
    stage.actions |= {"4.svs": abort, "6.svs": abort}
    rows = stage.run()
    assert stage.statuses(rows) == done_except(image4="failed", image6="failed")
    assert stage.log() == ["start", *ALL[:5], "start", "4.svs", "start", "5.svs", "6.svs", "start", *ALL[7:]]
    assert journal(stage) == {row["id"]: row for row in rows}


def test_several_images_in_hand_cost_nothing_when_the_process_dies_but_once(tmp_path: Path) -> None:
    stage = Ahead(tmp_path)

    def die_once(beat: Beat) -> None:
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(3)

    stage.actions["4.svs"] = die_once
    assert stage.statuses(stage.run()) == done_except()
    assert stage.log() == ["start", *ALL[:5], "start", *ALL[4:]]


class InAThread(Stage):
    """A stage that takes its images in another thread than it finishes them in, as fast as it can."""

    def start(self, beat: object) -> Work:
        make = super().start(beat)

        def work(entries: Iterable[Entry], beat: Beat) -> Iterator[tuple[Entry, Row | ImageError]]:
            taken: SimpleQueue[Entry | None] = SimpleQueue()

            def take() -> None:
                for entry in entries:
                    self.actions.get(f"take {entry['id']}", lambda beat: None)(beat)
                    taken.put(entry)
                taken.put(None)

            thread = threading.Thread(target=take, daemon=True)
            thread.start()
            while entry := taken.get():
                beat(1, 2)
                yield from make([entry], beat)
            thread.join()

        return work


def test_images_may_be_taken_in_another_thread(tmp_path: Path) -> None:
    stage = InAThread(tmp_path)
    stage.shard.images = [{"id": f"{n}.svs", "kind": "slide", "made_of": [n]} for n in range(300)]
    stage.actions["7.svs"] = raises(ImageError("no mpp"))
    rows = stage.run()
    assert {row["id"] for row in rows if row["status"] == "done"} == {f"{n}.svs" for n in range(300) if n != 7}
    assert rows[7]["reason"] == "no mpp"
    assert journal(stage) == {row["id"]: row for row in rows}


def test_a_process_that_dies_where_images_are_taken_costs_the_guilty_one_alone(tmp_path: Path) -> None:
    stage = InAThread(tmp_path)
    stage.actions["take 6.svs"] = abort
    rows = stage.run()
    assert stage.statuses(rows) == done_except(image6="failed")
    assert rows[6]["reason"] == "the process that read it was killed by SIGABRT, 2 times"
    assert journal(stage) == {row["id"]: row for row in rows}


KILLED_PARENT = """
import os, sys, time
from pathlib import Path
from pipeline.shards import Limits, Shard, map_shard, one_by_one

folder = Path(sys.argv[1])

def start(beat):
    def work(entry, beat):
        (folder / "child.tmp").write_text(str(os.getpid()))
        (folder / "child.tmp").rename(folder / "child")
        time.sleep(60)
    return one_by_one(work)

shard = Shard("tile", folder / "results", [{"id": "0.svs", "kind": "slide", "made_of": [0]}])
map_shard(shard, start, Limits(60, float("inf")))
"""


def test_a_child_leaves_soon_after_its_parent_was_killed(tmp_path: Path) -> None:
    repository = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    parent = subprocess.Popen([sys.executable, "-c", KILLED_PARENT, str(tmp_path)], env=environment)
    try:
        wait_for((tmp_path / "child").exists, 30)
        child = int((tmp_path / "child").read_text())
        assert is_running(child)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not is_running(child), 2)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {seconds} s"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
