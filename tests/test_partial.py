"""A run of tiles is taken up again when every byte of it is as it was, it is this image's, and no other is missing."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.partial import Partial
from support.disk import fill_disk

VALUES: NDArray[np.float16] = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float16)
STATUS: NDArray[np.uint8] = np.array([0, 0, 1, 0, 0, 0, 0, 1, 0], np.uint8)
RUNS = [(0, 4), (4, 6), (6, 9)]


@pytest.fixture
def partial(tmp_path: Path) -> Partial:
    """Three runs: of four tiles, two and three."""
    partial = Partial(tmp_path / "k.partial", "k")
    for first, end in RUNS:
        partial.save(first, VALUES[first:end], STATUS[first:end])
    return partial


def kept(partial: Partial) -> int:
    """How many tiles are taken up, after a look at whether they are the first ones as they were."""
    found = Partial(partial.folder, partial.key).load()
    if found is None:
        return 0
    values, status = found
    assert values.dtype == np.float16
    assert values.tobytes() == VALUES[: len(values)].tobytes()
    assert status.tobytes() == STATUS[: len(values)].tobytes()
    return len(values)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_runs_come_back_in_their_order_with_every_bit(partial: Partial) -> None:
    assert kept(partial) == 9


def test_embeddings_of_fp32_stay_fp32(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "k.partial", "k")
    values = np.array([[1 / 3, 1e-30]], np.float32)
    partial.save(0, values, STATUS[:1])
    found = partial.load()
    assert found is not None
    assert (found[0].dtype, found[0].tobytes()) == (np.float32, values.tobytes())


def test_nothing_is_there_before_the_first_run(tmp_path: Path) -> None:
    assert Partial(tmp_path / "k.partial", "k").load() is None
    assert not (tmp_path / "k.partial").exists()


@pytest.mark.parametrize(("lost", "left"), [(0, 0), (1, 4), (2, 6)])
def test_what_lies_behind_a_gap_is_not_taken(partial: Partial, lost: int, left: int) -> None:
    shutil.rmtree(partial.folder / f"{RUNS[lost][0]:09d}.zarr")
    assert kept(partial) == left


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_bit_in_any_file_costs_that_run_and_later_ones(partial: Partial, number: int, tmp_path: Path) -> None:
    """The damaged run is removed, so that its tiles can be kept anew."""
    run = f"{RUNS[number][0]:09d}.zarr"
    shutil.copytree(partial.folder, tmp_path / "whole")
    found = files(partial.folder / run)
    assert len(found) == 5  # the description of the run, of its two arrays, and a chunk of each
    for file in found:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        assert kept(partial) == RUNS[number][0], file.name
        assert not (partial.folder / run).exists()
        shutil.copytree(tmp_path / "whole" / run, partial.folder / run)
    assert kept(partial) == 9


def test_a_run_that_was_cut_short_or_lost_a_file_is_embedded_again(partial: Partial, tmp_path: Path) -> None:
    run = partial.folder / "000000004.zarr"
    shutil.copytree(run, tmp_path / "whole")
    for file in files(run):
        for left in (None, 0, file.stat().st_size - 1):
            file.unlink() if left is None else os.truncate(file, left)
            assert kept(partial) == 4, (file.name, left)
            shutil.copytree(tmp_path / "whole", run)
    assert kept(partial) == 9


def test_a_run_made_again_takes_the_place_of_the_damaged_one(partial: Partial) -> None:
    chunk = partial.folder / "000000004.zarr/embeddings/c/0/0"
    chunk.write_bytes(b"")
    assert kept(partial) == 4
    partial.save(4, VALUES[4:6], STATUS[4:6])
    assert kept(partial) == 9  # the third run, which was whole all the time, follows again


def test_runs_of_another_key_are_not_taken(partial: Partial) -> None:
    assert Partial(partial.folder, "other").load() is None


def test_a_run_that_a_killed_process_left_half_written_is_not_seen(partial: Partial) -> None:
    (partial.folder / "000000006.zarr").rename(partial.folder / ".000000006.zarr.0123456789ab.tmp")
    assert kept(partial) == 6


def test_nothing_is_left_when_it_is_closed(partial: Partial, tmp_path: Path) -> None:
    (partial.folder / ".000000009.zarr.0123456789ab.tmp").mkdir()
    partial.close()
    assert list(tmp_path.iterdir()) == []
    partial.close()  # also where nothing was ever kept


def test_a_full_disk_is_named_and_leaves_the_runs_that_were_there(
    partial: Partial, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as during:
        fill_disk(during)
        with pytest.raises(OSError, match="No space left") as caught:
            partial.save(9, VALUES, STATUS)
    assert caught.value.filename == str(partial.folder)
    assert kept(partial) == 9
    assert len(list(partial.folder.iterdir())) == 3
