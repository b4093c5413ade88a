"""A timm model, frozen, with its own normalisation, and the device it runs on."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from pipeline.errors import ConfigError, PipelineError, one_line
from pipeline.image_settings import BackboneSettings


@dataclass(frozen=True)
class Backbone:
    """A frozen model that turns tiles into embeddings."""

    model: nn.Module
    side: int
    """The model's input is `side` x `side` pixels; a whole tile is resized to it, never cropped."""
    mean: Tensor
    std: Tensor
    interpolation: InterpolationMode
    device: torch.device
    batch: int

    def embed(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Embeddings (tile, feature) of at most `batch` tiles (tile, height, width, 3).

        A short batch is padded to the full size and cut again, so that an embedding does not depend on how many tiles
        follow it.
        """
        padded = np.zeros((self.batch, *tiles.shape[1:]), dtype=np.uint8)
        padded[: len(tiles)] = tiles
        with torch.inference_mode():
            images: Tensor = torch.from_numpy(padded).to(self.device).permute(0, 3, 1, 2)
            if images.shape[-2:] != (self.side, self.side):
                images = functional.resize(images, [self.side, self.side], self.interpolation, antialias=True)
            embeddings: Tensor = self.model((images.float() / 255 - self.mean) / self.std)
        if embeddings.ndim != 2:
            raise ConfigError(
                f"backbone.model: gives {tuple(embeddings.shape)}, not one vector per tile: choose another"
            )
        kept: NDArray[np.float32] = embeddings[: len(tiles)].float().cpu().numpy()
        if not np.isfinite(kept).all() or np.abs(kept).max() > np.finfo(np.float16).max:
            raise PipelineError(
                "backbone: gives numbers that are not finite or too large for fp16: are the weights whole?"
            )
        return kept.astype(np.float16)


def load_backbone(settings: BackboneSettings, device: torch.device) -> Backbone:
    """Make the model that the settings name, with its weights.

    Raises:
        ConfigError: no such model, or weights that do not fit it.
        PipelineError: the weights cannot be fetched.
    """
    if not timm.is_model(settings.model.removeprefix("timm/")):
        near = ", ".join(timm.list_models(f"*{settings.model[:5]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"backbone.model: timm has no {settings.model!r}: near it: {near}")
    arguments: dict[str, Any] = {"num_classes": 0, "pretrained": settings.weights == "hub"}
    if settings.weights == "hub":
        tagged = timm.get_pretrained_cfg(settings.model)
        if tagged and tagged.hf_hub_id and settings.revision != "main":
            arguments["pretrained_cfg_overlay"] = {"hf_hub_id": f"{tagged.hf_hub_id}@{settings.revision}"}
    torch.manual_seed(settings.seed)
    try:
        model = _create(settings, arguments)
    except (OSError, RuntimeError, ValueError) as error:
        raise PipelineError(
            f"backbone: weights of {settings.model} cannot be had from the hub ({one_line(error)}): fetch them on a "
            "machine with a network, or set weights: file"
        ) from None
    if settings.weights == "file":
        _load_file(model, Path(settings.file))
    data = timm.data.resolve_model_data_config(model)
    model.eval().requires_grad_(False).to(device)
    return Backbone(
        model=model,
        side=settings.input_size or int(data["input_size"][-1]),
        mean=torch.tensor(data["mean"], device=device).view(3, 1, 1),
        std=torch.tensor(data["std"], device=device).view(3, 1, 1),
        interpolation=InterpolationMode(data["interpolation"]),
        device=device,
        batch=settings.batch,
    )


def _create(settings: BackboneSettings, arguments: dict[str, Any]) -> nn.Module:
    """The model; transformers have to know the size of their input, other models do not take it."""
    if settings.input_size:
        try:
            return timm.create_model(settings.model, img_size=settings.input_size, **arguments)
        except TypeError:
            torch.manual_seed(settings.seed)
    return timm.create_model(settings.model, **arguments)


def _load_file(model: nn.Module, path: Path) -> None:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            state = loaded.get("state_dict", loaded)
        wanted = model.state_dict().keys()
        model.load_state_dict(
            {name: value for name, value in state.items() if name in wanted or not _is_classifier(name)}
        )
    except Exception as error:  # safetensors and torch raise their own kinds for bytes that are no weights
        raise ConfigError(f"{path}: does not hold the weights of this model ({one_line(error)})") from None


def _is_classifier(name: str) -> bool:
    """ASSUME: a file may still carry the layer that classified ImageNet, which no embedding needs."""
    return name.split(".")[0] in {"fc", "head", "classifier"}


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


def lock_gpu(
    count: int, folder: Path | None = None, patience: float = 3600.0, waiting: Callable[[], None] = lambda: None
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
        for index in range(count):
            file = (folder / f"{index}.lock").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return index, file
            except OSError:
                file.close()
        if time.monotonic() > deadline:
            raise PipelineError(f"device: none of {count} GPUs became free in {patience:g} s: run fewer jobs at once")
        waiting()
        time.sleep(1)
