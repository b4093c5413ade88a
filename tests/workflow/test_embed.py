"""Embedding goes on where it was killed, is done again for what changes embeddings alone, and says where time went."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.store import Store
from support.workspace import Workspace, write_slide

EMBED = """
import sys, time
import pipeline.embedding
from pipeline.backbone import Backbone
from pipeline.cli import main

pipeline.embedding.SAVE_SECONDS = 0
submit = Backbone.submit

def slowly(self, tiles):
    with open(sys.argv[1], "a") as log:
        log.write("batch ")
    time.sleep(float(sys.argv[2]))
    return submit(self, tiles)

Backbone.submit = slowly
if sys.argv[2] == "0.001":
    import pipeline.runners.embed

    def full(path, arrays, attributes):
        raise OSError(28, "No space left on device", str(path.parent))

    pipeline.runners.embed.write_store = full
raise SystemExit(main(sys.argv[3:]))
"""
"""The worker as Snakemake calls it, but that it keeps what it has after every batch, counts and takes its time."""


FULL = 0.001
"""A pause after which the disk has no room for stores, but still for what is kept meanwhile."""


def embed(work: Workspace, batches: Path, pause: float) -> subprocess.Popen[bytes]:
    """Start the one embed job of a plan."""
    (plan,) = (work.folder / "results/plan/embed").glob("*.json")
    receipt = work.folder / "results/receipts/embed" / plan.name
    command = ["embed", *(str(path.relative_to(work.folder)) for path in (plan, receipt)), "--device", "cpu"]
    environment = {**work.environment(), "PYTHONPATH": str(work.repository)}
    arguments = [sys.executable, "-P", "-c", EMBED, str(batches), str(pause), *command]
    return subprocess.Popen(
        arguments, cwd=work.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def runs(work: Workspace) -> list[Path]:
    """What is kept of images that are not finished."""
    return sorted((work.folder / "results/embed").rglob("*.partial/*.zarr"))


def rows(work: Workspace) -> list[dict[str, Any]]:
    """The rows of all embed jobs."""
    receipts = sorted((work.folder / "results/receipts/embed").glob("*.json"))
    return [row for receipt in receipts for row in json.loads(receipt.read_bytes())["rows"]]


def stores(work: Workspace) -> dict[str, dict[str, bytes]]:
    """The arrays of all embedding stores, by image and name."""
    found = {}
    for row in rows(work):
        store = Store(work.folder / row["store"], row["key"])
        assert len(store.read("embeddings")) == row["instances"]
        found[row["id"]] = {name: store.read(name).tobytes() for name in store.names()}
    return found


def test_a_killed_job_goes_on_in_the_middle_of_a_slide_and_ends_with_the_same_bits(
    empty: Workspace, tmp_path: Path
) -> None:
    write_slide(empty.folder / "data/raw/large.tiff", 1, side=1024)
    write_slide(empty.folder / "data/raw/small.tiff", 2)
    empty.run("--until", "tile")
    whole = Workspace(tmp_path / "uninterrupted", empty.repository)
    shutil.copytree(empty.folder, whole.folder)
    assert embed(whole, tmp_path / "all", 0).wait(timeout=120) == 0

    job = embed(empty, tmp_path / "killed", 0.05)
    end = time.monotonic() + 120
    while len(runs(empty)) < 12:
        assert time.monotonic() < end, "nothing is kept"
        assert job.poll() is None
        time.sleep(0.02)
    children = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    job.wait()
    assert children
    psutil.wait_procs(children, timeout=10)
    # The large slide comes first: its tiles are all that was embedded.
    kept = sum(json.loads((run / "status/zarr.json").read_bytes())["shape"][0] for run in runs(empty))
    tiles = {row["id"]: row["instances"] for row in rows(whole)}
    assert 12 * 8 <= kept < tiles["large.tiff"]

    assert embed(empty, tmp_path / "rest", 0).wait(timeout=120) == 0
    assert len((tmp_path / "all").read_text().split()) == math.ceil(sum(tiles.values()) / 8)
    assert len((tmp_path / "rest").read_text().split()) == math.ceil((sum(tiles.values()) - kept) / 8)
    assert stores(empty) == stores(whole)
    assert not list((empty.folder / "results/embed").rglob("*.partial"))
    assert not list((empty.folder / "results/embed").rglob(".*.tmp"))
    before = empty.stores()
    empty.run()
    assert empty.stores() == before
    assert {row["status"] for row in empty.catalog().values()} == {"done"}


def test_a_full_disk_names_the_folder_and_costs_nothing_that_was_embedded(empty: Workspace, tmp_path: Path) -> None:
    write_slide(empty.folder / "data/raw/slide.tiff", 1, side=512)
    empty.run("--until", "tile")
    job = embed(empty, tmp_path / "full", FULL)
    assert job.wait(timeout=120) == 1
    assert job.stderr is not None
    (line,) = [line for line in job.stderr.read().decode().splitlines() if line.startswith("error: ")]
    assert re.match(r"error: results/embed/\w+/slide\.tiff: .*No space left on device.*mend this and run again", line)
    batches = len((tmp_path / "full").read_text().split())
    kept = sum(json.loads((run / "status/zarr.json").read_bytes())["shape"][0] for run in runs(empty))
    assert kept == (batches - 1) * 8 > 0  # the last one finished the slide, whose store found no room
    assert not list((empty.folder / "results/embed").rglob("*.row.json"))

    assert embed(empty, tmp_path / "rest", 0).wait(timeout=120) == 0
    assert len((tmp_path / "rest").read_text().split()) == 1
    assert [row["status"] for row in rows(empty)] == ["done"]


SECONDS = ("open", "read", "decode", "wait", "copy", "forward", "write")


def test_every_row_and_every_log_says_where_the_time_went(finished: Workspace) -> None:
    found = rows(finished)
    assert len(found) == 9
    for row in found:
        assert tuple(sorted(row["times"])) == tuple(sorted(SECONDS))
        assert row["times"]["forward"] > 0
        assert row["times"]["write"] > 0
        assert row["times"]["copy"] == 0  # there is no device to copy to
        assert row["times"]["forward"] <= row["seconds"] + 0.01
    assert all(row["times"]["decode"] > 0 for row in found if row["kind"] == "slide")
    for log in (finished.folder / "logs/embed").glob("*.log"):
        text = log.read_text()
        (split,) = re.findall(r"^\d\d:\d\d:\d\d seconds: (.*)$", text, flags=re.MULTILINE)
        spent = dict(part.split(" ") for part in split.split(", "))
        assert tuple(spent) == SECONDS
        assert re.search(
            r"^\d\d:\d\d:\d\d (compute|reader|disk)-bound: the model stood still for", text, flags=re.MULTILINE
        )
    summed = sum(row["times"]["forward"] for row in found)
    said = sum(float(seconds) for seconds in re.findall(r" forward (\d+\.\d)", finished.logs("embed")))
    assert said == pytest.approx(summed, abs=0.2)


def test_what_changes_how_fast_tiles_are_embedded_redoes_no_store_and_no_head(work: Workspace) -> None:
    before = work.stores(), work.weights(), work.result("predictions.csv")
    faster = {"batch": 4, "channels_last": False, "compile": True}
    work.configure(**{f"{kind}__backbone__{name}": v for kind in ("slide", "series") for name, v in faster.items()})
    jobs = work.jobs()
    assert "tile" not in jobs
    assert jobs["embed"] == 4
    assert work.logs("embed").count(", 0 to do") == 0
    work.run()
    assert work.logs("embed").count(", 0 to do") == 4
    assert (work.stores(), work.weights(), work.result("predictions.csv")) == before


@pytest.mark.parametrize("change", [{"output": "mean"}, {"dtype": "fp32"}, {"crop": "model"}, {"precision": "fp16"}])
def test_what_changes_embeddings_asks_for_them_anew_and_for_no_tiles(work: Workspace, change: dict[str, Any]) -> None:
    """Those of the series alone, whose backbone it is."""
    work.configure(**{f"series__backbone__{name}": value for name, value in change.items()})
    jobs = work.jobs()
    assert "tile" not in jobs
    assert jobs["embed"] == 3


def test_another_precision_makes_stores_beside_the_old_ones_that_differ_by_little(work: Workspace) -> None:
    before = work.stores()
    work.configure(series__backbone__precision="bf16")
    work.run("--until", "embed")
    assert before.items() <= work.stores().items()
    assert len(work.stores()) == len(before) + 7
    exact: dict[str, Any] = {}
    rounded: dict[str, Any] = {}
    for row in rows(work):
        values = Store(work.folder / row["store"], row["key"]).read("embeddings").astype(np.float64)
        (exact if row["store"] in before else rounded)[row["id"]] = values
    assert rounded.keys() == {f"ct/{number}" for number in range(7)}
    for image, values in rounded.items():
        difference = np.linalg.norm(values - exact[image], axis=1) / np.linalg.norm(exact[image], axis=1)
        assert 0 < difference.max() < 0.03
