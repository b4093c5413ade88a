"""The device that a backbone runs on: chosen, one GPU to a process, and what it raises when it fails."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from pipeline.errors import PipelineError, one_line

OF_THE_GPU = ("CUDA", "cuDNN", "CUBLAS")


def choose_device(
    wanted: str,
    cuda_works: Callable[[], bool] = torch.cuda.is_available,
    gpu_is_there: Callable[[], bool] | None = None,
) -> torch.device:
    """The device that `device: auto | cuda | cpu` means on this machine; never the CPU beside an unusable GPU.

    Raises:
        PipelineError: a GPU is there that torch cannot use, or one is asked for and not there.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    if cuda_works():
        return torch.device("cuda")
    there = (gpu_is_there or _driver_lists_gpu)()
    if there:
        raise PipelineError(
            f"device: a GPU is there, and torch {torch.__version__} cannot use it: install the torch build for its "
            "driver (README, Other builds of torch), or set device: cpu"
        )
    if wanted == "cuda":
        raise PipelineError("device: cuda was asked for and no GPU is there: set device: auto or cpu")
    return torch.device("cpu")


def _driver_lists_gpu() -> bool:
    """Whether the NVIDIA driver of this machine lists a GPU that this process is allowed to see."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    listed = Path("/proc/driver/nvidia/gpus")
    return listed.is_dir() and any(listed.iterdir())


def gpu_names() -> list[str]:
    """What tells the GPUs that this process may use apart: jobs of a cluster may each see another one as number 0."""
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def lock_gpu(
    names: Sequence[str],
    folder: Path | None = None,
    patience: float = 3600.0,
    waiting: Callable[[], None] = lambda: None,
) -> tuple[int, IO[str]]:
    """Take one GPU for this process: its index, and the open lock file, which frees it when it is closed.

    Several workers on one machine spread over its GPUs this way, and wait when all are taken, whatever started them;
    `waiting` is called every second meanwhile.

    Raises:
        PipelineError: none became free in `patience` seconds.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"pipeline-gpu-{os.getuid()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    deadline = time.monotonic() + patience
    while True:
        for index, name in enumerate(names):
            file = (folder / f"{name}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return index, file
            except OSError:
                file.close()
        if time.monotonic() > deadline:
            raise PipelineError(
                f"device: none of {len(names)} GPUs became free in {patience:g} s: run fewer jobs at once"
            )
        waiting()
        time.sleep(1)


@contextmanager
def device_errors() -> Iterator[None]:
    """Turn what a GPU raises when it fails into one line; what its memory and the model raise goes on.

    Raises:
        PipelineError: the GPU failed or is gone.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not isinstance(error, torch.AcceleratorError) and not any(name in str(error) for name in OF_THE_GPU):
            raise
        raise PipelineError(
            f"device: the GPU stopped working ({one_line(error)[:200]}): look at it with nvidia-smi and run again; "
            "what is finished is kept"
        ) from None
