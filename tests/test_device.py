"""A worker runs on the device that was asked for, alone on its GPU; a GPU that fails is one line."""

import time
from pathlib import Path

import pytest
import torch

from pipeline.device import choose_device, device_errors, lock_gpu
from pipeline.errors import PipelineError

ONE, TWO = ["GPU-a"], ["GPU-a", "GPU-b"]


@pytest.mark.parametrize(
    ("wanted", "works", "there", "device"),
    [
        ("cpu", True, True, "cpu"),
        ("cpu", False, True, "cpu"),
        ("auto", True, True, "cuda"),
        ("auto", False, False, "cpu"),
        ("cuda", True, True, "cuda"),
        ("auto", False, True, "a GPU is there, and torch .* cannot use it: install"),
        ("cuda", False, True, "a GPU is there, and torch .* cannot use it: install"),
        ("cuda", False, False, "cuda was asked for and no GPU is there: set device: auto or cpu"),
    ],
)
def test_the_device_is_the_one_asked_for_and_never_the_cpu_beside_an_unusable_gpu(
    wanted: str, works: bool, there: bool, device: str
) -> None:
    if device in {"cpu", "cuda"}:
        assert choose_device(wanted, lambda: works, lambda: there).type == device
        return
    with pytest.raises(PipelineError, match=device):
        choose_device(wanted, lambda: works, lambda: there)


def test_a_gpu_that_is_hidden_on_purpose_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device("auto", lambda: False).type == "cpu"


def test_every_worker_takes_another_gpu_and_gives_it_back(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    first, first_lock = lock_gpu(TWO, folder)
    second, second_lock = lock_gpu(TWO, folder)
    assert {first, second} == {0, 1}
    began = time.monotonic()
    with pytest.raises(PipelineError, match="none of 2 GPUs became free in 0.1 s: run fewer jobs at once"):
        lock_gpu(TWO, folder, patience=0.1)
    assert time.monotonic() - began < 5
    second_lock.close()
    again, again_lock = lock_gpu(TWO, folder, patience=0.1)
    assert again == second
    again_lock.close()
    first_lock.close()


def test_a_gpu_is_the_same_under_another_number(tmp_path: Path) -> None:
    """Two jobs of a cluster may each see one GPU, as number 0, and a third job sees both."""
    _, lock = lock_gpu(["GPU-a"], tmp_path)
    index, other = lock_gpu(["GPU-b"], tmp_path, patience=0)
    assert index == 0
    other.close()
    index, other = lock_gpu(["GPU-a", "GPU-b"], tmp_path, patience=0)
    assert index == 1
    other.close()
    lock.close()


def test_a_worker_waits_until_a_gpu_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lock = lock_gpu(ONE, tmp_path)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            lock.close()

    monkeypatch.setattr(time, "sleep", sleep)
    index, mine = lock_gpu(ONE, tmp_path, patience=60)
    assert (index, len(waits)) == (0, 3)
    mine.close()


def test_whoever_waits_for_a_gpu_says_so_every_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lock = lock_gpu(ONE, tmp_path)
    said: list[str] = []

    def sleep(seconds: float) -> None:
        said.append(f"slept {seconds:g}")
        if len(said) == 4:
            lock.close()

    monkeypatch.setattr(time, "sleep", sleep)
    _, mine = lock_gpu(ONE, tmp_path, waiting=lambda: said.append("waits"))
    assert said == ["waits", "slept 1", "waits", "slept 1"]
    mine.close()


def test_gpus_are_locked_for_one_user_alone(tmp_path: Path) -> None:
    _, lock = lock_gpu(ONE, tmp_path / "locks")
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
    lock.close()


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("unspecified launch failure\nsee the log"),
        RuntimeError("CUDA error: device-side assert triggered\nsee the log"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR\nsee the log"),
        RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED\nsee the log"),
    ],
    ids=str,
)
def test_what_a_failing_gpu_raises_is_one_line(error: Exception) -> None:
    with pytest.raises(PipelineError) as caught, device_errors():
        raise error
    said = str(error).replace("\n", " ")
    assert str(caught.value) == (
        f"device: the GPU stopped working ({said}): look at it with nvidia-smi and run again; what is finished is kept"
    )


def test_a_long_story_of_a_gpu_is_cut() -> None:
    with pytest.raises(PipelineError) as caught, device_errors():
        raise RuntimeError("CUDA " + "x" * 1000)
    assert len(str(caught.value)) < 320


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA"),
        PipelineError("backbone: gives NaN"),
    ],
    ids=str,
)
def test_what_is_not_the_gpus_failure_goes_on_as_it_is(error: Exception) -> None:
    """Whoever knows how many tiles it was deals with memory that is short."""
    with pytest.raises(type(error)) as caught, device_errors():
        raise error
    assert caught.value is error
