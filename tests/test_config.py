"""config.yaml is complete, equals the defaults, and a wrong key or value is one line that names it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from pipeline.config import Config, HeadSettings, load_config
from pipeline.errors import ConfigError
from pipeline.image_settings import SeriesSettings, SlideSettings

CONFIG_FILE = Path(__file__).parents[1] / "config.yaml"


@pytest.fixture(scope="module")
def stated() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(CONFIG_FILE.read_text(encoding="utf-8"))
    return values


def models(model: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    """A model and all models that its fields hold."""
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from models(kind)


def missing(model: type[BaseModel], values: dict[str, Any], where: str = "") -> list[str]:
    """Keys of a model, and of the models in it, that some values do not state."""
    found = []
    for name, field in model.model_fields.items():
        if name not in values:
            found.append(where + name)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += missing(field.annotation, values[name], f"{where}{name}.")
    return found


def test_the_config_file_states_every_key(stated: dict[str, Any]) -> None:
    assert missing(Config, stated) == []
    head_keys = {key for head in stated["heads"].values() for key in head}
    assert head_keys == set(HeadSettings.model_fields)
    assert {head["method"] for head in stated["heads"].values()} == set(stated["heads"])


def test_the_config_file_states_the_defaults(stated: dict[str, Any]) -> None:
    assert load_config(stated) == Config()
    for name, head in stated["heads"].items():
        assert load_config({"heads": {name: head}}).heads[name] == HeadSettings(method=head["method"])


def test_the_config_file_has_a_comment_on_every_key() -> None:
    """A key that stands in several sections is explained in the first of them."""
    explained = {"kind", "method"}  # they say themselves what they are
    for line in CONFIG_FILE.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if " # " in value:
            explained.add(key.strip())
        assert not value.strip() or key.strip() in explained, f"no comment on: {line}"


def test_every_key_is_described() -> None:
    for model in models():
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert field.description.endswith("."), f"{model.__name__}.{name}"


def test_all_models_were_looked_at() -> None:
    assert {model.__name__ for model in models()} == {
        "Config",
        "SlideSettings",
        "TissueSettings",
        "QualitySettings",
        "SeriesSettings",
        "BackboneSettings",
        "SplitSettings",
        "HeadSettings",
        "TrainingSettings",
        "EvaluationSettings",
        "ExplainSettings",
    }


def test_no_settings_can_be_changed_and_none_accepts_unknown_keys() -> None:
    for model in models():
        assert model.model_config.get("frozen") and model.model_config.get("extra") == "forbid", model.__name__


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"slide": {"mmp": 0.5}}, "slide.mmp"),
        ({"epochs": 3}, "epochs"),
        ({"series": {"backbone": {"modle": "resnet18"}}}, "series.backbone.modle"),
        ({"heads": {"mine": {"method": "mean", "width": 3}}}, "heads.mine.width"),
        ({"slide": {"windows": [[40, 80]] * 3}}, "slide.windows"),
    ],
)
def test_an_unknown_key_is_refused_by_name(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^config.yaml: {key}: found .*not permitted$") as caught:
        load_config(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"slide": {"mpp": -1}}, "slide.mpp: found -1: Input should be greater than or equal to 0"),
        ({"slide": {"tissue": {"median": 4}}}, "tissue.median: is even"),
        ({"slide": {"tissue": {"method": "model"}}}, "tissue.model: is empty while tissue.method is `model`"),
        ({"slide": {"mpp_policy": "override"}}, "native_mpp: is 0 while mpp_policy is `override`"),
        ({"slide": {"native_mpp": 0.25}}, "native_mpp: is stated while mpp_policy is `require`"),
        ({"slide": {"mpp_policy": "assume", "native_mpp": 0.02}}, "native_mpp: is below 0.05"),
        ({"slide": {"preset": "clam"}}, "slide.preset: found \"clam\": Input should be 'none'"),
        ({"slide": {"mpp": "half"}}, 'slide.mpp: found "half": Input should be a valid number'),
        ({"slide": {"mpp": float("nan")}}, "slide.mpp: found NaN"),
        ({"split": {"folds": 2}}, "split.folds: found 2: Input should be greater than or equal to 3"),
        ({"series": {"windows": [[40, 80], [80, 200]]}}, "2 are named and channels: windows needs 3: name 3"),
        (
            {"series": {"windows": [[40, 80], [80, 200], [40, 0]]}},
            "series.windows.2: found [40, 0]: Value error, a window of width 0: use a width above 0 HU",
        ),
        (
            {"series": {"windows": ["brain", "subdural", "skull"]}},
            'series.windows.2: found "skull": Value error, no window is called `skull`: use one of',
        ),
        ({"series": {"channels": "neighbours"}}, "3 are named and channels: neighbours needs 1: name 1"),
        ({"heads": {}}, "heads: found {}: "),
        ({"heads": {"My Head": {}}}, "heads.My Head.[key]: found"),
        ({"heads": {"clam": {"method": "clam"}}}, "heads.clam.method: found \"clam\": Input should be 'mean'"),
        ({"ids": "none"}, "ids: found \"none\": Input should be 'path' or 'hashed'"),
        ({"slide": {"backbone": {"weights": "file"}}}, "backbone.file: is empty while backbone.weights is `file`"),
        ({"training": {"seeds": []}}, "training.seeds: found []"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_found(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="slide.mpp: .*; series.min_slices: .*; bags: ") as caught:
        load_config({"slide": {"mpp": -1}, "series": {"min_slices": 0}, "bags": "image"})
    assert str(caught.value).count("config.yaml") == 1


def test_a_long_wrong_value_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"classes": "x" * 5000})
    assert len(str(caught.value)) < 200


def test_a_modality_finds_its_section() -> None:
    config = Config()
    assert isinstance(config.modality("slide"), SlideSettings)
    assert isinstance(config.modality("series"), SeriesSettings)
    assert config.modality("series").images_per_shard == 1024
