"""Workspaces for tests that run the whole workflow."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.workspace import REPOSITORY, Workspace, write_cohort


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of this test session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether this process is the first that comes here; the others wait until it has left."""
    with (folder / "alone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "alone.done"
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def repository(common: Path) -> Path:
    """A copy of what a user clones, below a folder with spaces in its name."""
    copy = common / "the repository" / f"slide to prediction {os.getpid()}"
    for name in ("pipeline", "workflow", "envs", "profiles"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "config.yaml"):
        shutil.copy(REPOSITORY / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def finished(common: Path, repository: Path) -> Workspace:
    """A workspace in which the small experiment was run once. Tests copy it and leave it as it is."""
    workspace = Workspace(common / "finished" / "my work", repository)
    (common / "finished").mkdir(exist_ok=True)
    with alone(common / "finished") as first:
        if first:
            _finish(workspace)
    return workspace


def _finish(workspace: Workspace) -> None:
    workspace.folder.mkdir()
    # Heads learn from the series alone: every job that imports torch costs seconds. Two shards of labelled series stay
    # two when a test writes another config, because the number of shards is recorded.
    write_cohort(workspace.folder, slides=1, series=6, labelled=("ct",))
    workspace.configure(series__images_per_shard=4)
    workspace.run()


@pytest.fixture
def work(finished: Workspace, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace, to be changed."""
    copy = tmp_path / "my work"
    shutil.copytree(finished.folder, copy, symlinks=True)
    return Workspace(copy, finished.repository)


@pytest.fixture
def empty(tmp_path: Path, repository: Path) -> Workspace:
    """A workspace without data, with the small experiment's config."""
    folder = tmp_path / "my work"
    (folder / "data" / "raw").mkdir(parents=True)
    workspace = Workspace(folder, repository)
    workspace.configure()
    return workspace
