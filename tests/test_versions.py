"""What each stage computes for a small fixed input, recorded with the version that computed it.

The golden values come from the code itself: they do not say that it is right, which the other tests do. They say that
it still computes what it did, so that nobody changes a result without raising the stage's version, which is what makes
old results be redone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.backbone import load_backbone
from pipeline.bags import Bag
from pipeline.config import EvaluationSettings, HeadSettings, SplitSettings, TrainingSettings
from pipeline.embedding import embed
from pipeline.evaluation import Predictions, evaluate
from pipeline.feature_files import read_features, read_folder
from pipeline.feeding import Source
from pipeline.image_settings import BackboneSettings, SeriesSettings, SlideSettings, TissueSettings
from pipeline.images import Image, open_image
from pipeline.partial import Partial
from pipeline.splits import assign_folds
from pipeline.tiling import tile
from pipeline.training import fit, new_head, predict
from pipeline.versions import VERSIONS
from support.workspace import write_series, write_slide

SHOWN = {"weights", "gate", "explain", "catalog", "report"}
"""Stages that count, draw or list what the others computed; their own tests say what."""

SLIDE = SlideSettings(mpp=0.5, tile=32, stride=32, tissue=TissueSettings(mpp=4.0))
HEADS = (HeadSettings(method="mean"), HeadSettings(method="abmil", hidden=8))
TRAINING = TrainingSettings(epochs=3, learning_rate=0.01, bags_per_step=2)

Values = list[str] | list[float]
Compute = Callable[[Path], Values]


def images(folder: Path) -> list[Image]:
    write_slide(folder / "slide.tiff", seed=0)
    write_series(folder / "ct", seed=0)
    return [open_image(folder / "slide.tiff", SLIDE), open_image(folder / "ct", SeriesSettings())]


def compute_tile(folder: Path) -> Values:
    """Hashes of the origins and the arrays of a slide and of a series."""
    found = []
    for image in images(folder):
        origins = tile(image).origins
        found.append(f"{len(origins)} origins {sha256(origins.astype('<i4').tobytes()).hexdigest()[:16]}")
        found += [f"{n} {sha256(v.astype('<i2').tobytes()).hexdigest()[:16]}" for n, v in image.arrays().items()]
    return found


def compute_embed(folder: Path) -> Values:
    """Every twelfth feature of the first and the last tile of a slide and of a series."""
    settings = BackboneSettings(model="test_resnet", weights="random", input_size=32, batch=8)
    backbone = load_backbone(settings, torch.device("cpu"))
    found: list[float] = []

    @contextmanager
    def opened(entry: dict[str, Any]) -> Iterator[Source]:
        tiles = tile(entry["image"])
        yield Source(entry, entry["image"], tiles.origins, tiles.size, Partial(folder / "none", ""))

    def finish(source: Source) -> dict[str, Any]:
        return {"values": source.readable(0.0)[[0, -1], ::12].astype(float).ravel().tolist()}

    for _, row in embed([{"image": image} for image in images(folder)], opened, finish, backbone):
        assert isinstance(row, dict)
        found += row["values"]
    return found


def compute_adopt(folder: Path) -> Values:
    """Embeddings and coordinates of a folder with a table and with an array of float64."""
    (folder / "features").mkdir(parents=True)
    (folder / "features/a.csv").write_text("x,y,f0,f1\n7,8,0.1,-2\n9,8,0.3,1e-7\n")
    np.save(folder / "features/b.npy", np.array([[1 / 3, 4.0]]))
    both, table = read_folder(sorted((folder / "features").iterdir())), read_features(folder / "features/a.csv")
    assert table.origins is not None
    return [*both.embeddings.astype(float).ravel().tolist(), *table.origins.astype(float).ravel().tolist()]


def compute_split(folder: Path) -> Values:
    """Folds of twelve patients, of whom two were known."""
    patients = [f"P{number}" for number in range(12)]
    folds = assign_folds(patients, [number % 2 for number in range(12)], SplitSettings(folds=3), {"P0": 1, "P2": 1})
    return [f"{patient} {fold}" for patient, fold in folds.items()]


def bags() -> list[Bag]:
    """Nine bags of two to six instances, the positive ones shifted."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(9):
        count, label = 2 + number % 5, number % 2
        values = rng.normal(0.5 * label, 1, (count, 6)).astype(np.float16)
        found.append(Bag(f"bag{number}", values, label, f"P{number}", ((f"image{number}", count),)))
    return found


def compute_train(folder: Path) -> Values:
    """Losses of each epoch, and the threshold, of every head."""
    found = []
    for settings in HEADS:
        fitted = fit(new_head(settings, 6, 2, seed=0), bags()[:6], bags()[6:], TRAINING, 2, seed=0)
        assert fitted.threshold is not None
        found += [loss for epoch in fitted.history for loss in (epoch.train_loss, epoch.validation_loss)]
        found.append(fitted.threshold)
    return found


