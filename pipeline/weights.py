"""Where a backbone's weights come from: the Hugging Face hub, once and pinned; a file; or a random generator.

`fetch` is the only function of the pipeline that uses a network. What it has fetched is then read from the cache.
"""

import difflib
import errno
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, PipelineError, one_line
from pipeline.image_settings import BackboneSettings
from pipeline.model_presets import HUB, MODELS
from pipeline.store import file_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of weights on the hub, the first that is there; the second is read as data, never run."""

CONFIG = "config.json"
ON_THE_HUB = ("hf-hub:", "hf_hub:")
CLASSIFIERS = ("fc", "head", "classifier")
"""ASSUME: weights may still carry the layers that classified ImageNet, which no embedding needs; besides these, those
that timm names for the model."""

FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What timm calls, in the modules of its models, the function that adapts foreign names and position embeddings."""


def fetch(settings: BackboneSettings) -> dict[str, str]:
    """See to it that the cache of the hub's client holds all that the model needs, and say what that is.

    Cost: the download, once; then a request, or none without a network; and reading the weights for their sha256.

    Returns:
        source (owner/name), commit (40 hexadecimal digits that a branch or tag was at), files (names, a space between
        them, weights last) and sha256 (of the weights' bytes).

    Raises:
        ConfigError: no such model, or one whose weights are not on the hub.
        PipelineError: no network, no consent, no such repository or revision, no room, or a damaged download.
    """
    source = _source(settings)
    files, revision = [], settings.revision
    if settings.model.startswith(ON_THE_HUB):
        files.append(_download(source, revision, (CONFIG,)))
        revision = files[0].parent.name  # a branch may move while files are fetched: the rest is of the same commit
    files.append(_download(source, revision, WEIGHTS))
    sha256 = file_digest(files[-1])
    # A large file's entry in the cache is named by its sha256.
    entry = os.readlink(files[-1]).rpartition("/")[2] if files[-1].is_symlink() else ""
    if len(entry) == 64 and entry != sha256:
        raise PipelineError(f"{files[-1].resolve()}: is damaged in the cache: delete it and run again")
    names = " ".join(file.name for file in files)
    return {"source": source, "commit": files[-1].parent.name, "files": names, "sha256": sha256}


def make_model(settings: BackboneSettings, fetched: Mapping[str, str] | None) -> "nn.Module":
    """The model with its weights, on the CPU, without classifier, frozen and in evaluation mode. Uses no network.

    Args:
        settings: what to make. An `input_size` becomes the size of a transformer's input.
        fetched: what `fetch` said, for `weights: hub`.

    Raises:
        ConfigError: no such model, or weights that do not fit it or are not finite.
        PipelineError: the cache no longer holds what was fetched.
    """
    file, name, shown = Path(settings.file), settings.model, settings.file
    if settings.weights == "hub":
        assert fetched is not None, "fetched weights are asked for and none were fetched"
        *config, file = [_cached(fetched, each) for each in fetched["files"].split()]
        if config:
            name = f"local-dir:{config[0].parent}"
        shown = f"{fetched['source']} at {fetched['commit'][:12]}, {file.name}"
    if name == settings.model:
        _check_name(name)
    model = _create(name, settings)
    if settings.weights != "random":
        _load(model, file, shown)
    return model.eval().requires_grad_(False)


def weights_name(settings: BackboneSettings, fetched: Mapping[str, str] | None) -> str:
    """What tells weights apart: the sha256 of their file, or the seed they are made from. Imports nothing heavy.

    Raises:
        ConfigError: the file is not there.
    """
    match settings.weights:
        case "random":
            return f"random, seed {settings.seed}"
        case "hub":
            assert fetched is not None, "fetched weights are asked for and none were fetched"
            return f"sha256 {fetched['sha256']}"
        case "file":
            path = Path(settings.file)
            if not path.is_file():
                raise ConfigError(f"backbone.file: {path} is not there: name the file that holds the weights")
            return f"sha256 {file_digest(path)}"


def _check_name(name: str) -> None:
    """Refuse a model that timm does not have, with the names or the tags nearest to it."""
    import timm

    if name.startswith(ON_THE_HUB):
        raise ConfigError(f"backbone.model: {name} is described on the hub alone: set weights: hub")
    if not timm.is_model(name):
        if name in MODELS:
            raise ConfigError(f"backbone.model: {name} is a preset: set backbone.preset: {name} in place of model")
        near = ", ".join(difflib.get_close_matches(name.split(".")[0].lower(), {*timm.list_models(), *MODELS}, 5))
        raise ConfigError(f"backbone.model: timm has no {name!r}: near it: {near or 'see timm.list_models()'}")
    base, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        near = ", ".join(difflib.get_close_matches(tag, tags, 5, 0)) or "none"
        raise ConfigError(f"backbone.model: {base} has no weights named {tag!r}: near it: {near}")


def _source(settings: BackboneSettings) -> str:
    """The repository that holds the weights, as owner/name."""
    if settings.preset in MODELS:
        return MODELS[settings.preset].hub
    if settings.model.startswith(ON_THE_HUB):
        return settings.model.partition(":")[2]
    import timm

    _check_name(settings.model)
    tagged = timm.get_pretrained_cfg(settings.model)
    if tagged and tagged.hf_hub_id:
        return str(tagged.hf_hub_id)
    if tagged and tagged.url:
        raise ConfigError(
            f"backbone.model: the weights of {settings.model} are not on the Hugging Face hub: download {tagged.url} "
            "and set weights: file, or choose another model"
        )
    raise ConfigError(
        f"backbone.model: timm knows no weights of {settings.model}: set weights: file, or choose another model"
    )


