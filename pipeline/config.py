"""Every setting: name, type, unit, default, meaning. Unknown keys are refused.

Those of images stand in pipeline/image_settings.py. What a stage receives is its section of this, so a section holds
exactly what changes its result.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from pipeline.errors import ConfigError
from pipeline.image_settings import SeriesSettings, Settings, SlideSettings, all_different

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class SplitSettings(Settings):
    """How patients are divided. Fold k tests on fold k, validates on fold k+1 and trains on the rest."""

    folds: int = Field(5, ge=3, le=50, description="Number of folds; each patient is in exactly one.")
    seed: int = Field(0, ge=0, description="Seed of the assignment of patients to folds.")


class HeadSettings(Settings):
    """One head: a published method with its settings."""

    method: Literal["mean", "abmil"] = Field("abmil", description="Name of the method in pipeline/heads.")
    hidden: int = Field(128, ge=1, description="abmil: width of the embedding and of the attention branch.")
    gated: bool = Field(True, description="abmil: use the gated attention (equation 9), else equation 8.")
    dropout: float = Field(0.25, ge=0, lt=1, description="Dropout before the classifier.")


class TrainingSettings(Settings):
    """How a head is fitted. Early stopping looks at validation only."""

    epochs: int = Field(50, ge=1, description="Most passes over the training bags.")
    patience: int = Field(10, ge=1, description="Stop after this many epochs without a better validation loss.")
    bags_per_step: int = Field(1, ge=1, description="Bags packed into one optimiser step.")
    learning_rate: float = Field(2e-4, gt=0, description="Of AdamW.")
    weight_decay: float = Field(1e-3, ge=0, description="Of AdamW.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    class_weights: bool = Field(True, description="Weigh classes by the inverse of their share of training bags.")
    seeds: Annotated[tuple[Seed, ...], AfterValidator(all_different)] = Field(
        (0,), min_length=1, description="One head is trained per seed and fold."
    )


class EvaluationSettings(Settings):
    """How predictions become figures."""

    resamples: int = Field(2000, ge=100, description="Bootstrap resamples of patients.")
    confidence: float = Field(0.95, gt=0, lt=1, description="Coverage of every interval.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class ExplainSettings(Settings):
    """Which pictures the report shows."""

    images: int = Field(3, ge=0, le=50, description="Attention pictures per modality and head, test images only.")


class Config(Settings):
    """One complete experiment."""

    raw: str = Field("data/raw", description="Folder of slides and DICOM folders, searched in depth.")
    labels: str = Field("data/labels.csv", description="Table of labels; absent: images are embedded, nothing learnt.")
    private: str = Field("data/private", description="ids: hashed: folder of the key and of the names behind the ids.")
    ids: Literal["path", "hashed"] = Field(
        "path", description="How images are called in results: by their path below `raw`, or by a keyed hash."
    )
    strict: bool = Field(False, description="Refuse to start when a row of `labels` names an image that is not there.")
    settle_seconds: float = Field(
        30, ge=0, description="Files changed in the last so many seconds wait for the next run."
    )
    silence_seconds: float = Field(
        900, gt=0, description="A reader that reports nothing for so many seconds is stopped and its image is failed."
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where the backbone runs.")
    content_hash: Literal["spread", "full"] = Field(
        "spread", description="Slides: hash their ends, directories and 64 spread blocks, or every byte."
    )
    max_failed: float = Field(
        0.1, ge=0, le=1, description="Stop before training when more of the labelled images failed."
    )
    bag: Literal["image", "case", "patient"] = Field("image", description="The unit that has a label: one bag.")
    classes: Annotated[tuple[str, ...], AfterValidator(all_different)] = Field(
        (), description="Labels in the order of the classes, of two the positive one last; empty: sorted."
    )
    slide: SlideSettings = Field(default_factory=SlideSettings, description="Whole-slide images.")
    series: SeriesSettings = Field(default_factory=SeriesSettings, description="CT series.")
    split: SplitSettings = Field(default_factory=SplitSettings, description="Folds.")
    heads: dict[Name, HeadSettings] = Field(
        default_factory=lambda: {"mean": HeadSettings(method="mean"), "abmil": HeadSettings(method="abmil")},
        min_length=1,
        description="Heads to train, each under a name of the user's choice.",
    )
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="How heads are fitted.")
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings, description="Metrics and intervals.")
    explain: ExplainSettings = Field(default_factory=ExplainSettings, description="Attention pictures.")

    def modality(self, kind: str) -> SlideSettings | SeriesSettings:
        """The section of one modality, `slide` or `series`."""
        return self.slide if kind == "slide" else self.series


def load_config(values: Mapping[str, Any]) -> Config:
    """Check the values of a config file.

    Raises:
        ConfigError: naming every key that is wrong, what was found and what is wanted, in one line.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(explain_errors(error)) from None


def explain_errors(error: ValidationError) -> str:
    """Pydantic's complaints as one line: `config.yaml: slide.mpp: found 0: Input should be greater than 0`."""
    lines = []
    for found in error.errors():
        key = ".".join(str(part) for part in found["loc"])
        value = json.dumps(found["input"], default=str)
        lines.append(f"{key}: found {value if len(value) < 60 else value[:57] + '...'}: {found['msg']}")
    return "config.yaml: " + "; ".join(lines)
