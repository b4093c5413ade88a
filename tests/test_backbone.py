"""Tiles are shown to a model as timm would show them, normalised as it was trained, and embedded each for itself."""

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from numpy.typing import NDArray
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torchvision.transforms import InterpolationMode

from pipeline import backbone as backbone_module
from pipeline.backbone import Backbone, OnGpu, load_backbone
from pipeline.errors import ConfigError, PipelineError
from pipeline.image_settings import BackboneSettings
from pipeline.resizing import Geometry

CPU = torch.device("cpu")
TILES: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
HALF = np.full(3, 0.5)

SAME_SUMS = 1e-6
"""Relative difference of an embedding (norm of the difference by norm) when the same numbers are added in another
order. Measured with random weights: at most 1.1e-7; different tiles differ by 0.06 (test_resnet) and 0.5 (test_vit)."""

ROUNDED = {"bf16": (1e-3, 0.03), "fp16": (1e-4, 0.004)}
"""The least and most that a precision may differ from fp32. Measured: bf16 0.003 to 0.012, fp16 0.0004 to 0.0012."""


def settings(**changes: Any) -> BackboneSettings:
    small = {"model": "test_resnet", "weights": "random", "input_size": 32, "batch": 8, "dtype": "fp32"}
    return BackboneSettings.model_validate({**small, **changes})


def around(model: nn.Module, side: int = 32, say: Callable[[str], None] = print, **changes: Any) -> Backbone:
    """A backbone around any model, that shows it the pixels of tiles as numbers between 0 and 1."""
    geometry = Geometry(side, InterpolationMode.BICUBIC)
    return Backbone(model, geometry, (0.0,) * 3, (1.0,) * 3, settings(**changes), CPU, say)


def values(backbone: Backbone, tiles: NDArray[np.uint8] = TILES) -> NDArray[np.float64]:
    """Embeddings (tile, feature) of tiles, batch after batch."""
    batches = [tiles[first : first + backbone.batch] for first in range(0, len(tiles), backbone.batch)]
    return np.concatenate([backbone.submit(batch).result()[0] for batch in batches]).astype(np.float64)