def _download(source: str, revision: str, names: tuple[str, ...]) -> Path:
    """The first of these files that is there, in the cache, in a folder named by its commit."""
    from huggingface_hub import constants, errors, hf_hub_download

    unreachable = False
    for name in names:
        try:
            # Where the hub cannot be reached, one name is enough to find out: it is tried for half a minute.
            return Path(hf_hub_download(source, name, revision=revision, local_files_only=unreachable))
        except errors.LocalEntryNotFoundError:  # neither in the cache nor to be had
            unreachable = True
        except errors.EntryNotFoundError:
            continue
        except errors.HFValidationError:
            raise ConfigError(f"backbone.model: {source!r} is not OWNER/NAME, as the hub names models") from None
        except errors.GatedRepoError:
            raise PipelineError(
                f"{source}: is gated: accept its terms at {HUB}{source} and set HF_TOKEN, or set weights: file"
            ) from None
        except errors.RevisionNotFoundError:
            raise PipelineError(f"{source}: has no revision {revision!r}: check backbone.revision") from None
        except errors.RepositoryNotFoundError:
            raise PipelineError(
                f"{source}: is not on the Hugging Face hub, or private: check backbone.model, or set HF_TOKEN"
            ) from None
        except Exception as error:  # the hub's client, and what it stands on, raise their own kinds
            if getattr(error, "errno", 0) in {errno.ENOSPC, errno.EDQUOT}:
                raise PipelineError(
                    f"{constants.HF_HUB_CACHE}: the disk is full: make room, or set HF_HOME to another folder"
                ) from None
            if getattr(error, "errno", 0) in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}:
                raise PipelineError(
                    f"{constants.HF_HOME}: cannot be used ({one_line(error)}): set HF_HOME to a folder that can be "
                    "written to"
                ) from None
            raise PipelineError(
                f"{source}: {name} cannot be fetched ({one_line(error)}): run again, or set weights: file"
            ) from None
    if unreachable:
        raise PipelineError(
            f"{source}: is not in the cache, and the Hugging Face hub cannot be reached: fetch the weights where there "
            f"is a network (HF_HOME is {constants.HF_HOME}), or set weights: file"
        )
    raise PipelineError(f"{source}: holds no {' or '.join(names)} at {revision}: choose another model or revision")


def _cached(fetched: Mapping[str, str], name: str) -> Path:
    """A file that was fetched."""
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(fetched["source"], name, revision=fetched["commit"], local_files_only=True))
    except errors.LocalEntryNotFoundError:
        raise PipelineError(
            f"{fetched['source']}: {name} at {fetched['commit'][:12]} is not in the cache any more (HF_HOME is "
            f"{constants.HF_HOME}): remove the receipt below results/receipts/weights and run again"
        ) from None


def _arguments(preset: str) -> dict[str, Any]:
    """What timm.create_model is told besides the name."""
    import timm
    from torch import nn

    model = MODELS.get(preset)
    if model is None:
        return {}
    layers = {
        name: getattr(timm.layers, layer, None) or getattr(nn, layer)
        for name, layer in model.arguments.items()
        if name.endswith("_layer")
    }
    shown = {name: getattr(model, name) for name in ("mean", "std", "interpolation", "crop_pct")}
    shown["input_size"] = (3, model.size, model.size)
    return {**model.arguments, **layers, "pretrained_cfg_overlay": shown}


def _create(name: str, settings: BackboneSettings) -> "nn.Module":
    """The model with random weights; transformers have to know the size of their input, others do not take it."""
    import timm
    import torch

    make = partial(timm.create_model, name, num_classes=0, **_arguments(settings.preset))
    try:
        torch.manual_seed(settings.seed)
        try:
            model: nn.Module = make(img_size=settings.input_size or None)
        except TypeError:
            torch.manual_seed(settings.seed)
            model = make()
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"backbone: timm cannot make {settings.model} ({one_line(error)}): choose another") from None
    return model


def _load(model: "nn.Module", path: Path, shown: str) -> None:
    """Fill a model from a file, all of it and with nothing left over but a classifier."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors" or _is_safetensors(path):
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for wrapping in ("state_dict", "model"):
                state = state.get(wrapping, state)
        named: str | list[str] = getattr(model, "pretrained_cfg", {}).get("classifier") or []
        left_over = {name.split(".")[0] for name in (*CLASSIFIERS, *([named] if isinstance(named, str) else named))}
        wanted = model.state_dict().keys()
        fitting = {
            name: value
            for name, value in _adapted(state, model).items()
            if name in wanted or name.split(".")[0] not in left_over
        }
        model.load_state_dict(fitting)
    except UnpicklingError:  # torch's own words tell how to run the pickle
        raise ConfigError(
            f"{shown}: does not hold the weights of this model (it holds something else than tensors, which is not "
            "run, or is not whole): save the state dict alone"
        ) from None
    except Exception as error:  # safetensors and torch raise their own kinds for bytes that are no weights
        raise ConfigError(f"{shown}: does not hold the weights of this model ({one_line(error)})") from None
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ConfigError(f"{shown}: {name} holds NaN or infinity: take other weights")


def _is_safetensors(path: Path) -> bool:
    """Whether a file under any name is safetensors: a length of eight bytes, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _adapted(state: "dict[str, Tensor]", model: "nn.Module") -> "dict[str, Tensor]":
    """The weights under the names of this model, position embeddings resized to its input, as timm does it."""
    module = sys.modules[type(model).__module__]
    for name in FILTERS:
        adapt = getattr(module, name, None)
        if adapt is not None:
            try:
                adapted: dict[str, Tensor] = adapt(state, model)
            except TypeError:  # some know the names alone
                adapted = adapt(state)
            return adapted
    return state
