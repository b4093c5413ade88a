"""Models whose authors state how to use them: how timm builds each, where its weights lie, and what it was shown.

Every number is its authors', from the page in `source`, the paper it links to, or the code it names. What could not be
confirmed there is left empty, and a model that timm cannot build is left out (docs/backbones.md).
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Model:
    """What the authors of a model say about it."""

    architecture: str
    """timm's name."""
    hub: str
    """owner/name on the Hugging Face hub."""
    parameters: float
    """Millions, as the authors count: with the classifier where the model has one."""
    licence: str
    trained_on: tuple[str, ...]
    """Names of public data sets, or whose own archive."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """For timm.create_model, JSON; layers by their names in timm.layers or torch.nn."""
    gated: bool = False
    """Whether the hub asks for an account and a consent."""
    tile: tuple[int, ...] = ()
    """Sides of tiles in pixels, any of which is meant; empty: not stated."""
    mpp: tuple[float, ...] = ()
    """µm per pixel, any of which is meant; empty: not stated."""
    output: str = "pooled"
    crop: str = "whole"
    """`model` where the authors crop the tile."""
    size: int = 224
    """Side of the input in pixels."""
    crop_pct: float = 1.0
    """Share of a tile's side that is left when it is cropped."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"

    @property
    def source(self) -> str:
        """Address of the model's page."""
        return HUB + self.hub


BIOPTIMUS: dict[str, Any] = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
LUNIT: dict[str, Any] = {"mean": (0.70322989, 0.53606487, 0.66096631), "std": (0.21716536, 0.26081574, 0.20723464)}
KAIKO: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
SWIGLU: dict[str, Any] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}

