"""A timm model, frozen, on its device: batches of tiles in, embeddings out."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from pipeline.device import device_errors
from pipeline.errors import ConfigError, PipelineError
from pipeline.image_settings import BackboneSettings
from pipeline.resizing import Geometry
from pipeline.weights import make_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


Values = NDArray[np.float16] | NDArray[np.float32]


@dataclass
class OnCpu:
    """A batch on its way, in as many parts as there are threads."""

    parts: list[Future[tuple[Tensor, float, float]]]
    """Embeddings (tile, feature), and when they were begun and done."""
    backbone: "Backbone"

    def result(self) -> tuple[Values, float, float, float]:
        """Embeddings (tile, feature); seconds that the model stood still before it, of its copy and of its forward."""
        found = [part.result() for part in self.parts]
        values = torch.cat([values for values, _, _ in found])
        check_finite(values)
        before, began, ended = self.backbone.ended, min(part[1] for part in found), max(part[2] for part in found)
        self.backbone.ended = ended
        return values.numpy(), max(0.0, began - before), 0.0, ended - max(began, before)


@dataclass
class OnGpu:
    """A batch on its way: its events lie in the GPU's own queue, where they measure what really happened."""

    values: Tensor
    """(tile, feature), in pinned memory; whole when `landed` has come."""
    before: Any
    copying: Any
    copied: Any
    started: Any
    ended: Any
    landed: Any

    def result(self) -> tuple[Values, float, float, float]:
        """As `OnCpu.result`; waits until the GPU has brought it."""
        with device_errors():
            self.landed.synchronize()
            wait, copy, forward = (
                first.elapsed_time(then) / 1000
                for first, then in (
                    (self.before, self.started),
                    (self.copying, self.copied),
                    (self.started, self.ended),
                )
            )
        check_finite(self.values)
        return self.values.numpy(), wait, copy, forward


