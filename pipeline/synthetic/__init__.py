"""A synthetic cohort with planted disease: slides and head CT series, labels, the truth, and a config to run it.

Nothing in it comes from a patient. What it is for: a run from pixels to report on any machine, and a check that heads
and attention find what was planted. Figures from it say nothing about medicine.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NORMAL, LESION = "normal", "lesion"
SLIDE_SHARES = (0.02, 0.06)
"""Area of the lesion as a share of the tissue. Tiles with a lesion are up to twice as many: they show its border."""
SERIES_SHARES = (0.08, 0.1)
"""Lesion slices as a share of all slices."""
PATIENTS_PER_IMAGE = {"slide": 0.75, "series": 5 / 6}
"""Patients among labelled images: some have two."""

CONFIG = """\
# A synthetic experiment: planted disease in drawn tissue and drawn heads. Its figures say nothing about medicine.
# Backbones have random weights, so that nothing is downloaded.
raw: data/raw
labels: data/labels.csv
classes: [normal, lesion]
settle_seconds: 0  # the files are complete as soon as they are there
device: cpu
slide:
  mpp: 0.5
  tile: 128
  stride: 128
  images_per_shard: 8
  backbone: {model: resnet18, weights: random, seed: 0, input_size: 128}
series:
  images_per_shard: 16
  backbone: {model: resnet18, weights: random, seed: 0, input_size: 128}
split: {folds: 4, seed: 0}
heads:
  mean: {method: mean}
  abmil: {method: abmil, hidden: 64}
training:
  epochs: 30
  patience: 10
  learning_rate: 1.0e-3
"""


@dataclass(frozen=True)
class Member:
    """One image to be made: where it goes below raw, whose it is, its label (None: it gets no row), its disease."""

    path: str
    patient: str
    label: str | None
    lesion_share: float
    broken: bool = False


def write_cohort(
    folder: Path, slides: int = 28, series: int = 28, seed: int = 0, unlabelled: int = 3, broken: int = 1
) -> None:
    """Write a cohort and its experiment below a folder; the same arguments give the same bytes.

    What is written: `config.yaml`, `data/raw/slides/*.tiff`, `data/raw/ct/<name>/*.dcm`, `data/labels.csv` (image,
    patient, label) and `data/truth.json`: by image, the lesions of a slide as rectangles in level-0 pixels, or the
    lesion slices of a series, 0 the lowest.

    Args:
        folder: where to write; made if missing. Files of an earlier cohort with other sizes are left as they are.
        slides: number of slides, all counted; 0: none.
        series: number of CT series, all counted; 0: none.
        seed: decides every pixel.
        unlabelled: how many images of each kind have no label.
        broken: how many images of each kind have a label and are cut short, so that they cannot be read.
    """
    truth: dict[str, Any] = {}
    rows: list[Member] = []
    for kind, count in (("slide", slides), ("series", series)):
        for index, member in enumerate(plan_members(kind, count, seed, unlabelled, broken)):
            rng = np.random.default_rng([seed, kind == "series", 1, index])
            found = _write_image(kind, folder / "data" / "raw" / member.path, member, rng)
            if member.label is not None:
                rows.append(member)
                truth[member.path] = found
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "data" / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    with (folder / "data" / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image", "patient", "label"])
        table.writerows([member.path, member.patient, member.label] for member in rows)


def plan_members(kind: str, count: int, seed: int, unlabelled: int, broken: int) -> Iterator[Member]:
    """The images of one kind, `slide` or `series`: labelled ones first, then broken, then unlabelled ones.

    Every other patient is diseased, and shares of disease are spread evenly over the diseased: with so few images,
    chance alone would decide how hard the cohort is.
    """
    rng = np.random.default_rng([seed, kind == "series", 0])
    labelled = max(0, count - unlabelled - broken)
    patients = max(1, round(labelled * PATIENTS_PER_IMAGE[kind]))
    first = 1 if kind == "slide" else 501
    diseased = [index % patients % 2 == 1 for index in range(labelled)]
    low, high = SLIDE_SHARES if kind == "slide" else SERIES_SHARES
    shares = iter(rng.permutation(np.linspace(low, high, sum(diseased))).tolist())
    names = rng.permutation(max(count, 1)) + 1  # so that a name says nothing about the label
    for index in range(count):
        extra = index - labelled
        path = _path(kind, f"{names[index]:03d}" if not 0 <= extra < broken else "broken" + str(extra or ""))
        patient = f"SYN-{first + (index % patients if extra < 0 else patients + extra):04d}"
        if extra < 0:
            share = next(shares) if diseased[index] else 0.0
            yield Member(path, patient, LESION if share else NORMAL, share)
        else:
            yield Member(path, patient, NORMAL if extra < broken else None, 0.0, broken=extra < broken)


def _path(kind: str, name: str) -> str:
    return f"slides/{name}.tiff" if kind == "slide" else f"ct/{name}"


def _write_image(kind: str, path: Path, member: Member, rng: np.random.Generator) -> list[Any]:
    """Write one image; returns its lesions as truth.json holds them."""
    if kind == "slide":
        from pipeline.synthetic.pyramid import write_pyramid
        from pipeline.synthetic.slides import MPP, render_slide

        pixels, rectangles = render_slide(rng, member.lesion_share)
        write_pyramid(path, pixels, MPP)
        files, lesions = [path], list[Any](rectangles)
    else:
        from pipeline.synthetic.dicom import write_series
        from pipeline.synthetic.series import render_series

        volume, slices = render_series(rng, member.lesion_share)
        write_series(path, volume, member.patient, rng)
        files, lesions = sorted(path.iterdir()), list[Any](slices)
    if member.broken:
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return lesions
