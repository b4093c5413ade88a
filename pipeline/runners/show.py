"""Runs `explain` and `report`: what a person looks at."""

import argparse
import datetime
import re
from pathlib import Path
from typing import Any

import pipeline
from pipeline.raw import KINDS
from pipeline.runners.cohort import catalog_rows
from pipeline.runners.job import Job
from pipeline.runners.learn import read_pictures, read_predictions, test_uses
from pipeline.runners.tables import publish, read_table, table, usable_rows
from pipeline.shards import say
from pipeline.store import Store, read_json, write_bytes, write_json
from pipeline.timing import total, verdict

TOP_SLICES = 5


def run_explain(arguments: argparse.Namespace) -> None:
    """Draw the attention of one head over a few test images. Reads stores, never raw files."""
    job = Job.of(arguments)
    predicted = job.upstream["predict"][0]
    place = job.place(job.key(predicted["place"]), "")
    if not (place / "pictures.json").exists():
        images = {row["id"]: row for row in usable_rows(job)}
        shown = []
        for number, row in enumerate(read_pictures(predicted["place"])):
            write_bytes(place / f"{number}.png", _picture(job, predicted["place"], number, row, images))
            shown.append({**row, "png": f"{number}.png"})
        write_json(place / "pictures.json", shown)
    job.finish(place=str(place), head=job.slice["head"], classes=predicted["classes"])


def _picture(job: Job, predicted: str, number: int, row: dict[str, Any], images: dict[str, dict[str, Any]]) -> bytes:
    """The picture of one bag: of its image that got most of the attention."""
    import numpy as np

    from pipeline.explain import attention_picture, png_bytes, series_picture
    from pipeline.images import reopen_image
    from pipeline.runners.shard import modality_settings

    with np.load(Path(predicted) / "attention.npz", allow_pickle=False) as file:
        attention = file[str(number)]
    ends = np.cumsum([count for _, count in row["images"]])
    parts = np.split(attention, ends[:-1])
    chosen = int(np.argmax([part.sum() for part in parts]))
    found = images[row["images"][chosen][0]]
    embedded = Store(Path(found["store"]), found["key"])
    tiled = Store(Path(embedded.attributes["tile_store"]), embedded.attributes["tile_key"])
    origins, size, extent = embedded.read("origins"), tiled.attributes["size"], tiled.attributes["extent"]
    values = parts[chosen]
    if origins.shape[1] == 2:
        thumbnail = tiled.read("thumbnail")
        return png_bytes(attention_picture(thumbnail, tuple(extent), origins, tuple(size), values, len(attention)))
    top = np.sort(np.argsort(-values, kind="stable")[:TOP_SLICES])
    settings = modality_settings("series", job.slice["settings"])
    image = reopen_image(Path(), settings, {"hu": tiled.read("hu")}, tiled.attributes["properties"])
    pixels, _ = image.read(origins[top], tuple(size))
    if len(image.channels) == 1:  # the others are the neighbours
        pixels = np.repeat(pixels[..., 1:2], 3, axis=-1)
    z_mm = np.asarray(tiled.attributes["properties"]["z_mm"])[origins[:, 2]]
    return png_bytes(series_picture(pixels, values, top.tolist(), z_mm, len(attention)))