MODELS: dict[str, Model] = {
    "uni": Model(
        "vit_large_patch16_224", "MahmoodLab/UNI", 303.4, "CC-BY-NC-ND-4.0", ("GTEx", "own archive of MGB"),
        {"init_values": 1e-5}, gated=True, tile=(224, 256), mpp=(0.5,), interpolation="bilinear",
    ),
    "uni2-h": Model(
        "vit_giant_patch14_224", "MahmoodLab/UNI2-h", 681.4, "CC-BY-NC-ND-4.0", ("own archive of MGB",),
        {"depth": 24, "num_heads": 24, "embed_dim": 1536, "mlp_ratio": 2.66667 * 2, "init_values": 1e-5,
         "no_embed_class": True, "reg_tokens": 8, **SWIGLU},
        gated=True, tile=(224, 256), mpp=(0.5,), interpolation="bilinear",
    ),
    "virchow": Model(
        "vit_huge_patch14_224", "paige-ai/Virchow", 631.2, "Apache-2.0", ("own archive of MSKCC",),
        {"mlp_ratio": 5.3375, "init_values": 1e-5, **SWIGLU}, gated=True, tile=(224,), mpp=(0.5,), output="class_mean",
    ),
    "virchow2": Model(
        "vit_huge_patch14_224", "paige-ai/Virchow2", 631.2, "CC-BY-NC-ND-4.0", ("own archive of MSKCC and others",),
        {"mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4, **SWIGLU},
        gated=True, tile=(224,), mpp=(0.25, 0.5, 1.0, 2.0), output="class_mean",
    ),
    "h-optimus-0": Model(
        "vit_giant_patch14_reg4_dinov2", "bioptimus/H-optimus-0", 1130, "Apache-2.0", ("own archive of Bioptimus",),
        {"init_values": 1e-5}, gated=True, tile=(224,), mpp=(0.5,), **BIOPTIMUS,
    ),
    "h-optimus-1": Model(
        "vit_giant_patch14_reg4_dinov2", "bioptimus/H-optimus-1", 1130, "CC-BY-NC-ND-4.0",
        ("own archive of Bioptimus",), {"init_values": 1e-5}, gated=True, tile=(224,), mpp=(0.5,), **BIOPTIMUS,
    ),
    "h0-mini": Model(
        "vit_base_patch14_reg4_dinov2", "bioptimus/H0-mini", 85.7, "CC-BY-NC-ND-4.0", ("TCGA",),
        {"mlp_ratio": 5.33334, "init_values": 1e-5, **SWIGLU},
        gated=True, tile=(224,), mpp=(0.5,), output="class_mean", **BIOPTIMUS,
    ),
    "prov-gigapath": Model(
        "vit_giant_patch14_dinov2", "prov-gigapath/prov-gigapath", 1130, "Apache-2.0, research only",
        ("own archive of Providence",), {"patch_size": 16, "mlp_ratio": 5.33334, "init_values": 1e-5},
        gated=True, tile=(256,), mpp=(0.5,), crop="model", crop_pct=224 / 256,
    ),
    "phikon": Model(
        "vit_base_patch16_224", "1aurent/vit_base_patch16_224.owkin_pancancer", 85.8, "Owkin, non-commercial",
        ("TCGA",), tile=(224,), mpp=(0.5,),
    ),
    "kaiko-s16": Model(
        "vit_small_patch16_224", "1aurent/vit_small_patch16_224.kaiko_ai_towards_large_pathology_fms", 21.7,
        "kaiko, non-commercial", ("TCGA",), **KAIKO,
    ),
    "kaiko-b16": Model(
        "vit_base_patch16_224", "1aurent/vit_base_patch16_224.kaiko_ai_towards_large_pathology_fms", 85.8,
        "kaiko, non-commercial", ("TCGA",), **KAIKO,
    ),
    "kaiko-b8": Model(
        "vit_base_patch8_224", "1aurent/vit_base_patch8_224.kaiko_ai_towards_large_pathology_fms", 85.8,
        "kaiko, non-commercial", ("TCGA",), **KAIKO,
    ),
    "lunit-s16": Model(
        "vit_small_patch16_224", "1aurent/vit_small_patch16_224.lunit_dino", 21.7, "Lunit, non-commercial",
        ("TCGA",), **LUNIT,
    ),
    "lunit-s8": Model(
        "vit_small_patch8_224", "1aurent/vit_small_patch8_224.lunit_dino", 21.7, "Lunit, non-commercial",
        ("TCGA",), **LUNIT,
    ),
    "resnet50": Model(
        "resnet50.a1_in1k", "timm/resnet50.a1_in1k", 25.6, "Apache-2.0", ("ImageNet-1k",), crop_pct=0.95
    ),
    "convnext-base": Model(
        "convnext_base.fb_in22k_ft_in1k", "timm/convnext_base.fb_in22k_ft_in1k", 88.6, "Apache-2.0",
        ("ImageNet-22k", "ImageNet-1k"), crop_pct=0.875,
    ),
    "dinov2-small": Model(
        "vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m", 22.1, "Apache-2.0",
        ("LVD-142M",), size=518,
    ),
    "dinov2-base": Model(
        "vit_base_patch14_dinov2.lvd142m", "timm/vit_base_patch14_dinov2.lvd142m", 86.6, "Apache-2.0",
        ("LVD-142M",), size=518,
    ),
}  # fmt: skip

PATTERNS = {
    "TCGA": re.compile(r"(?<![a-z0-9])tcga-[a-z0-9]{2}-[a-z0-9]{4}(?![a-z0-9])", re.IGNORECASE),
    "CPTAC": re.compile(r"(?<![a-z0-9])c3[ln]-\d{5}(?!\d)", re.IGNORECASE),
    "GTEx": re.compile(r"(?<![a-z0-9])gtex-[a-z0-9]{4,5}(?![a-z0-9])", re.IGNORECASE),
}
"""What names look like in public data sets that give them a form of their own."""


def with_model(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a backbone section, with those that its preset states.

    Raises:
        ValueError: no such preset, or a key says something else than it.
    """
    name = values.get("preset", "none")
    if name == "none" or not isinstance(name, str):
        return values
    if name not in MODELS:
        near = sorted(MODELS, key=lambda known: -difflib.SequenceMatcher(None, name.lower(), known).ratio())
        raise ValueError(f"preset: {name!r} is unknown: choose one of none, {', '.join(near)}")
    model = MODELS[name]
    stated = {"model": model.architecture, "output": model.output}
    if model.crop != "whole":
        stated["crop"] = model.crop
    conflicts = [f"{key} ({wanted} and not {values[key]})" for key, wanted in stated.items()
                 if values.get(key) not in (None, wanted)]  # fmt: skip
    if conflicts:
        raise ValueError(
            f"the preset {name} says otherwise about {', '.join(conflicts)}: remove these keys, or the preset"
        )
    return {**values, **stated}


def mismatch(preset: str, tile: int, mpp: float) -> str:
    """What the authors of a preset say about tiles and what the settings have, one line; empty when they agree.

    Args:
        preset: a name in MODELS, or `none`.
        tile: side of the tiles in pixels.
        mpp: their µm per pixel, within 2 % of what is stated; 0, whatever a slide has, agrees with nothing stated.
    """
    model = MODELS.get(preset)
    if model is None:
        return ""
    tile_fits = not model.tile or tile in model.tile
    mpp_fits = not model.mpp or any(abs(mpp - stated) <= 0.02 * stated for stated in model.mpp)
    if tile_fits and mpp_fits:
        return ""
    sides, resolutions = (" or ".join(f"{value:g}" for value in stated) for stated in (model.tile, model.mpp))
    return (
        f"backbone.preset: {preset} is for tiles of {sides} pixels at {resolutions} µm per pixel, and slide has "
        f"tile {tile}, mpp {mpp:g}: change these, or set allow_mismatch: true"
    )


def overlap(preset: str, names: Iterable[str]) -> str:
    """A warning, one line, when names look like those of data a preset was pre-trained on; else empty.

    Args:
        preset: a name in MODELS, or `none`.
        names: of images or patients. None of them is repeated.
    """
    model = MODELS.get(preset)
    if model is None:
        return ""
    all_names = list(names)
    counts = {
        trained: sum(bool(PATTERNS[trained].search(name)) for name in all_names)
        for trained in model.trained_on
        if trained in PATTERNS
    }
    found = [f"{count} of {len(all_names)} names are like {trained}'s" for trained, count in counts.items() if count]
    if not found:
        return ""
    return f"{' and '.join(found)}, on which {preset} was pre-trained: their figures may be too good"
