"""Settings of how images become tiles and embeddings: name, type, unit, default, meaning.

What a stage receives is its section of this, so a section holds exactly what changes its result.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.model_presets import MODELS, mismatch, with_model
from pipeline.presets import with_preset
from pipeline.windows import NAMED, resolve


def all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, none of which may stand there twice."""
    if len(set(values)) < len(values):
        raise ValueError("names something twice")
    return values


Window = Annotated[
    tuple[float, float],
    BeforeValidator(resolve, json_schema_input_type=str | tuple[float, float]),
]
Preference = Literal[
    "original", "no_contrast", "contrast", "soft_kernel", "sharp_kernel", "thickness", "most_slices", "lowest_number"
]


class Settings(BaseModel):
    """Frozen, and strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BackboneSettings(Settings):
    """The frozen timm model that turns a tile into an embedding."""

    preset: str = Field(
        "none",
        description="none, or a model whose authors state how to use it: " + ", ".join(MODELS) + " (docs/backbones.md)."
        " It sets `model` and what goes with it; `weights` stays yours.",
    )
    model: str = Field(
        "resnet18", description="Name of a timm model, as `timm.list_models()` prints it, or hf-hub:OWNER/NAME."
    )
    weights: Literal["hub", "file", "random"] = Field(
        "hub", description="Where the weights come from: the Hugging Face hub, a local file, or a random generator."
    )
    revision: str = Field(
        "main", description="hub: the revision to fetch; a branch is pinned to the commit it is at when first fetched."
    )
    file: str = Field("", description="file: path of a safetensors file or a state dict, strict about its keys.")
    seed: int = Field(0, ge=0, description="random: seed of the weights.")
    input_size: int = Field(
        0, ge=0, le=4096, description="Side in pixels that tiles are resized to; 0: the model's own input size."
    )
    crop: Literal["whole", "model"] = Field(
        "whole",
        description="whole: the whole tile is resized to the input; model: resized and cropped as timm evaluates the "
        "model, which loses the border of every tile.",
    )
    output: Literal["pooled", "class", "mean", "class_mean"] = Field(
        "pooled",
        description="The embedding: what the model pools; of transformers also the class token, the mean of the "
        "patches' tokens, or both, one after the other.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of the model's sums; bf16 and fp16 are for GPUs, and faster there."
    )
    dtype: Literal["fp16", "fp32"] = Field("fp16", description="Numbers that embeddings are kept in.")
    allow_mismatch: bool = Field(
        False, description="preset: allow tiles of another size or resolution than its authors state."
    )
    batch: int = Field(
        32, ge=1, description="Tiles per forward pass, the last one padded; changes how fast, not what, is embedded."
    )
    channels_last: bool = Field(True, description="Memory layout of pictures; changes how fast, not what, is embedded.")
    compile: bool = Field(
        False, description="torch.compile: a minute at the start, then faster; changes how fast, not what, is embedded."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return with_model(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _file_is_named(self) -> Self:
        if self.weights == "file" and not self.file:
            raise ValueError("backbone.file: is empty while backbone.weights is `file`: name the weights file")
        return self


HOW_FAST = frozenset(("batch", "channels_last", "compile"))
"""Settings of a backbone that change how fast and not what is embedded; docs/embedding.md has the tolerance."""

WHERE_FROM = frozenset(("weights", "revision", "file", "seed", "allow_mismatch"))
"""Settings of a backbone whose outcome is the weights, which are told apart by their bytes or seed."""


class ModalitySettings(Settings):
    """What slides and series have in common."""

    backbone: BackboneSettings = Field(default_factory=BackboneSettings, description="The model that embeds tiles.")
    images_per_shard: int = Field(
        8, ge=1, description="Images that one job maps over, about; the number of shards is a power of two."
    )
    features: str = Field(
        "",
        description="Folder of features that exist already, which take the place of raw images of this kind "
        "(docs/features.md); empty: images are read.",
    )
    features_of: Literal["file", "folder"] = Field(
        "file", description="features: what is one image: a file, or a folder with all files in it (of a patient, say)."
    )


class TissueSettings(Settings):
    """What of a slide is tissue, judged on a picture of the whole slide, and which tiles show enough of it.

    A `.geojson` file beside the slide, named like it, takes the place of the method.
    """

    method: Literal["otsu", "clam", "brightness", "model", "none"] = Field(
        "otsu",
        description="otsu: Otsu's threshold of the saturation; clam: the saturation, blurred, against a threshold, "
        "closed; brightness: darker than a grey level; model: a network on disk; none: all of the slide.",
    )
    mpp: float = Field(8.0, gt=0, description="Resolution of the picture, in µm per pixel.")
    threshold: int = Field(0, ge=0, le=255, description="clam: saturation above which is tissue; 0: Otsu's threshold.")
    median: int = Field(
        7, ge=1, le=255, description="clam: side of the median filter of the saturation, in pixels; odd."
    )
    close: int = Field(4, ge=0, description="clam: side of the closing of the mask, in pixels; 0: none.")
    brightness: int = Field(240, ge=0, le=255, description="brightness: grey level (luma) below which is tissue.")
    model: str = Field("", description="model: path of a TorchScript (.pt) or ONNX (.onnx) file.")
    probability: float = Field(0.5, gt=0, lt=1, description="model: what it must give a pixel to be tissue.")
    min_area: float = Field(0.0, ge=0, description="Smallest piece of tissue, without its holes, in `area_unit`.")
    min_hole: float = Field(0.0, ge=0, description="Holes up to this are filled, in `area_unit`.")
    max_holes: int = Field(-1, ge=-1, description="Holes kept in one piece, the largest; -1: all.")
    area_unit: Literal["mm2", "patch512"] = Field(
        "mm2", description="Unit of areas: mm², or squares of 512 pixels of the finest level, as CLAM counts."
    )
    keep: Literal["share", "four_points_any", "four_points_all"] = Field(
        "share",
        description="A tile is kept by the share of it that is tissue, or when one or all of four points halfway "
        "between its centre and its corners lie in tissue and its centre in no hole.",
    )
    min_share: float = Field(0.25, ge=0, le=1, description="share: how much of a tile must be tissue; 0: any at all.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.median % 2 == 0:
            raise ValueError("tissue.median: is even: a median filter has an odd side")
        if self.method == "model" and not self.model:
            raise ValueError("tissue.model: is empty while tissue.method is `model`: name the file of the network")
        return self


class QualitySettings(Settings):
    """Filters on the pixels of each tile. All are off; the first that is on makes `tile` read every tile of tissue."""

    min_sharpness: float = Field(
        0.0, ge=0, description="Variance of the Laplacian of the grey levels, below which a tile is blurred; 0: off."
    )
    max_pen: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Most of a tile that may have the colour of a pen; 1: off. Below 0.05 it removes tiles of H&E.",
    )
    max_black: float = Field(1.0, ge=0, le=1, description="Most of a tile that may be near black; 1: off.")
    max_white: float = Field(1.0, ge=0, le=1, description="Most of a tile that may be near white; 1: off.")
    min_edges: float = Field(0.0, ge=0, le=1, description="Share of Canny's edges a tile must have; 0: off.")


class SlideSettings(ModalitySettings):
    """How whole-slide images are read and tiled."""

    kind: Literal["slide"] = Field("slide", description="Fixed.")
    preset: Literal["none", "clam-biopsy", "clam-resection", "clam-tcga", "trident-20x-256", "stamp-1.14"] = Field(
        "none", description="Geometry and tissue as another tool has them (pipeline/presets.py)."
    )
    mpp: float = Field(
        0.5, ge=0, le=100, description="Resolution of the tiles, in µm per pixel; 0: the finest that each slide has."
    )
    mpp_tolerance: float = Field(
        0.02, ge=0, lt=1, description="A level within this relative distance of `mpp` is used as it is."
    )
    mpp_policy: Literal["require", "override", "assume"] = Field(
        "require",
        description="Where a slide's own resolution comes from: require: its file, or its row of the labels; "
        "override: `native_mpp`, whatever the file says; assume: `native_mpp`, or else the objective's power, where "
        "the file says nothing plausible.",
    )
    native_mpp: float = Field(
        0.0,
        ge=0,
        le=10,
        description="override, assume: µm per pixel of every slide at its finest level; 0: not stated.",
    )
    tile: int = Field(224, ge=16, le=4096, description="Side of a tile, in pixels at `mpp`.")
    stride: int = Field(
        224, ge=1, description="Pixels at `mpp` from one tile to the next; equal to `tile`: no overlap."
    )
    edge: Literal["inside", "pad"] = Field(
        "inside", description="inside: tiles lie whole in the slide; pad: tiles over its far edge count, white beyond."
    )
    reduced_decoding: bool = Field(
        True, description="Let the JPEG decoder shrink by 2, 4 or 8 where a level is finer than needed."
    )
    icc: bool = Field(False, description="Turn colours into sRGB by the profile that the slide holds, if it does.")
    tissue: TissueSettings = Field(default_factory=TissueSettings, description="What is tissue.")
    quality: QualitySettings = Field(default_factory=QualitySettings, description="Filters on tiles.")
    max_unreadable: float = Field(0.1, ge=0, le=1, description="A slide fails when more of its tiles cannot be read.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        if not self.backbone.allow_mismatch and (found := mismatch(self.backbone.preset, self.tile, self.mpp)):
            raise ValueError(found)
        return self

    @model_validator(mode="after")
    def _mpp_is_stated(self) -> Self:
        if 0 < self.native_mpp < 0.05:
            raise ValueError("native_mpp: is below 0.05 µm per pixel, which no scanner has")
        if self.mpp_policy == "override" and not self.native_mpp:
            raise ValueError("native_mpp: is 0 while mpp_policy is `override`: state the µm per pixel")
        if self.mpp_policy == "require" and self.native_mpp:
            raise ValueError("native_mpp: is stated while mpp_policy is `require`: choose `assume` or `override`")
        return self


class SeriesSettings(ModalitySettings):
    """How CT DICOM series are chosen and read, and through which windows they are shown."""

    kind: Literal["series"] = Field("series", description="Fixed.")
    windows: tuple[Window, ...] = Field(
        (NAMED["brain"], NAMED["subdural"], NAMED["soft_tissue"]),
        description="HU windows, each a name (" + ", ".join(NAMED) + ") or [centre, width]: three for `windows` in "
        "`channels`, one for `neighbours`.",
    )
    channels: Literal["windows", "neighbours"] = Field(
        "windows",
        description="The three channels of a slice: itself through three windows; or the slice before, itself and the "
        "slice behind through one.",
    )
    min_slices: int = Field(10, ge=1, description="A series with fewer slices is refused.")
    prefer: Annotated[tuple[Preference, ...], AfterValidator(all_different)] = Field(
        ("original", "no_contrast", "soft_kernel", "thickness", "most_slices", "lowest_number"),
        description="Which of several good series in a folder is read, the first that tells them apart deciding: "
        "original, no_contrast, contrast, soft_kernel, sharp_kernel, thickness, most_slices, lowest_number. The "
        "column `series` of the labels overrides it.",
    )
    thickness_mm: float = Field(5.0, ge=0, description="Slice thickness that `thickness` comes near; 0: the thinnest.")
    max_oblique_deg: float = Field(35.0, ge=0, le=90, description="Planes further from axial are left out; degrees.")
    order: Literal["position", "instance_number"] = Field(
        "position",
        description="What puts slices in order; instance_number also takes series that state no positions.",
    )
    repeats: Literal["refuse", "first", "last"] = Field(
        "refuse", description="Which volume is read of a series that holds several of one place, such as phases."
    )
    missing_slices: Literal["note", "refuse"] = Field(
        "note", description="What becomes of a series in which slices are missing."
    )
    hu_check: Literal["refuse", "note"] = Field(
        "refuse",
        description="What becomes of a series that does not look like HU: 5 % air and 1.5 % tissue, or less.",
    )
    burned_in: Literal["refuse", "allow"] = Field(
        "refuse", description="What becomes of a series whose header says that text is burned into its pixels."
    )
    field_mm: float = Field(
        0.0, ge=0, description="Slices are cropped or padded with air to a square of this side; mm, 0: left whole."
    )
    images_per_shard: int = Field(1024, ge=1, description="Series that one job maps over, about.")
    max_unreadable: float = Field(0.0, ge=0, le=1, description="A series fails when more of its slices cannot be read.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        needed = {"windows": 3, "neighbours": 1}[self.channels]
        if len(self.windows) != needed:
            raise ValueError(
                f"windows: {len(self.windows)} are named and channels: {self.channels} needs {needed}: name {needed}"
            )
        return self