def difference(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Largest norm of a difference by the norm of what was wanted."""
    gaps: NDArray[np.float64] = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(gaps.max())


def normalised(tiles: NDArray[np.uint8], mean: NDArray[np.float64], std: NDArray[np.float64]) -> Tensor:
    """Pictures (tile, channel, height, width), by numpy."""
    return torch.from_numpy(((tiles / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize(
    ("model", "mean", "std"),
    [("resnet18", IMAGENET_MEAN, IMAGENET_STD), ("test_resnet", HALF, HALF), ("test_vit", HALF, HALF)],
)
def test_a_model_is_shown_pixels_normalised_as_it_was_trained(
    model: str, mean: NDArray[np.float64], std: NDArray[np.float64]
) -> None:
    backbone = load_backbone(settings(model=model), CPU)
    backbone.model = nn.Flatten()
    found = values(backbone).reshape(8, 3, 32, 32)
    np.testing.assert_allclose(found, normalised(TILES, mean, std), atol=2e-6)


def test_embeddings_are_those_of_the_model_on_normalised_pixels() -> None:
    backbone = load_backbone(settings(), CPU)
    with torch.inference_mode():
        wanted = backbone.model(normalised(TILES, HALF, HALF)).numpy()
    assert difference(values(backbone), wanted) < SAME_SUMS


@pytest.mark.parametrize("crop", ["model", "whole"])
@pytest.mark.parametrize(
    "config",
    [
        {"crop_pct": 0.95, "interpolation": "bilinear"},
        {"crop_pct": 0.875, "interpolation": "bicubic", "mean": tuple(IMAGENET_MEAN), "std": tuple(IMAGENET_STD)},
        {"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "squash"},
    ],
)
@pytest.mark.parametrize("size", [(96, 96), (160, 160), (256, 256), (200, 140)])
def test_a_model_sees_what_timm_would_show_it(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], config: dict[str, Any], crop: str
) -> None:
    """Within 1/255, but for one value in 4,000, which may be 2/255 off (tests/test_resizing.py says why)."""
    model: Any = timm.create_model("test_resnet", num_classes=0)
    model.pretrained_cfg = {**model.pretrained_cfg, **config}
    monkeypatch.setattr(backbone_module, "make_model", lambda *_: model)
    backbone = load_backbone(settings(input_size=0, crop=crop, batch=1), CPU)
    backbone.model = nn.Flatten()
    data = resolve_model_data_config(model)
    if crop == "whole":
        data |= {"crop_pct": 1.0, "crop_mode": "squash"}
    transform = create_transform(**data, is_training=False)
    tile = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    wanted = transform(PIL.Image.fromarray(tile)).numpy()
    gaps = np.abs(values(backbone, tile[None]).reshape(wanted.shape) - wanted) * np.reshape(data["std"], (3, 1, 1))
    assert gaps.max() * 255 <= 2.001
    assert (gaps * 255 > 1.001).mean() < 1 / 4000


def test_a_model_that_is_cropped_in_an_unknown_way_is_refused_unless_the_whole_tile_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model: Any = timm.create_model("test_resnet", num_classes=0)
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_mode": "border"}
    monkeypatch.setattr(backbone_module, "make_model", lambda *_: model)
    load_backbone(settings(), CPU)
    with pytest.raises(ConfigError, match=r"backbone.crop: test_resnet is cropped in the way 'border': set whole"):
        load_backbone(settings(crop="model"), CPU)


def test_the_input_size_is_the_models_own_unless_it_is_set() -> None:
    assert load_backbone(settings(), CPU).geometry.side == 32
    assert load_backbone(settings(input_size=0), CPU).geometry.side == 160


def test_the_border_of_a_tile_counts_unless_the_models_crop_is_asked_for() -> None:
    """Timm resizes to 168 and cuts out the middle 160: of 252 pixels, 6 are lost at either side."""
    whole = load_backbone(settings(input_size=0, batch=1), CPU)
    cropped = load_backbone(settings(input_size=0, batch=1, crop="model"), CPU)
    plain = np.full((1, 252, 252, 3), 128, np.uint8)
    for edge in (np.s_[:, :4], np.s_[:, -4:], np.s_[:, :, :4], np.s_[:, :, -4:]):
        framed = plain.copy()
        framed[edge] = 255
        assert difference(values(whole, framed), values(whole, plain)) > 1e-3
        assert np.array_equal(values(cropped, framed), values(cropped, plain))


def test_a_backbone_is_frozen_and_in_evaluation_mode() -> None:
    backbone = load_backbone(settings(), CPU)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


@pytest.mark.parametrize(("model", "prefix"), [("test_vit", 1), ("test_vit2", 1), ("test_vit_relpos", 0)])
def test_the_mean_is_that_of_the_patches_tokens_alone(model: str, prefix: int) -> None:
    """Class tokens and registers stand before them: a class token in test_vit, a register in test_vit2."""
    side = {"test_vit_relpos": 160}.get(model, 32)
    backbone = load_backbone(settings(model=model, output="mean", input_size=side), CPU)
    tiles = np.repeat(np.repeat(TILES, side // 32, 1), side // 32, 2)
    tokens = tokens_of(backbone, tiles)
    assert tokens.shape[1] == prefix + (side // 16) ** 2
    assert difference(values(backbone, tiles), tokens[:, prefix:].mean(1)) < SAME_SUMS


def tokens_of(backbone: Backbone, tiles: NDArray[np.uint8] = TILES) -> NDArray[np.float64]:
    """(tile, token, feature), asked of the model directly."""
    with torch.inference_mode():
        tokens: Tensor = backbone.model.forward_features(normalised(tiles, HALF, HALF))
    return tokens.numpy().astype(np.float64)


def test_the_outputs_of_a_transformer_are_its_class_token_the_mean_and_both() -> None:
    found = {
        output: load_backbone(settings(model="test_vit", output=output), CPU)
        for output in ("pooled", "class", "mean", "class_mean")
    }
    tokens = tokens_of(found["class"])
    first, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    assert difference(first, mean) > 0.1, "this model cannot tell the outputs apart"
    with torch.inference_mode():
        pooled = found["pooled"].model(normalised(TILES, HALF, HALF)).numpy()
    wanted = {"pooled": pooled, "class": first, "mean": mean, "class_mean": np.concatenate([first, mean], 1)}
    for output, backbone in found.items():
        assert difference(values(backbone), wanted[output]) < SAME_SUMS, output


@pytest.mark.parametrize(
    ("model", "output"),
    [("test_resnet", "class"), ("test_resnet", "mean"), ("test_vit2", "class"), ("test_vit2", "class_mean")],
)
def test_an_output_that_a_model_does_not_have_is_refused(model: str, output: str) -> None:
    """A convolutional network has no tokens; test_vit2 has no class token."""
    with pytest.raises(ConfigError, match=f"backbone.output: {model} has no tokens for '{output}': set pooled"):
        load_backbone(settings(model=model, output=output), CPU)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_a_lower_precision_is_taken_and_stays_near_fp32(model: str, precision: str) -> None:
    exact = values(load_backbone(settings(model=model), CPU))
    rounded = load_backbone(settings(model=model, precision=precision), CPU)
    least, most = ROUNDED[precision]
    assert least < difference(values(rounded), exact) < most
    assert rounded.submit(TILES).result()[0].dtype == np.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embeddings_have_the_numbers_that_were_asked_for(precision: str) -> None:
    single = load_backbone(settings(precision=precision), CPU).submit(TILES).result()[0]
    half = load_backbone(settings(precision=precision, dtype="fp16"), CPU).submit(TILES).result()[0]
    assert (single.dtype, half.dtype) == (np.float32, np.float16)
    assert np.array_equal(half, single.astype(np.float16))
    if precision == "fp32":  # numbers of bf16, of 8 bits, fit into fp16
        assert not np.array_equal(half, single)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("change", [{"channels_last": False}, {"batch": 1}, {"batch": 2}, {"batch": 5}])
def test_batch_and_layout_change_no_embedding_by_more_than_the_order_of_sums(
    model: str, change: dict[str, Any]
) -> None:
    exact = values(load_backbone(settings(model=model), CPU))
    assert difference(values(load_backbone(settings(model=model, **change), CPU)), exact) < SAME_SUMS


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("side", [32, 16])
def test_pictures_lie_in_memory_as_the_settings_say_whether_resized_or_not(side: int, channels_last: bool) -> None:
    class Looks(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert pictures.is_contiguous(memory_format=layout)
            return pictures.flatten(1)

    values(around(Looks(), side, channels_last=channels_last))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_two_runs_give_the_same_bits(model: str) -> None:
    torch.manual_seed(1)
    first = load_backbone(settings(model=model), CPU).submit(TILES).result()[0]
    torch.manual_seed(2)
    assert load_backbone(settings(model=model), CPU).submit(TILES).result()[0].tobytes() == first.tobytes()


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("others", [0, 255, "noise"])
def test_an_embedding_does_not_depend_on_what_else_is_in_its_batch(model: str, others: int | str) -> None:
    """Bit by bit; a batch that is filled up is filled with black."""
    backbone = load_backbone(settings(model=model), CPU)
    wanted = backbone.submit(TILES).result()[0]
    changed = TILES.copy()
    changed[3:] = np.random.default_rng(5).integers(0, 256, (5, 32, 32, 3)) if others == "noise" else others
    found = backbone.submit(changed).result()[0]
    assert found[:3].tobytes() == wanted[:3].tobytes()
    assert not np.array_equal(found[3:], wanted[3:])


class Hungry(nn.Module):
    """Gives the pixels back; fails when it is shown more than so many tiles."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.shown: list[int] = []

    def forward(self, pictures: Tensor) -> Tensor:
        self.shown.append(len(pictures))
        if len(pictures) > self.most:
            raise self.error
        return pictures.flatten(1)


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_a_batch_that_memory_does_not_hold_is_halved_until_it_does_and_stays_so(error: Exception) -> None:
    said: list[str] = []
    model = Hungry(3, error)
    backbone = around(model, say=said.append)
    found = values(backbone)
    np.testing.assert_allclose(found, TILES.transpose(0, 3, 1, 2).reshape(8, -1) / 255, atol=1e-6)
    assert model.shown == [8, 4, 2, 2, 2, 2]
    assert said == [
        "backbone: memory of cpu is short: goes on with 4 tiles at once",
        "backbone: memory of cpu is short: goes on with 2 tiles at once",
    ]
    assert np.array_equal(values(backbone), found)
    assert model.shown[6:] == [2, 2, 2, 2]
    assert (len(said), backbone.most, backbone.batch) == (2, 2, 8)


def test_halves_of_an_odd_batch_hold_all_of_its_tiles() -> None:
    model = Hungry(2, MemoryError())
    found = values(around(model, batch=5, say=lambda line: None), TILES[:5])
    assert model.shown == [5, 3, 2, 2, 1]
    np.testing.assert_allclose(found, TILES[:5].transpose(0, 3, 1, 2).reshape(5, -1) / 255, atol=1e-6)


def test_memory_that_is_short_of_one_tile_is_one_line() -> None:
    said: list[str] = []
    model = Hungry(0, torch.OutOfMemoryError("CUDA out of memory.\nTried"))
    with pytest.raises(PipelineError) as caught:
        values(around(model, batch=4, say=said.append))
    assert str(caught.value) == (
        "backbone: the memory of cpu does not hold test_resnet and one tile: free some, or use a smaller model or "
        "backbone.input_size"
    )
    assert model.shown == [4, 2, 1]
    assert len(said) == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access\nwas encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
    ],
    ids=str,
)
def test_a_gpu_that_fails_is_one_line_and_is_not_asked_again(error: Exception) -> None:
    model = Hungry(0, error)
    with pytest.raises(PipelineError, match=r"device: the GPU stopped working \((CUDA|cuDNN) error") as caught:
        values(around(model))
    assert str(caught.value).endswith("): look at it with nvidia-smi and run again; what is finished is kept")
    assert "\n" not in str(caught.value)
    assert model.shown == [8]


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("blocks")])
def test_what_a_model_raises_of_its_own_goes_on_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        values(around(Hungry(0, error)))
    assert caught.value is error


