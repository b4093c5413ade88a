"""What a run does when an image, a worker, Snakemake or the disk fails: nothing finished is lost or done twice."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.workspace import Workspace, write_series, write_slide


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def rows(work: Workspace, stage: str) -> dict[str, int]:
    """The rows that a stage has written so far, with the modification time of each."""
    found: dict[str, int] = {}
    for folder, _, files in os.walk(work.folder / "results" / stage):  # forgives folders that go while it looks
        paths = [Path(folder) / name for name in files if name.endswith(".row.json")]
        found |= {str(path): path.stat().st_mtime_ns for path in paths}
    return found


def workers(work: Workspace, stage: str) -> list[psutil.Process]:
    """The parents among the processes that work on a stage in this workspace."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if process.info["cwd"] == str(work.folder) and "pipeline" in command and stage in command and "-P" in command:
            found.append(process)
    return [process for process in found if process.ppid() not in {other.pid for other in found}]


def test_a_broken_slide_and_a_broken_series_are_rows_and_the_rest_goes_on(empty: Workspace) -> None:
    raw = empty.folder / "data/raw"
    for number in range(3):
        write_slide(raw / f"slides/{number}.tiff", number)
        write_series(raw / f"ct/{number}", number)
    whole = (raw / "slides/0.tiff").read_bytes()
    (raw / "slides/cut.tiff").write_bytes(whole[: len(whole) // 2])
    (raw / "slides/page.svs").write_text("<html>not found</html>")
    (raw / "slides/none.svs").write_bytes(b"")
    write_series(raw / "ct/cut", 9)
    for path in (raw / "ct/cut").iterdir():
        path.write_bytes(path.read_bytes()[:-300])
    write_series(raw / "ct/short", 10, slices=3)
    empty.run()
    found = empty.catalog()
    assert {image for image, row in found.items() if row["status"] == "failed"} == {
        "slides/cut.tiff",
        "slides/page.svs",
        "slides/none.svs",
        "ct/cut",
        "ct/short",
    }
    assert sum(row["status"] == "done" for row in found.values()) == 6
    assert found["ct/short"]["reason"].startswith("3 slices, fewer than min_slices 10")
    assert all(found[image]["reason"] for image in ("slides/cut.tiff", "slides/page.svs", "slides/none.svs", "ct/cut"))
    assert "Nothing to be done" in empty.run()


def test_an_image_that_is_mended_is_read_and_one_that_only_failed_waits_for_retry(empty: Workspace) -> None:
    raw = empty.folder / "data/raw"
    write_slide(raw / "good.tiff", 1)
    (raw / "bad.tiff").write_bytes(b"broken")
    empty.run()
    assert empty.catalog()["bad.tiff"]["status"] == "failed"
    assert "Nothing to be done" in empty.run()
    assert "1 images will be tried again" in empty.pipeline("retry", "bad.tiff")
    stores = empty.stores()
    assert empty.jobs()["tile"] == 1
    write_slide(raw / "bad.tiff", 2)
    empty.run()
    assert empty.catalog()["bad.tiff"]["status"] == "done"
    assert stores.items() <= empty.stores().items()


def test_too_many_failures_stop_before_training_and_the_catalog_says_why(empty: Workspace) -> None:
    from support.workspace import write_cohort

    write_cohort(empty.folder, slides=0, series=8)
    shutil.rmtree(empty.folder / "data/raw/ct/1")
    write_series(empty.folder / "data/raw/ct/1", 1, slices=2)
    text = empty.run(fails=True)
    assert "series: 1 of 8 labelled images failed, more than max_failed 0.1 allows (first: ct/1: 2 slices" in text
    assert "Traceback" not in text
    assert empty.catalog()["ct/1"]["status"] == "failed"
    assert not (empty.folder / "results/train").exists()
    empty.configure(max_failed=0.2)
    empty.run()
    assert "ct/1" not in empty.result("splits.csv").decode()


def test_a_job_that_failed_and_then_finds_its_input_mended_is_redone(empty: Workspace) -> None:
    """Snakemake alone would say "nothing to be done" here, with the results of before."""
    import timm
    import torch
    from safetensors.torch import save_file

    write_series(empty.folder / "data/raw/a", 1)
    weights = empty.folder / "weights.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), weights)
    backbone = {"model": "test_resnet", "input_size": 32, "batch": 8, "weights": "file", "file": weights.name}
    empty.configure(series__backbone=backbone)
    empty.run()
    before = empty.stores()
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    text = empty.run(fails=True)
    assert "weights.safetensors: does not hold the weights of this model" in text
    assert "Traceback" not in text
    assert len(empty.stores()) == len(before)
    weights.write_bytes(whole)
    text = empty.run()
    assert "Nothing to be done" not in text
    assert empty.stores() == before
    assert "Nothing to be done" in empty.run()


def test_a_killed_worker_loses_nothing_that_was_finished(empty: Workspace) -> None:
    for number in range(60):
        write_series(empty.folder / f"data/raw/{number}", number, slices=12)
    empty.configure(series__images_per_shard=64)
    run = subprocess.Popen(
        empty.command("--retries", "0"), cwd=empty.folder, env=empty.environment(), stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(rows(empty, "tile")) >= 5)
    (worker,) = workers(empty, "tile")
    children = worker.children(recursive=True)
    worker.kill()
    assert run.wait(timeout=120) != 0
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 10)
    finished = rows(empty, "tile")
    assert 5 <= len(finished) < 60
    assert not (empty.folder / "results/receipts/tile").exists() or not any(
        (empty.folder / "results/receipts/tile").iterdir()
    )
    empty.run()
    assert finished.items() <= rows(empty, "tile").items()
    assert len(rows(empty, "tile")) == 60


def test_a_killed_snakemake_loses_nothing_that_was_finished(empty: Workspace) -> None:
    for number in range(60):
        write_series(empty.folder / f"data/raw/{number}", number, slices=12)
    empty.configure(series__images_per_shard=64)
    run = subprocess.Popen(empty.command(), cwd=empty.folder, env=empty.environment(), stderr=subprocess.DEVNULL)
    wait_for(lambda: len(rows(empty, "tile")) >= 5)
    run.send_signal(signal.SIGKILL)
    run.wait()
    # The worker goes on as an orphan. The next run may meet it at its work, or find it done.
    empty.run("--unlock")
    empty.run("--rerun-incomplete")
    last = rows(empty, "tile")
    assert len(last) == 60
    stores = [path for path in (empty.folder / "results/tile").rglob("*.zarr") if not path.name.startswith(".")]
    assert len(stores) == 60
    assert "60 stores read, 0 damaged" in empty.pipeline("verify").replace("120 stores", "60 stores")
    assert "Nothing to be done" in empty.run()


def test_a_dry_run_with_a_new_slide_leaves_the_run_that_is_going_alone(empty: Workspace) -> None:
    for number in range(40):
        write_series(empty.folder / f"data/raw/{number}", number)
    run = subprocess.Popen(
        empty.command(), cwd=empty.folder, env=empty.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    wait_for(lambda: len(rows(empty, "tile")) >= 3)
    write_slide(empty.folder / "data/raw/new.tiff", 1)
    assert empty.jobs("--nolock")["tile"] >= 1
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 0, out.decode()
    assert len(empty.catalog()) == 40  # the run that was going does not know the new slide
    empty.run()
    assert empty.catalog()["new.tiff"]["status"] == "done"


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk is a small one that only root can mount")
def test_a_full_disk_fails_the_job_and_no_image(empty: Workspace) -> None:
    for number in range(6):
        write_series(empty.folder / f"data/raw/{number}", number, side=64, slices=20)
    disk = empty.folder / "results" / "tile"
    disk.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        text = empty.run(fails=True)
        assert "No space left on device" in text
        assert "Traceback" not in text
        finished = rows(empty, "tile")
        assert 0 < len(finished) < 6
        assert not any('"failed"' in Path(path).read_text() for path in finished)
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        empty.run()
        assert finished.items() <= rows(empty, "tile").items()
        assert {row["status"] for row in empty.catalog().values()} == {"done"}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_flipped_byte_in_a_store_is_found_and_mended(work: Workspace) -> None:
    chunk = next((work.folder / "results/embed").rglob("embeddings/c/0/0"))
    content = bytearray(chunk.read_bytes())
    content[10] ^= 1
    chunk.write_bytes(content)
    assert "1 damaged" in work.pipeline("verify", fails=True)
    weights = work.weights()
    work.pipeline("verify", "--repair")
    work.run()
    assert "0 damaged" in work.pipeline("verify")
    assert work.weights() == weights


def test_a_file_that_still_changes_waits_for_the_next_run(empty: Workspace) -> None:
    write_series(empty.folder / "data/raw/a", 1)
    empty.configure(settle_seconds=3600)
    text = empty.run()
    assert "1 images changed too recently or are not all there: they wait for the next run" in text
    assert empty.catalog()["a"]["status"] == "waiting"
    empty.configure()
    empty.run()
    assert empty.catalog()["a"]["status"] == "done"


def test_gc_removes_what_no_plan_names_and_nothing_else(work: Workspace) -> None:
    stores, weights = work.stores(), work.weights()
    work.configure(series__windows=[[40, 80], [80, 200], [600, 2800]])
    work.run()
    work.configure()
    work.run()
    assert len(work.stores()) > len(stores)
    work.pipeline("gc")
    assert len(work.stores()) > len(stores)
    work.pipeline("gc", "--yes")
    assert (work.stores(), work.weights()) == (stores, weights)
    assert "Nothing to be done" in work.run()