def compute_predict(folder: Path) -> Values:
    """Probability of the last class, and attention to the first instance, of three bags by every head."""
    found = []
    for settings in HEADS:
        probabilities, attention = predict(new_head(settings, 6, 2, seed=0), bags()[:3])
        found += [float(value) for value in (*probabilities[:, 1], *(each[0] for each in attention))]
    return found


def compute_evaluate(folder: Path) -> Values:
    """AUROC and balanced accuracy, with their intervals, of thirty bags of twenty patients in three folds."""
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 2
    positive = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.2, 30), 0, 1)
    predictions = Predictions(
        labels=labels,
        probabilities=np.stack([1 - positive, positive], axis=1),
        decided=(positive >= 0.5).astype(np.int64),
        patients=np.array([f"P{number % 20}" for number in range(30)]),
        folds=np.arange(30) % 20 % 3,
    )
    result = evaluate(predictions, EvaluationSettings(resamples=200))
    figures = (result.auroc, result.balanced_accuracy)
    return [float(value) for f in figures for value in (f.value, f.low, f.high) if value is not None]


COMPUTE: dict[str, Compute] = {
    "tile": compute_tile,
    "embed": compute_embed,
    "adopt": compute_adopt,
    "split": compute_split,
    "train": compute_train,
    "predict": compute_predict,
    "evaluate": compute_evaluate,
}

TOLERANCE = {"embed": 1e-3}
"""Absolute; of the other stages 1e-4. Processors round differently."""

GOLDEN: dict[str, tuple[int, Values]] = {
    "tile": (
        3,
        [
            "36 origins be1e6b93aa0dc26e",
            "thumbnail e04e4c073d843b8b",
            "outline 3e42772959680584",
            "10 origins 5334524659442583",
            "hu b03e1e1739391146",
        ],
    ),
    "embed": (
        3,
        [
            0.016357,
            0.0,
            0.0,
            0.0,
            0.044769,
            0.0,
            0.0,
            0.033936,
            0.007561,
            0.0,
            0.0,
            0.0,
            0.040192,
            0.0,
            0.0,
            0.028503,
            0.027618,
            0.0,
            0.079956,
            0.0,
            0.046326,
            0.0,
            0.073425,
            0.050537,
            0.026596,
            0.0,
            0.075073,
            0.0,
            0.048676,
            0.0,
            0.072632,
            0.046265,
        ],
    ),
    "adopt": (1, [0.1, -2.0, 0.3, 1e-7, 0.333333, 4.0, 7.0, 8.0, 9.0, 8.0]),
    "split": (1, ["P0 1", "P1 2", "P10 0", "P11 0", "P2 1", "P3 0", "P4 2", "P5 1", "P6 0", "P7 1", "P8 2", "P9 2"]),
    "train": (
        1,
        [
            0.743153,
            0.519501,
            0.639968,
            0.510237,
            0.654257,
            0.501697,
            0.529163,
            0.747022,
            0.809831,
            0.720634,
            0.810554,
            0.708037,
            0.807362,
            0.610121,
        ],
    ),
    "predict": (
        1,
        [0.591368, 0.441428, 0.503655, 0.5, 0.333333, 0.25, 0.580353, 0.592476, 0.598666, 0.523938, 0.318168, 0.2403],
    ),
    "evaluate": (1, [0.851351, 0.735266, 0.980109, 0.8, 0.692965, 0.921151]),
}
"""The stage's version, and what it computed."""


def test_every_stage_is_watched() -> None:
    assert set(COMPUTE) | SHOWN == set(VERSIONS)
    assert set(GOLDEN) == set(COMPUTE)


@pytest.mark.parametrize("stage", COMPUTE)
def test_a_stage_computes_what_its_version_did(stage: str, tmp_path: Path) -> None:
    version, wanted = GOLDEN[stage]
    found = COMPUTE[stage](tmp_path)
    assert VERSIONS[stage] == version, (
        f"`{stage}` has version {VERSIONS[stage]}, and the golden output here is of version {version}: record "
        f"{(VERSIONS[stage], found)}"
    )
    same = (
        found == wanted if isinstance(found[0], str) else found == pytest.approx(wanted, abs=TOLERANCE.get(stage, 1e-4))
    )
    assert same, (
        f"`{stage}` computes something else than version {version} did. If that is meant, raise VERSIONS[{stage!r}] in "
        f"pipeline/versions.py to {version + 1}, so that old results are redone, and record {(version + 1, found)} here"
    )


@pytest.mark.parametrize("stage", COMPUTE)
def test_a_stage_computes_the_same_twice(stage: str, tmp_path: Path) -> None:
    first, second = (COMPUTE[stage](tmp_path / name) for name in ("a", "b"))
    assert first == second