def run_report(arguments: argparse.Namespace) -> None:
    """Write results/report.html, metrics.csv, predictions.csv and splits.csv."""
    from pipeline.report import Report, metrics_table, render

    job = Job.of(arguments)
    rows = catalog_rows(job)
    modalities = [_modality(job, kind, [row for row in rows if row["kind"] == kind]) for kind in KINDS]
    modalities = [found for found in modalities if found.images]
    report = Report(
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=pipeline.__version__,
        bag=job.slice["settings"]["bag"],
        devices=sorted({row["device"] for row in rows if row.get("device")}),
        settings=job.slice["settings"],
        modalities=modalities,
        missing=[{"image": row["image"], "reason": row["reason"]} for row in rows if row["status"] == "missing"],
        ignored=[{"path": path, "reason": reason} for path, reason in job.slice["listed"]["ignored"]],
        test_uses=test_uses(),
    )
    metrics = [{"modality": m.name, **row} for m in modalities if m.evaluation for row in metrics_table(m.evaluation)]
    predictions = _predictions(job)
    files = {"report.html": render(report).encode()}
    files["metrics.csv"] = table(_columns(metrics) or ["modality", "head"], metrics)
    files["predictions.csv"] = table(_columns(predictions) or ["modality", "bag"], predictions)
    files["splits.csv"] = table(["modality", "bag", "patient", "label", "fold"], _splits(job))
    publish(job, files)
    say("results/report.html is written")
    job.finish(published=sorted(files))


def _modality(job: Job, kind: str, rows: list[dict[str, Any]]) -> "Any":
    from pipeline.report import Modality

    cohort = job.slice["cohort"][kind]
    known = job.slice["settings"][kind].get("backbone", {})
    backbone = {"model": "none", "weights": "adopted"} if cohort["adopted"] else dict(known)
    weights = [receipt["weights"] for receipt in job.upstream.get("embed", []) if receipt["name"].startswith(kind)]
    if weights and weights[0].startswith("sha256 "):
        backbone["sha256"] = weights[0].removeprefix("sha256 ")
    gate = next((found for found in job.upstream.get("gate", []) if found["name"] == kind), None)
    of_images = ("image", "status", "reason", "mpp", "mpp_source", "notes")
    images = [{name: row.get(name, "") for name in of_images} for row in rows]
    warnings = [*cohort["warnings"], *(gate or {}).get("warnings", [])]
    shown = {**glances_of(kind, rows), "warnings": warnings, **_spent(rows)}
    unlabelled = sum(not row.get("label") and row["status"] == "done" for row in rows)
    if gate is None:
        counts = {"patients": 0, "bags": 0, "labelled": {}, "unlabelled": unlabelled, "mixed_patients": 0}
        nothing = "no image of this kind has a label"
        return Modality(kind, backbone, images, counts, nothing_learnt=nothing, **shown)
    classes = gate["classes"]
    label_of = {row["bag"]: row["label"] for row in gate["rows"]}
    counts = {
        "patients": len({row["patient"] for row in gate["rows"]}),
        "bags": len(label_of),
        "labelled": {name: list(label_of.values()).count(index) for index, name in enumerate(classes)},
        "unlabelled": unlabelled,
        "mixed_patients": cohort["mixed_patients"],
    }
    evaluated = next(found for found in job.upstream["evaluate"] if found["name"] == kind)
    return Modality(
        kind,
        backbone,
        images,
        counts,
        evaluation=read_json(Path(evaluated["place"])),
        roc=_roc(evaluated["predictions"], classes),
        predictions=_unlabelled(job, kind, classes),
        pictures=_pictures(job, kind),
        **shown,
    )