class Gives(nn.Module):
    """Gives every tile the same numbers."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers = torch.tensor([numbers])

    def forward(self, pictures: Tensor) -> Tensor:
        return self.numbers.repeat(len(pictures), 1)


@pytest.mark.parametrize(
    ("number", "dtype", "refused"),
    [
        (float("nan"), "fp32", True),
        (float("-inf"), "fp32", True),
        (65504.0, "fp16", False),
        (1e5, "fp16", True),
        (1e5, "fp32", False),
    ],
)
def test_embeddings_that_are_no_numbers_or_too_large_are_refused(number: float, dtype: str, refused: bool) -> None:
    backbone = around(Gives(0.5, number), dtype=dtype)
    if not refused:
        assert values(backbone).tolist() == [[0.5, number]] * 8
        return
    with pytest.raises(PipelineError) as caught:
        values(backbone)
    assert str(caught.value) == (
        "backbone: gives numbers that are not finite or too large for fp16: are the weights whole?"
    )


def test_a_model_that_gives_no_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"backbone.model: gives \(8, 3, 32, 32\), not one vector per tile"):
        values(around(nn.Identity()))


def test_seconds_are_told_apart_into_waiting_and_working(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 13.0, 20.0, 21.0, 25.5])  # made, begun, first batch in and out, second in and out
    monkeypatch.setattr(backbone_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    backbone = around(nn.Flatten())
    backbone.begin()
    assert backbone.submit(TILES).result()[1:] == (3.0, 0.0, 7.0)
    assert backbone.submit(TILES).result()[1:] == (1.0, 0.0, 4.5)


class Event:
    """Stands for an event of a GPU that came so many milliseconds after the first."""

    def __init__(self, at: float, error: Exception | None = None) -> None:
        self.at, self.error = at, error

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at

    def synchronize(self) -> None:
        if self.error:
            raise self.error


def on_gpu(numbers: Tensor, error: Exception | None = None) -> OnGpu:
    before, copying, copied, started, ended = (Event(at) for at in (0.0, 100.0, 350.0, 400.0, 1400.0))
    return OnGpu(numbers, before, copying, copied, started, ended, Event(1500.0, error))


def test_the_events_of_a_gpu_give_seconds_of_waiting_copying_and_working() -> None:
    found, *spent = on_gpu(torch.ones(2, 3)).result()
    assert spent == [0.4, 0.25, 1.0]
    assert found.tolist() == [[1.0] * 3] * 2


def test_what_a_gpu_brings_is_checked_and_its_failure_is_one_line() -> None:
    with pytest.raises(PipelineError, match="not finite or too large"):
        on_gpu(torch.tensor([[1.0, float("nan")]])).result()
    with pytest.raises(
        PipelineError, match=r"device: the GPU stopped working \(CUDA error: unspecified launch failure"
    ):
        on_gpu(torch.ones(1, 1), torch.AcceleratorError("CUDA error: unspecified launch failure")).result()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_gives_the_same_embeddings() -> None:
    exact = values(load_backbone(settings(model="test_vit"), CPU))
    compiled = load_backbone(settings(model="test_vit", compile=True), CPU)
    torch._dynamo.reset()
    counters.clear()
    assert difference(values(compiled), exact) < 10 * SAME_SUMS
    values(compiled)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("threads", [2, 3, 8, 16])
def test_threads_share_a_batch_and_change_nothing(threads: int) -> None:
    """Of eight tiles each thread has four, three or one; their order stays."""
    alone = values(load_backbone(settings(dtype="fp32"), CPU))
    together = values(load_backbone(settings(dtype="fp32"), CPU, threads=threads))
    assert difference(together, alone) < 1e-5
    assert difference(np.roll(alone, 1, axis=0), alone) > 1e-3  # another order would be seen


def test_every_thread_halves_once_when_memory_is_short_for_all_of_them() -> None:
    class Small(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            if len(pictures) > 1:
                raise torch.OutOfMemoryError
            return pictures.flatten(1)[:, :2]

    said: list[str] = []
    geometry = Geometry(32, InterpolationMode.BICUBIC)
    backbone = Backbone(Small(), geometry, (0.0,) * 3, (1.0,) * 3, settings(), CPU, said.append, threads=2)
    assert len(values(backbone)) == 8 and backbone.most == 1
    assert 2 <= len(said) <= 4  # four tiles each: to two, to one; a thread may come when the other has said so
