"""The whole tile is resized, normalised as the model was trained, and embedded alone; bad weights are one line."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms import InterpolationMode

from pipeline.backbone import Backbone, choose_device, load_backbone, lock_gpu
from pipeline.errors import ConfigError, PipelineError
from pipeline.image_settings import BackboneSettings

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
TILES: NDArray[np.uint8] = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def settings(**changes: Any) -> BackboneSettings:
    return BackboneSettings.model_validate(
        {"model": "test_resnet", "weights": "random", "input_size": 32, "batch": 4, **changes}
    )


def transparent(side: int, mean: float = 0.0, std: float = 1.0, batch: int = 2) -> Backbone:
    """A backbone whose embedding is the pixels that its model was shown, channel by channel."""
    shape = (3, 1, 1)
    return Backbone(
        model=nn.Flatten(),
        side=side,
        mean=torch.full(shape, mean),
        std=torch.full(shape, std),
        interpolation=InterpolationMode.BICUBIC,
        device=CPU,
        batch=batch,
    )


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(settings(), CPU)


@pytest.fixture(scope="module")
def whole_model() -> nn.Module:
    """The same architecture with its classifier, and other weights."""
    torch.manual_seed(7)
    model: nn.Module = timm.create_model("test_resnet", pretrained=False, num_classes=5)
    return model


def test_a_model_is_shown_normalised_pixels_channels_first() -> None:
    """(value / 255 - mean) / std, computed here with numpy."""
    tiles = np.zeros((1, 2, 2, 3), np.uint8)
    tiles[0, 0, 1] = (255, 51, 0)
    found = transparent(2, mean=0.5, std=0.25).embed(tiles).reshape(3, 2, 2)
    wanted = ((tiles[0].transpose(2, 0, 1) / 255) - 0.5) / 0.25
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert found[:, 0, 1].tolist() == [2.0, pytest.approx(-1.2, abs=1e-3), -2.0]
    assert found.dtype == np.float16


def test_a_model_is_normalised_as_it_was_trained() -> None:
    resnet = load_backbone(settings(model="resnet18"), CPU)
    np.testing.assert_allclose(resnet.mean.flatten(), IMAGENET_MEAN, atol=1e-6)
    np.testing.assert_allclose(resnet.std.flatten(), IMAGENET_STD, atol=1e-6)


def test_embeddings_are_those_of_the_model_on_normalised_pixels(backbone: Backbone) -> None:
    """The model is asked directly, on pixels prepared with numpy."""
    mean, std = (value.flatten().numpy().astype(np.float64) for value in (backbone.mean, backbone.std))
    prepared = ((TILES / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    with torch.inference_mode():
        wanted = backbone.model(torch.from_numpy(prepared)).numpy()
    np.testing.assert_allclose(backbone.embed(TILES), wanted, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("side", [8, 16, 32, 40])
def test_a_constant_tile_stays_constant_at_any_size(side: int) -> None:
    found = transparent(side).embed(np.full((1, 16, 16, 3), 102, np.uint8))
    assert found.shape == (1, 3 * side * side)
    np.testing.assert_allclose(found, 102 / 255, atol=1e-3)


@pytest.mark.parametrize("side", [8, 12])
def test_a_tile_is_resized_like_pillow_does_it(side: int) -> None:
    tile = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wanted = np.asarray(PIL.Image.fromarray(tile).resize((side, side), PIL.Image.Resampling.BICUBIC))
    found = transparent(side).embed(tile[None]).reshape(3, side, side).transpose(1, 2, 0) * 255.0
    np.testing.assert_allclose(found, wanted, atol=1.5)


def test_a_tile_that_is_not_square_is_resized_whole() -> None:
    tile = np.zeros((8, 16, 3), np.uint8)
    tile[:, 8:] = 255
    found = transparent(4).embed(tile[None]).reshape(3, 4, 4)
    assert (found[..., 0] < 0.1).all() and (found[..., 3] > 0.9).all()


def test_the_border_of_a_tile_counts(backbone: Backbone) -> None:
    """A centre crop, which the usual preprocessing of ImageNet makes, would not see it."""
    plain = np.full((1, 64, 64, 3), 128, np.uint8)
    for edge in (np.s_[:, :2], np.s_[:, -2:], np.s_[:, :, :2], np.s_[:, :, -2:]):
        framed = plain.copy()
        framed[edge] = 255
        assert np.abs(backbone.embed(framed) - backbone.embed(plain)).max() > 1e-3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_short_batch_gives_the_same_bits_as_a_full_one(backbone: Backbone, count: int) -> None:
    """An embedding does not depend on which tiles follow it."""
    assert backbone.embed(TILES[:count]).tobytes() == backbone.embed(TILES)[:count].tobytes()


def test_random_weights_are_made_by_their_seed(backbone: Backbone) -> None:
    torch.manual_seed(99)
    again, other = load_backbone(settings(), CPU), load_backbone(settings(seed=1), CPU)
    assert again.embed(TILES).tobytes() == backbone.embed(TILES).tobytes()
    assert not np.allclose(other.embed(TILES), backbone.embed(TILES), atol=1e-2)


def test_a_backbone_is_frozen_and_in_evaluation_mode(backbone: Backbone) -> None:
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_the_input_size_is_the_models_own_unless_it_is_set(backbone: Backbone) -> None:
    assert backbone.side == 32
    assert load_backbone(settings(input_size=0), CPU).side == timm.get_pretrained_cfg("test_resnet").input_size[-1]


@pytest.mark.parametrize("form", ["safetensors", "state dict", "checkpoint"])
def test_weights_come_from_a_file_and_its_classifier_is_left_out(
    tmp_path: Path, whole_model: nn.Module, form: str
) -> None:
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    state = {name: value.contiguous() for name, value in whole_model.state_dict().items()}
    assert any(name.startswith("fc.") for name in state)
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state if form == "state dict" else {"state_dict": state, "epoch": 3}, path)
    loaded = load_backbone(settings(weights="file", file=str(path)), CPU)
    kept = loaded.model.state_dict()
    assert not any(name.startswith("fc.") for name in kept)
    assert all(torch.equal(value, state[name]) for name, value in kept.items())


class Code:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Code(tmp_path / "ran")}, path)
    with pytest.raises(ConfigError, match=r"weights.pt: does not hold the weights of this model"):
        load_backbone(settings(weights="file", file=str(path)), CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["wrong size", "a key is missing", "a key too many", "no weights", "torn", "absent"])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, whole_model: nn.Module, damage: str) -> None:
    path = tmp_path / "weights.pt"
    state: Any = dict(whole_model.state_dict())
    match damage:
        case "wrong size":
            state["bn1.weight"] = state["bn1.weight"][:1]
        case "a key is missing":
            del state["bn1.weight"]
        case "a key too many":
            state["extra.weight"] = torch.zeros(1)
        case "no weights":
            state = [1, 2, 3]
    if damage != "absent":
        torch.save(state, path)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"weights.pt: does not hold the weights of this model \(") as caught:
        load_backbone(settings(weights="file", file=str(path)), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_give_no_numbers_are_refused_in_one_line(
    tmp_path: Path, whole_model: nn.Module, value: float
) -> None:
    state = dict(whole_model.state_dict())
    state["layer4.0.bn2.weight"] = torch.full_like(state["layer4.0.bn2.weight"], value)
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    loaded = load_backbone(settings(weights="file", file=str(path)), CPU)
    with pytest.raises(PipelineError, match="not finite or too large for fp16: are the weights whole") as caught:
        loaded.embed(TILES)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_is_refused_with_names_near_it() -> None:
    with pytest.raises(ConfigError, match=r"timm has no 'resnet18x': near it: .*resnet") as caught:
        load_backbone(settings(model="resnet18x"), CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"timm has no 'zzz': near it: see timm.list_models"):
        load_backbone(settings(model="zzz"), CPU)


def test_a_model_that_gives_no_vectors_is_refused() -> None:
    class Keeps(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    maps = transparent(4)
    maps = Backbone(Keeps(), maps.side, maps.mean, maps.std, maps.interpolation, CPU, maps.batch)
    with pytest.raises(ConfigError, match=r"gives \(2, 3, 4, 4\), not one vector per tile"):
        maps.embed(np.zeros((1, 4, 4, 3), np.uint8))


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
    first, first_lock = lock_gpu(2, folder)
    second, second_lock = lock_gpu(2, folder)
    assert {first, second} == {0, 1}
    began = time.monotonic()
    with pytest.raises(PipelineError, match="none of 2 GPUs became free in 0.1 s: run fewer jobs at once"):
        lock_gpu(2, folder, patience=0.1)
    assert time.monotonic() - began < 5
    second_lock.close()
    again, again_lock = lock_gpu(2, folder, patience=0.1)
    assert again == second
    again_lock.close()
    first_lock.close()


def test_a_worker_waits_until_a_gpu_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, lock = lock_gpu(1, tmp_path)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            lock.close()

    monkeypatch.setattr(time, "sleep", sleep)
    index, mine = lock_gpu(1, tmp_path, patience=60)
    assert (index, len(waits)) == (0, 3)
    mine.close()