def _spent(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Where the time of embedding went, over all images that were embedded."""
    times = [row["times"] for row in rows if row.get("times")]
    return {"spent": total(times).rounded(), "verdict": verdict(total(times))} if times else {}


def glances_of(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Small pictures of images of one modality, odd images first, and how many are not among them."""
    from pipeline.qc import small_jpeg
    from pipeline.report import GLANCES, is_odd

    most, longest, most_bytes = GLANCES[kind]

    pictured = sorted((row for row in rows if row.get("picture")), key=lambda row: (not is_odd(row), row["image"]))
    glances: list[dict[str, Any]] = []
    gone = 0
    for row in pictured:
        if len(glances) == most:
            break
        try:
            jpeg = small_jpeg(Path(row["picture"]).read_bytes(), longest, most_bytes)
        except OSError:  # somebody tidied up; the results are as good without
            gone += 1
            continue
        shown = {"image": row["image"], "status": row["status"], "tiles": row.get("instances", 0)}
        glances.append({**shown, "removed": row.get("removed", ""), "jpeg": jpeg})
    left_out = len(pictured) - len(glances) - gone
    return {"glances": glances, "glances_left_out": left_out, "glances_gone": gone}


def _roc(places: dict[str, str], classes: list[str]) -> list[dict[str, Any]]:
    positives = [1] if len(classes) == 2 else range(len(classes))
    curves = []
    for head, place in sorted(places.items()):
        rows = list(read_predictions(place))
        for index in positives:
            curves.append(
                {
                    "head": head,
                    "positive": classes[index],
                    "labels": [int(row["label"]) == index for row in rows],
                    "scores": [float(row[f"p{index}"]) for row in rows],
                    "folds": [int(row["fold"]) for row in rows],
                }
            )
    return curves


def _unlabelled(job: Job, kind: str, classes: list[str]) -> list[dict[str, Any]]:
    found = []
    for receipt in job.upstream.get("predict", []):
        if not receipt["name"].startswith(f"{kind}-"):
            continue
        for row in read_predictions(receipt["place"]):
            probabilities = {
                name: {
                    part or "mean": float(row[f"p{index}{'_' if part else ''}{part}"]) for part in ("", "low", "high")
                }
                for index, name in enumerate(classes)
            }
            in_training = row["in_training"] == "1"
            entry = {"bag": row["bag"], "head": receipt["head"], "in_training": in_training}
            found.append({**entry, "probabilities": probabilities})
    return sorted(found, key=lambda row: (row["bag"], row["head"]))


def _pictures(job: Job, kind: str) -> list[dict[str, Any]]:
    pictures = []
    for receipt in job.upstream.get("explain", []):
        if not receipt["name"].startswith(f"{kind}-"):
            continue
        classes, folder = receipt["classes"], Path(receipt["place"])
        for row in read_json(folder / "pictures.json"):
            pictures.append(
                {
                    "png": (folder / row["png"]).read_bytes(),
                    "bag": row["bag"],
                    "head": receipt["head"],
                    "fold": row["fold"],
                    "label": classes[row["label"]],
                    "predicted": classes[-1],
                    "probability": row[f"p{len(classes) - 1}"],
                }
            )
    return pictures


def _predictions(job: Job) -> list[dict[str, Any]]:
    """One table of all predictions: test bags by their own fold's head, unlabelled ones by the ensemble."""
    rows = []
    classes = _classes(job)
    for receipt in job.upstream.get("evaluate", []):
        of = {"modality": receipt["name"], "of": "test"}
        for head, place in sorted(receipt["predictions"].items()):
            rows += [{**of, "head": head, **_named(row, classes[receipt["name"]])} for row in read_predictions(place)]
    for receipt in job.upstream.get("predict", []):
        kind = receipt["name"].split("-")[0]
        of = {"modality": kind, "of": "unlabelled", "head": receipt["head"]}
        rows += [{**of, **_named(row, classes[kind])} for row in read_predictions(receipt["place"])]
    return rows


def _classes(job: Job) -> dict[str, list[str]]:
    """The names of the classes of each modality that has labels."""
    return {gate["name"]: gate["classes"] for gate in job.upstream.get("gate", [])}


def _named(row: dict[str, str], classes: list[str]) -> dict[str, str]:
    """A row in the user's words: labels by name, `p1_low` as `p_lesion_low`."""
    named = {}
    for column, value in row.items():
        if column in {"label", "decided"}:
            value = classes[int(value)]
        elif match := re.fullmatch(r"p(\d+)(_low|_high)?", column):
            column = f"p_{classes[int(match[1])]}{match[2] or ''}"
        named[column] = value
    return named


def _splits(job: Job) -> list[dict[str, Any]]:
    classes = _classes(job)
    return [
        {"modality": split["name"], **_named(row, classes[split["name"]])}
        for split in job.upstream.get("split", [])
        for row in read_table(Path(split["split"]))
    ]


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