class Backbone:
    """A frozen model that turns batches of tiles into embeddings.

    Batches have one size, and the last is padded by whoever makes it: an embedding does not depend on how many tiles
    come with it, and a compiled model is compiled once.

    Args:
        model: pictures (tile, channel, side, side) float32 to one vector per tile, or to tokens for other outputs.
        geometry: from tiles to pictures.
        mean: of each channel, between 0 and 1, that the model was trained with.
        std: likewise.
        settings: output, precision, dtype, batch and layout of it.
        device: where it runs.
        say: prints a line of the log.
        threads: of a CPU. Each computes a part of the batch, alone: a tenth faster than all of them on each layer, and
            what else the machine does holds up one of them and not all.
    """

    def __init__(
        self,
        model: nn.Module,
        geometry: Geometry,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        settings: BackboneSettings,
        device: torch.device,
        say: Callable[[str], None] = print,
        threads: int = 1,
    ) -> None:
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.model = model.eval().requires_grad_(False).to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self.geometry, self.settings, self.device = geometry, settings, device
        self.batch = settings.batch
        self.depth = 1
        self.most = settings.batch
        """Tiles that go through the model at once: less than a batch when memory was short."""
        self._shift = torch.tensor(mean, device=device).repeat(geometry.side) * 255  # of a row: pixel after pixel
        self._scale = 1 / (torch.tensor(std, device=device).repeat(geometry.side) * 255)
        self._call = torch.compile(self._embed, dynamic=False) if settings.compile else self._embed
        self._say = say
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._threads = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self._part = -(-settings.batch // threads)
        self.begin()

    def begin(self) -> None:
        """From now on the model stands still until it is given a batch."""
        self.ended = time.perf_counter()
        if self._stream:
            self._last = self._event()

    def room(self, size: int) -> NDArray[np.uint8]:
        """So many bytes of memory, pinned where there is a GPU: it copies them while it computes."""
        if self.device.type == "cpu":
            return np.empty(size, np.uint8)
        with device_errors():
            pinned: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned

    def submit(self, tiles: NDArray[np.uint8]) -> OnCpu | OnGpu:
        """Start a batch (tile, height, width, channel).

        What it or its result may raise:
            PipelineError: the device failed, memory is short of a single tile, or the model gives no numbers.
            ConfigError: the model gives no vectors.
        """
        whole = torch.from_numpy(tiles)
        if self._stream:
            with torch.inference_mode(), device_errors():
                return self._submit_to_gpu(whole)
        return OnCpu([self._threads.submit(self._timed, part) for part in whole.split(self._part)], self)

    def _timed(self, tiles: Tensor) -> tuple[Tensor, float, float]:
        began = time.perf_counter()
        with torch.inference_mode(), device_errors():
            return self._forward(tiles), began, time.perf_counter()

    def _submit_to_gpu(self, tiles: Tensor) -> OnGpu:
        """Copy on one stream while the other computes the batch before; results come back behind it."""
        assert self._stream
        before, computing = self._last, torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            copying = self._event()
            try:
                on_device = tiles.to(self.device, non_blocking=True)
            except torch.OutOfMemoryError:
                raise PipelineError(
                    f"backbone: the memory of {self.device} does not hold {len(tiles)} tiles beside the model: lower "
                    "backbone.batch"
                ) from None
            copied = self._event()
        computing.wait_stream(self._stream)
        on_device.record_stream(computing)
        started = self._event()
        values = self._forward(on_device)
        self._last = ended = self._event()
        landing = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        landing.copy_(values, non_blocking=True)
        return OnGpu(landing, before, copying, copied, started, ended, self._event())

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _forward(self, tiles: Tensor) -> Tensor:
        """Embeddings of a batch on the device; when memory is short, by halves of it from now on."""
        while True:
            tried = self.most
            try:
                parts = [self._step(part) for part in tiles.split(tried)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except (MemoryError, RuntimeError) as error:
                if not _memory_is_short(error):
                    raise
                if tried == 1:
                    raise PipelineError(
                        f"backbone: the memory of {self.device} does not hold {self.settings.model} and one tile: "
                        "free some, or use a smaller model or backbone.input_size"
                    ) from None
            tried = min(tried, len(tiles))
            if self.most >= tried:  # no other thread was faster
                self.most = -(-tried // 2)
                self._say(f"backbone: memory of {self.device} is short: goes on with {self.most} tiles at once")
            if self._stream:
                torch.cuda.empty_cache()

    def _step(self, tiles: Tensor) -> Tensor:
        """Embeddings (tile, feature) of tiles (tile, height, width, channel) on the device."""
        # A permuted view has its channels last in memory, which resizing and the model both like. Whole rows are
        # normalised, because loops over the three values of a pixel take five times as long.
        shown, side = self.geometry(tiles.permute(0, 3, 1, 2)), self.geometry.side
        rows = shown.permute(0, 2, 3, 1).reshape(len(tiles), side, side * 3).float().sub_(self._shift).mul_(self._scale)
        pictures = rows.view(len(tiles), side, side, 3).permute(0, 3, 1, 2)
        if not self.settings.channels_last:
            pictures = pictures.contiguous()
        wanted = DTYPES[self.settings.precision]
        with torch.autocast(self.device.type, dtype=wanted, enabled=wanted != torch.float32):
            values = self._call(pictures)
        if values.ndim != 2:
            raise ConfigError(f"backbone.model: gives {tuple(values.shape)}, not one vector per tile: choose another")
        return values.to(DTYPES[self.settings.dtype])

    def _embed(self, pictures: Tensor) -> Tensor:
        """What of the model's output the settings want."""
        if self.settings.output == "pooled":
            pooled: Tensor = self.model(pictures)
            return pooled
        tokens: Tensor = self.model.forward_features(pictures)  # (tile, token, feature), the class token first
        prefix: int = self.model.num_prefix_tokens
        means: Tensor = tokens[:, prefix:].mean(dim=1)
        if self.settings.output == "mean":
            return means
        return tokens[:, 0] if self.settings.output == "class" else torch.cat([tokens[:, 0], means], dim=1)


def load_backbone(
    settings: BackboneSettings,
    device: torch.device,
    fetched: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
    threads: int = 1,
) -> Backbone:
    """The model that the settings name, with its weights, on a device.

    Args:
        settings: the section `backbone` of a modality.
        device: where it runs.
        fetched: what the job that fetched weights from the hub found.
        say: prints a line of the log.
        threads: of a CPU that compute.

    Raises:
        ConfigError: no such model, weights that do not fit it, or an output that it does not have.
        PipelineError: the weights are not where they were fetched to.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; whoever wants speed says bf16
        torch.backends.cudnn.benchmark = True  # batches have one size
    model = make_model(settings, fetched)
    if settings.output != "pooled":
        has_class = getattr(model, "cls_token", None) is not None
        if not hasattr(model, "num_prefix_tokens") or (settings.output != "mean" and not has_class):
            raise ConfigError(f"backbone.output: {settings.model} has no tokens for {settings.output!r}: set pooled")
    data = timm.data.resolve_model_data_config(model)
    if settings.crop == "model" and data["crop_mode"] not in ("center", "squash"):
        raise ConfigError(f"backbone.crop: {settings.model} is cropped in the way {data['crop_mode']!r}: set whole")
    geometry = Geometry(
        side=settings.input_size or int(data["input_size"][-1]),
        interpolation=InterpolationMode(data["interpolation"]),
        whole=settings.crop == "whole",
        crop_pct=float(data["crop_pct"]),
        squash=data["crop_mode"] == "squash",
    )
    return Backbone(model, geometry, data["mean"], data["std"], settings, device, say, threads)


def check_finite(values: Tensor) -> None:
    """Refuse embeddings that are no numbers.

    Raises:
        PipelineError: some are not finite, or became so as fp16.
    """
    if not bool(torch.isfinite(values).all()):
        raise PipelineError("backbone: gives numbers that are not finite or too large for fp16: are the weights whole?")


def _memory_is_short(error: BaseException) -> bool:
    short = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in short)
