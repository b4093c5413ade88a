"""Presets of models: timm builds them at the size their authors state, and nothing is mixed in quietly."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.image_settings import BackboneSettings
from pipeline.model_presets import MODELS, PATTERNS, Model, mismatch, overlap, with_model
from pipeline.weights import _arguments

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"

CARDS: dict[str, tuple[float, int, int]] = {
    # Millions of parameters as published of the model, or the bytes of its weights by four; classes counted with
    # them; numbers in an embedding as published.
    "uni": (303.4, 0, 1024),
    "uni2-h": (681, 0, 1536),
    "virchow": (632, 0, 2560),
    "virchow2": (632, 0, 2560),
    "h-optimus-0": (1130, 0, 1536),
    "h-optimus-1": (1130, 0, 1536),
    "h0-mini": (86, 0, 1536),
    "prov-gigapath": (1130, 0, 1536),
    "phikon": (85.8, 0, 768),
    "kaiko-s16": (21.7, 0, 384),
    "kaiko-b16": (85.8, 0, 768),
    "kaiko-b8": (85.8, 0, 768),
    "lunit-s16": (21.7, 0, 384),
    "lunit-s8": (21.7, 0, 384),
    "resnet50": (25.6, 1000, 2048),
    "convnext-base": (88.6, 1000, 1024),
    "dinov2-small": (22.1, 0, 384),
    "dinov2-base": (86.6, 0, 768),
}


def test_every_preset_is_checked_against_its_page() -> None:
    assert CARDS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", CARDS)
def test_timm_builds_a_preset_with_the_parameters_and_the_width_of_its_page(name: str) -> None:
    millions, classes, width = CARDS[name]
    with torch.device("meta"):
        whole = timm.create_model(MODELS[name].architecture, num_classes=classes, **_arguments(name))
        bare = timm.create_model(MODELS[name].architecture, num_classes=0, **_arguments(name))
    counted = sum(parameter.numel() for parameter in whole.parameters()) / 1e6
    assert counted == pytest.approx(millions, rel=0.02)
    assert MODELS[name].parameters == pytest.approx(counted, rel=0.02)
    assert bare.num_features * (2 if MODELS[name].output == "class_mean" else 1) == width


@pytest.mark.parametrize("name", MODELS)
def test_a_preset_is_shown_what_it_states(name: str) -> None:
    model = MODELS[name]
    with torch.device("meta"):
        built = timm.create_model(model.architecture, num_classes=0, **_arguments(name))
    shown = timm.data.resolve_model_data_config(built)
    wanted = (model.mean, model.std, model.interpolation, model.crop_pct, (3, model.size, model.size))
    assert tuple(shown[key] for key in ("mean", "std", "interpolation", "crop_pct", "input_size")) == wanted
    if hasattr(built, "patch_embed"):
        assert built.patch_embed.img_size == (model.size, model.size)


@pytest.mark.parametrize("name", ["resnet50", "convnext-base", "dinov2-small", "dinov2-base"])
def test_models_of_timm_are_as_timm_describes_them(name: str) -> None:
    model, known = MODELS[name], timm.get_pretrained_cfg(MODELS[name].architecture)
    assert (model.hub, model.licence.lower(), model.size) == (known.hf_hub_id, known.license, known.input_size[-1])
    assert (model.mean, model.std) == (known.mean, known.std)
    assert (model.interpolation, model.crop_pct) == (known.interpolation, known.crop_pct)


def test_numbers_of_pages_that_differ_from_imagenet() -> None:
    bioptimus = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
    for name in ("h-optimus-0", "h-optimus-1", "h0-mini"):
        assert (MODELS[name].mean, MODELS[name].std) == bioptimus
    assert MODELS["kaiko-b8"].mean == MODELS["kaiko-b8"].std == (0.5, 0.5, 0.5)
    assert MODELS["prov-gigapath"].crop_pct * 256 == 224


def test_a_preset_sets_the_model_and_what_goes_with_it() -> None:
    chosen = BackboneSettings(preset="virchow2", weights="random", seed=2)
    assert (chosen.model, chosen.output, chosen.crop) == ("vit_huge_patch14_224", "class_mean", "whole")
    assert (chosen.weights, chosen.seed) == ("random", 2)
    assert BackboneSettings(preset="prov-gigapath").crop == "model"
    assert BackboneSettings.model_validate(chosen.model_dump()) == chosen
    assert BackboneSettings().model == "resnet18"


@pytest.mark.parametrize(
    "values", [{}, {"preset": "none", "model": "resnet50"}, {"model": "uni"}, {"preset": None}, {"preset": ["uni"]}]
)
def test_without_a_preset_nothing_is_touched(values: dict[str, Any]) -> None:
    assert with_model(values) == values


def test_a_preset_is_not_mixed_with_other_settings() -> None:
    wanted = (
        r"the preset uni says otherwise about model \(vit_large_patch16_224 and not resnet18\), "
        r"output \(pooled and not mean\): remove these keys, or the preset$"
    )
    with pytest.raises(ValueError, match=wanted):
        with_model({"preset": "uni", "model": "resnet18", "output": "mean"})


@pytest.mark.parametrize(
    ("typed", "nearest"), [("uni2h", "uni2-h"), ("Virchow-2", "virchow2"), ("hoptimus1", "h-optimus-1")]
)
def test_an_unknown_preset_is_refused_with_the_nearest_first(typed: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"preset: '{typed}' is unknown: choose one of none, {nearest}, ") as caught:
        with_model({"preset": typed})
    assert all(name in str(caught.value) for name in MODELS)


@pytest.mark.parametrize(
    ("preset", "tile", "mpp"),
    [("uni", 224, 0.5), ("uni", 256, 0.5), ("uni", 224, 0.509), ("uni", 224, 0.491), ("virchow2", 224, 2.0),
     ("virchow2", 224, 0.25), ("kaiko-b8", 999, 9.0), ("resnet50", 999, 9.0), ("none", 1, 1.0)],
)  # fmt: skip
def test_tiles_that_a_preset_is_for(preset: str, tile: int, mpp: float) -> None:
    assert mismatch(preset, tile, mpp) == ""


@pytest.mark.parametrize(
    ("preset", "tile", "mpp", "stated"),
    [
        ("uni", 224, 0.511, "tiles of 224 or 256 pixels at 0.5 µm per pixel, and slide has tile 224, mpp 0.511"),
        ("uni", 224, 0.489, "tiles of 224 or 256 pixels at 0.5 µm per pixel, and slide has tile 224, mpp 0.489"),
        ("uni", 512, 0.5, "tiles of 224 or 256 pixels at 0.5 µm per pixel, and slide has tile 512, mpp 0.5"),
        ("uni", 224, 0.0, "tiles of 224 or 256 pixels at 0.5 µm per pixel, and slide has tile 224, mpp 0"),
        ("prov-gigapath", 224, 0.5, "tiles of 256 pixels at 0.5 µm per pixel, and slide has tile 224, mpp 0.5"),
        ("virchow2", 224, 0.75, "tiles of 224 pixels at 0.25 or 0.5 or 1 or 2 µm per pixel, and slide has tile 224, "
         "mpp 0.75"),
    ],
)  # fmt: skip
def test_tiles_that_a_preset_is_not_for(preset: str, tile: int, mpp: float, stated: str) -> None:
    line = f"backbone.preset: {preset} is for {stated}: change these, or set allow_mismatch: true"
    assert mismatch(preset, tile, mpp) == line


def test_names_of_data_a_model_was_trained_on_are_counted_and_not_repeated() -> None:
    names = ["TCGA-3C-AALI-01Z-00-DX1.svs", "a/tcga-xf-aan7", "TCGA-3C", "XTCGA-3C-AALI", "patient 7"]
    assert overlap("phikon", iter(names)) == (
        "2 of 5 names are like TCGA's, on which phikon was pre-trained: their figures may be too good"
    )
    assert overlap("uni", names) == overlap("none", names) == overlap("phikon", []) == ""
    assert overlap("uni", ["GTEX-1117F-0126", "GTEX-ABC"]).startswith("1 of 2 names are like GTEx's, on which uni ")


def test_names_of_several_data_sets_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "both", Model("resnet18", "a/b", 1, "none", ("CPTAC", "own archive", "TCGA")))
    assert overlap("both", ["C3L-00001", "C3N-01234-21", "C3L-0001", "TCGA-AB-1234", "C3M-00001"]) == (
        "2 of 5 names are like CPTAC's and 1 of 5 names are like TCGA's, on which both was pre-trained: "
        "their figures may be too good"
    )


def test_every_public_set_whose_names_have_a_form_is_known_by_it() -> None:
    trained = {name for model in MODELS.values() for name in model.trained_on}
    assert trained & PATTERNS.keys() == {"TCGA", "GTEx"}


def row(name: str) -> str:
    """The line of a preset in the table of docs/backbones.md."""
    model = MODELS[name]
    tile = " or ".join(map(str, model.tile)) or "not stated"
    mpp = " or ".join(f"{value:g}" for value in model.mpp) or "not stated"
    cells = (
        f"[`{name}`]({model.source})", f"{model.parameters:g}", model.output.replace("_", " + "), tile, mpp,
        model.licence + (", gated" if model.gated else ""), ", ".join(model.trained_on),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def test_the_page_says_what_the_presets_say() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| [`")]
    assert rows == [row(name) for name in MODELS]
