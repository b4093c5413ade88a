"""Weights are fetched once, pinned, and loaded offline and whole; what does not fit is one line."""

import errno
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from pipeline.errors import ConfigError, PipelineError
from pipeline.image_settings import BackboneSettings
from pipeline.model_presets import MODELS, Model
from pipeline.weights import fetch, make_model, weights_name
from support.fake_hub import FakeHub, Repository, serve

ROOT = Path(__file__).parents[1]
RESNET, VIT, LINKED = "timm/test_resnet.r160_in1k", "timm/test_vit.r160_in1k", "owner/linked"
FETCHED = {"source": "a/b", "commit": "0" * 40, "files": "model.safetensors", "sha256": "ab" * 32}


def settings(**changes: Any) -> BackboneSettings:
    return BackboneSettings.model_validate({"model": "test_resnet", **changes})


def state_of(name: str, seed: int, **arguments: Any) -> dict[str, Tensor]:
    """Weights that the code under test has not made, and no two of which are alike."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = timm.create_model(name, pretrained=False, **arguments).state_dict()
    return {key: value + torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


def pickled(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def assert_holds(model: nn.Module, state: dict[str, Tensor]) -> None:
    """The model holds these values and nothing else."""
    kept = model.state_dict()
    assert len(kept) > 20
    assert all(torch.equal(value, state[name]) for name, value in kept.items())


@pytest.fixture(scope="module")
def resnet() -> dict[str, Tensor]:
    """Weights with a classifier for five classes."""
    return state_of("test_resnet", 7, num_classes=5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on the loopback, which is the only one that the client knows, and an empty cache."""
    with serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
        pattern = served.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)
        yield served


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a connection fails, and is not waited for."""

    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError("no network")

    huggingface_hub.close_session()  # nor over a connection that is open still
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(time, "sleep", lambda _: None)


def downloads(hub: FakeHub) -> int:
    return sum(count for request, count in hub.requests.items() if request.startswith("GET") and "/resolve/" in request)


def test_weights_are_downloaded_once_and_loaded_without_the_hub(
    hub: FakeHub, resnet: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    content = safetensors.torch.save(resnet)
    hub.repositories[RESNET] = Repository.of({"model.safetensors": content, "pytorch_model.bin": b"not this"})
    fetched = fetch(settings())
    assert fetched == {
        "source": RESNET,
        "commit": hub.repositories[RESNET].refs["main"],
        "files": "model.safetensors",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert fetch(settings()) == fetched
    assert downloads(hub) == 1
    before = hub.requests.total()
    request.getfixturevalue("no_network")
    assert_holds(make_model(settings(), fetched), resnet)
    assert hub.requests.total() == before
    assert fetch(settings()) == fetched


def test_an_old_format_is_taken_where_there_is_no_other(hub: FakeHub, resnet: dict[str, Tensor]) -> None:
    hub.repositories[RESNET] = Repository.of({"pytorch_model.bin": pickled(resnet)})
    fetched = fetch(settings())
    assert fetched["files"] == "pytorch_model.bin"
    assert_holds(make_model(settings(), fetched), resnet)


def test_a_branch_that_moves_does_not_change_what_is_loaded(hub: FakeHub, resnet: dict[str, Tensor]) -> None:
    hub.repositories[RESNET] = Repository.of({"model.safetensors": safetensors.torch.save(resnet)})
    first = fetch(settings())
    later = state_of("test_resnet", 8, num_classes=5)
    commit = hub.repositories[RESNET].push({"model.safetensors": safetensors.torch.save(later)})
    assert fetch(settings(revision=first["commit"])) == first
    second = fetch(settings())
    assert second["commit"] == commit != first["commit"]
    assert_holds(make_model(settings(), first), resnet)
    assert_holds(make_model(settings(), second), later)


def test_a_branch_that_moves_between_two_files_gives_files_of_one_commit(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"config.json": b"{}", "model.safetensors": b"first"}
    repository = hub.repositories[LINKED] = Repository.of(first)
    answer = hub.answer

    def moves(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        found = answer(method, path)
        if method == "GET" and path.endswith("config.json"):
            repository.push({"config.json": b"{ }", "model.safetensors": b"second"})
        return found

    monkeypatch.setattr(hub, "answer", moves)
    fetched = fetch(settings(model=f"hf-hub:{LINKED}"))
    assert fetched["sha256"] == hashlib.sha256(b"first").hexdigest()
    assert repository.commits[fetched["commit"]] == first


def test_a_full_cache_is_enough_in_offline_mode(
    hub: FakeHub, resnet: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[RESNET] = Repository.of({"pytorch_model.bin": pickled(resnet)})
    fetched = fetch(settings())
    before = hub.requests.total()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(settings()) == fetched
    with pytest.raises(PipelineError, match="timm/test_vit.r160_in1k: is not in the cache, and the Hugging Face hub"):
        fetch(settings(model="test_vit"))
    assert hub.requests.total() == before


def test_without_a_network_one_line_says_what_to_do(hub: FakeHub, no_network: None, tmp_path: Path) -> None:
    with pytest.raises(PipelineError) as caught:
        fetch(settings())
    assert str(caught.value) == (
        f"{RESNET}: is not in the cache, and the Hugging Face hub cannot be reached: fetch the weights where there is "
        f"a network (HF_HOME is {tmp_path / 'home'}), or set weights: file"
    )


@pytest.mark.parametrize(
    ("model", "revision", "line"),
    [
        ("hf-hub:owner/gated", "main", "owner/gated: is gated: accept its terms at https://huggingface.co/owner/gated "
         "and set HF_TOKEN, or set weights: file"),
        ("hf-hub:owner/none", "main", "owner/none: is not on the Hugging Face hub, or private: check backbone.model, "
         "or set HF_TOKEN"),
        ("hf-hub:owner/linked", "v9", "owner/linked: has no revision 'v9': check backbone.revision"),
        ("hf-hub:owner/empty", "main", "owner/empty: holds no config.json at main: choose another model or revision"),
        ("hf-hub:owner/many/parts", "main", "backbone.model: 'owner/many/parts' is not OWNER/NAME, as the hub names "
         "models"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_give_is_one_line(hub: FakeHub, model: str, revision: str, line: str) -> None:
    hub.repositories = {
        "owner/gated": Repository.of({"config.json": b"{}"}, gated=True),
        LINKED: Repository.of({"config.json": b"{}"}),
        "owner/empty": Repository.of({"README.md": b""}),
    }
    with pytest.raises(PipelineError) as caught:
        fetch(settings(model=model, revision=revision))
    assert str(caught.value) == line


def test_a_download_that_breaks_off_is_noticed_and_leaves_nothing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    repository = hub.repositories[RESNET] = Repository.of({"model.safetensors": b"weights" * 1000}, torn=True)
    with pytest.raises(
        PipelineError, match=rf"{RESNET}: model.safetensors cannot be fetched \(.+\): run again"
    ) as caught:
        fetch(settings())
    assert "\n" not in str(caught.value)
    repository.torn = False
    assert fetch(settings())["sha256"] == hashlib.sha256(b"weights" * 1000).hexdigest()


def test_damage_in_the_cache_is_found_before_it_is_used(hub: FakeHub) -> None:
    hub.repositories[RESNET] = Repository.of({"model.safetensors": b"weights" * 1000})
    fetch(settings())
    (entry,) = Path(constants.HF_HUB_CACHE).glob("*/blobs/*")
    entry.write_bytes(b"Weights" + b"weights" * 999)
    with pytest.raises(PipelineError, match=f"{entry}: is damaged in the cache: delete it and run again"):
        fetch(settings())
    entry.unlink()
    assert fetch(settings())["sha256"] == hashlib.sha256(b"weights" * 1000).hexdigest()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOTDIR, errno.EROFS])
def test_a_cache_that_cannot_be_used_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "token")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(PipelineError) as caught:
        fetch(settings())
    assert str(caught.value) == (
        f"{constants.HF_HOME}: cannot be used ([Errno {number}] {os.strerror(number)}: 'token'): set HF_HOME to a "
        "folder that can be written to"
    )


def test_a_full_disk_is_named_by_its_folder(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(PipelineError) as caught:
        fetch(settings())
    expected = f"{constants.HF_HUB_CACHE}: the disk is full: make room, or set HF_HOME to another folder"
    assert str(caught.value) == expected


def test_two_processes_that_fetch_at_once_do_not_harm_each_other(hub: FakeHub, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000
    hub.repositories[MODELS["phikon"].hub] = Repository.of({"model.safetensors": content})
    program = (
        "import json; from pipeline.image_settings import BackboneSettings; from pipeline.weights import fetch; "
        "print(json.dumps(fetch(BackboneSettings(preset='phikon'))))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "both"), "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert said[0] == said[1]
    assert said[0]["sha256"] == hashlib.sha256(content).hexdigest()
    (held,) = (tmp_path / "both").glob("hub/*/snapshots/*/model.safetensors")
    assert held.read_bytes() == content


def test_a_lost_cache_is_one_line(hub: FakeHub) -> None:
    hub.repositories[RESNET] = Repository.of({"model.safetensors": b"weights"})
    fetched = fetch(settings())
    (held,) = Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/model.safetensors")
    held.unlink()
    with pytest.raises(
        PipelineError, match="is not in the cache any more .*: remove the receipt below results/receipts"
    ):
        make_model(settings(), fetched)


def linked_config(mean: float) -> bytes:
    shown = {"input_size": [3, 96, 96], "mean": [mean] * 3, "std": [0.2] * 3, "interpolation": "bilinear"}
    return json.dumps({"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": shown}).encode()


def test_a_model_of_the_hub_is_what_its_pinned_description_says(hub: FakeHub, resnet: dict[str, Tensor]) -> None:
    weights = safetensors.torch.save(resnet)
    repository = Repository.of({"config.json": linked_config(0.25), "model.safetensors": weights})
    hub.repositories[LINKED] = repository
    chosen = settings(model=f"hf-hub:{LINKED}")
    fetched = fetch(chosen)
    assert fetched["files"] == "config.json model.safetensors"
    repository.push({"config.json": linked_config(0.75), "model.safetensors": weights})
    fetch(chosen)
    before = hub.requests.total()
    model = make_model(chosen, fetched)
    assert hub.requests.total() == before
    assert_holds(model, resnet)
    shown = timm.data.resolve_model_data_config(model)
    assert (shown["mean"], shown["input_size"]) == ([0.25] * 3, [3, 96, 96])


@pytest.mark.parametrize("config", [b"{", b"{}", b'{"architecture": "no_such"}'])
def test_a_description_that_timm_does_not_understand_is_one_line(hub: FakeHub, config: bytes) -> None:
    hub.repositories[LINKED] = Repository.of({"config.json": config, "model.safetensors": b""})
    chosen = settings(model=f"hf-hub:{LINKED}")
    with pytest.raises(
        ConfigError, match=rf"backbone: timm cannot make hf-hub:{LINKED} \(.+\): choose another"
    ) as caught:
        make_model(chosen, fetch(chosen))
    assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_nothing_without_it() -> None:
    with pytest.raises(ConfigError, match="hf-hub:owner/linked is described on the hub alone: set weights: hub"):
        make_model(settings(model=f"hf-hub:{LINKED}", weights="random"), None)


TINY = Model(
    "test_vit",
    "owner/tiny",
    0.4,
    "none",
    (),
    {"init_values": 1e-5, "reg_tokens": 2, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"},
    output="class_mean",
    size=64,
    crop_pct=0.875,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    interpolation="bilinear",
)


def test_a_preset_is_built_and_shown_tiles_as_its_authors_say(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    layers = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    state = state_of("test_vit", 3, num_classes=0, img_size=64, init_values=1e-5, reg_tokens=2, **layers)
    hub.repositories["owner/tiny"] = Repository.of({"model.safetensors": safetensors.torch.save(state)})
    chosen = BackboneSettings(preset="tiny")
    fetched = fetch(chosen)
    model = make_model(chosen, fetched)
    assert (fetched["source"], fetched["files"]) == ("owner/tiny", "model.safetensors")
    assert_holds(model, state)
    assert type(model.get_submodule("blocks.0.mlp")) is timm.layers.SwiGLUPacked.func
    shown = timm.data.resolve_model_data_config(model)
    assert {name: shown[name] for name in ("mean", "std", "interpolation", "crop_pct", "input_size")} == {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "input_size": (3, 64, 64),
    }
    del state["blocks.0.ls1.gamma"]
    hub.repositories["owner/tiny"].push({"model.safetensors": safetensors.torch.save(state)})
    with pytest.raises(ConfigError, match=r"owner/tiny at [0-9a-f]{12}, model.safetensors: does not hold .*ls1.gamma"):
        make_model(chosen, fetch(chosen))


def test_a_preset_may_have_random_weights_or_those_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    random = make_model(BackboneSettings(preset="tiny", weights="random"), None)
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(random.state_dict(), path)
    loaded = make_model(BackboneSettings(preset="tiny", weights="file", file=str(path), seed=5), None)
    assert_holds(loaded, random.state_dict())


@pytest.mark.parametrize("where", ["hub", "file"])
def test_position_embeddings_are_resized_to_the_input(hub: FakeHub, tmp_path: Path, where: str) -> None:
    """What every place shares stays as it is at another size; 160 pixels are 10 patches of 16, 64 are 4."""
    state = state_of("test_vit", 4, num_classes=5)
    places = torch.rand(1, 1, state["pos_embed"].shape[-1])
    state["pos_embed"] = torch.cat([torch.full_like(places, 7), places.expand(1, 100, -1)], dim=1).contiguous()
    content = safetensors.torch.save(state)
    hub.repositories[VIT] = Repository.of({"model.safetensors": content})
    path = tmp_path / "vit.safetensors"
    path.write_bytes(content)
    chosen = settings(model="test_vit", weights=where, file=str(path), input_size=64)
    held = make_model(chosen, fetch(chosen) if where == "hub" else None).state_dict()
    assert held["pos_embed"].shape[1] == 17
    assert (held["pos_embed"][0, 0] == 7).all()
    torch.testing.assert_close(held["pos_embed"][0, 1:], places[0].expand(16, -1), atol=1e-5, rtol=1e-5)
    assert torch.equal(held["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


def test_random_weights_are_made_by_their_seed() -> None:
    def weights(**changes: Any) -> dict[str, Tensor]:
        torch.manual_seed(99)
        state: dict[str, Tensor] = make_model(settings(weights="random", **changes), None).state_dict()
        return state

    for more in ({}, {"input_size": 32}, {"model": "test_vit", "input_size": 32}):
        once, again, other = weights(**more), weights(**more), weights(**more, seed=1)
        assert all(torch.equal(value, again[name]) for name, value in once.items())
        assert any(not torch.equal(value, other[name]) for name, value in once.items())


def test_a_model_is_frozen_and_in_evaluation_mode_and_has_no_classifier() -> None:
    model = make_model(settings(weights="random"), None)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(name.startswith("fc.") for name in model.state_dict())


FORMS = {
    "safetensors": lambda state: safetensors.torch.save(state),
    "state dict": pickled,
    "checkpoint": lambda state: pickled({"state_dict": state, "epoch": 3}),
    "model": lambda state: pickled({"model": state, "epoch": 3}),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_come_from_a_file_and_its_classifier_is_left_out(
    tmp_path: Path, resnet: dict[str, Tensor], form: str
) -> None:
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    assert any(name.startswith("fc.") for name in resnet)
    path.write_bytes(FORMS[form](resnet))
    assert_holds(make_model(settings(weights="file", file=str(path)), None), resnet)


@pytest.mark.parametrize(
    "name",
    ["deit_tiny_distilled_patch16_224", "densenet121", "efficientvim_m1", "legacy_seresnet18", "mobilenetv3_small_050",
     "regnetx_002", "test_convnext", "test_efficientnet", "test_nfnet", "test_vit2", "volo_d1_224"],
)  # fmt: skip
def test_models_of_all_families_take_the_weights_they_have(tmp_path: Path, name: str) -> None:
    """Families name their classifiers in many ways, and adapt weights in their own."""
    state = state_of(name, 2, num_classes=5)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    model = make_model(settings(model=name, weights="file", file=str(path)), None)
    assert_holds(model, state)
    assert len(model.state_dict()) < len(state)


class Code:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["hub", "file"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(hub: FakeHub, tmp_path: Path, where: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"state_dict": Code(tmp_path / "ran")}, path)
    hub.repositories[RESNET] = Repository.of({"pytorch_model.bin": path.read_bytes()})
    chosen = settings(weights=where, file=str(path))
    with pytest.raises(ConfigError, match=r"pytorch_model.bin: does not hold the weights of this model") as caught:
        make_model(chosen, fetch(chosen) if where == "hub" else None)
    assert "which is not run" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch tells how to run it
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights", "WEIGHTS.SAFETENSORS", "pytorch_model.bin"])
def test_safetensors_are_read_under_any_name(tmp_path: Path, resnet: dict[str, Tensor], name: str) -> None:
    safetensors.torch.save_file(resnet, tmp_path / name)
    assert_holds(make_model(settings(weights="file", file=str(tmp_path / name)), None), resnet)


@pytest.mark.parametrize("damage", ["wrong size", "a key is missing", "a key too many", "no weights", "torn", "absent"])
def test_weights_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, resnet: dict[str, Tensor], damage: str
) -> None:
    path = tmp_path / "weights.pt"
    state: Any = dict(resnet)
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
        make_model(settings(weights="file", file=str(path)), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["layer4.0.bn2.weight", "bn1.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_the_name_of_the_first(
    tmp_path: Path, resnet: dict[str, Tensor], name: str, value: float
) -> None:
    state = {key: held.clone() for key, held in resnet.items()}
    state[name][-1] = value
    state["layer4.0.bn2.running_mean"][0] = value
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    with pytest.raises(ConfigError) as caught:
        make_model(settings(weights="file", file=str(path)), None)
    assert str(caught.value) == f"{path}: {name} holds NaN or infinity: take other weights"


@pytest.mark.parametrize("weights", ["hub", "random"])
@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("resnet18x", r"timm has no 'resnet18x': near it: .*\bresnet18\b"),
        ("resnet81.a1_in1k", r"timm has no 'resnet81.a1_in1k': near it: .*\bresnet18\b"),
        ("univ", r"timm has no 'univ': near it: .*\buni\b"),
        ("resnet999", r"timm has no 'resnet999': near it: (?!.*\bresnet50\b.*\bresnet50\b).*\bresnet50\b"),
        ("zzz", r"timm has no 'zzz': near it: see timm.list_models"),
        ("uni", r"uni is a preset: set backbone.preset: uni in place of model"),
        ("resnet18.a9_in1k", r"resnet18 has no weights named 'a9_in1k': near it: .*\ba1_in1k\b"),
        ("timm/resnet18", r"timm has no 'timm/resnet18': near it: .*resnet18"),
        ("local-dir:/tmp", r"timm has no 'local-dir:/tmp': near it"),
    ],
)
def test_an_unknown_model_is_refused_with_names_near_it(model: str, weights: str, line: str) -> None:
    chosen = settings(model=model, weights=weights)
    with pytest.raises(ConfigError, match=f"backbone.model: {line}") as caught:
        fetch(chosen) if weights == "hub" else make_model(chosen, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("legacy_seresnet50", "are not on the Hugging Face hub: download https://.*pth and set weights: file"),
        ("vit_giant_patch14_224", "timm knows no weights of vit_giant_patch14_224: set weights: file"),
    ],
)
def test_weights_that_are_not_on_the_hub_are_not_asked_for(hub: FakeHub, model: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        fetch(settings(model=model))
    assert not hub.requests


def test_weights_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    assert weights_name(settings(weights="random", seed=3), None) == "random, seed 3"
    assert weights_name(settings(weights="hub"), FETCHED) == "sha256 " + "ab" * 32
    # printf weights | sha256sum
    known = "sha256 9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert weights_name(settings(weights="file", file=str(path)), None) == known
    with pytest.raises(
        ConfigError, match=r"backbone.file: .*none.pt is not there: name the file that holds the weights"
    ):
        weights_name(settings(weights="file", file=str(tmp_path / "none.pt")), None)


def test_naming_weights_loads_no_library_for_models() -> None:
    program = (
        "import sys; from pipeline.image_settings import BackboneSettings; from pipeline.weights import weights_name; "
        "weights_name(BackboneSettings(weights='random'), None); "
        "print(sorted({'torch', 'timm', 'numpy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
