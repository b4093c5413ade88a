"""Runs `train`, `predict` and `evaluate`."""

import argparse
import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import EvaluationSettings, HeadSettings, TrainingSettings
from pipeline.runners.job import RESULTS, Job
from pipeline.runners.tables import by_bag, read_record, read_table, refuse_other_widths, table, usable_rows
from pipeline.shards import say
from pipeline.store import Store, digest, file_digest, new_folder, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.bags import Bag

Rows = list[dict[str, Any]]


def run_train(arguments: argparse.Namespace) -> None:
    """Fit one head on the training patients of one fold, stopping on the validation patients."""
    from pipeline.splits import roles

    job = Job.of(arguments)
    fold, seed = job.slice["fold"], job.slice["seed"]
    split = job.upstream["split"][0]
    fold_of = {row["patient"]: int(row["fold"]) for row in read_table(Path(split["split"]))}
    role_of = roles(fold_of, fold, split["folds"])
    classes = job.upstream["gate"][0]["classes"]
    # The test fold is left out here and not later: nothing below can see it.
    bags = {
        role: by_bag(row for row in usable_rows(job) if role_of[row["patient"]] == role)
        for role in ("train", "validation")
    }
    made_of = {role: {bag: _made_of(rows) for bag, rows in of.items()} for role, of in bags.items()}
    place = job.place(job.key(made_of, len(classes), seed), "")
    if not (place / "record.json").exists():
        _train(job, place, bags["train"], bags["validation"], len(classes), seed)
    job.finish(fold=fold, seed=seed, place=str(place))


def _train(job: Job, place: Path, train: dict[str, Rows], validation: dict[str, Rows], classes: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline.bags import feature_width
    from pipeline.training import fit, new_head

    torch.set_num_threads(job.threads)
    bags = [_bag(name, rows) for name, rows in train.items()]
    others = [_bag(name, rows) for name, rows in validation.items()]
    settings = job.slice["settings"]
    features = feature_width([*bags, *others])
    head = new_head(HeadSettings.model_validate(settings["head"]), features, classes, seed)
    fitted = fit(head, bags, others, TrainingSettings.model_validate(settings["training"]), classes, seed)
    best = fitted.history[fitted.best_epoch]
    say(f"{job.name}: {len(bags)} bags, {len(fitted.history)} epochs, best {fitted.best_epoch}, "
        f"validation loss {best.validation_loss:.4f}")  # fmt: skip
    with new_folder(place) as beside:
        save_file(fitted.state, beside / "weights.safetensors")
        record = {
            "head": settings["head"],
            "training": settings["training"],
            "seed": seed,
            "fold": job.slice["fold"],
            "features": features,
            "classes": classes,
            "threshold": fitted.threshold,
            "best_epoch": fitted.best_epoch,
            "history": [[epoch.train_loss, epoch.validation_loss] for epoch in fitted.history],
            "bags": [len(bags), len(others)],
            "weights_sha256": file_digest(beside / "weights.safetensors"),
            "torch": torch.__version__,
        }
        write_json(beside / "record.json", record)


def run_predict(arguments: argparse.Namespace) -> None:
    """Predict the test bags of every fold with that fold's heads; or unlabelled bags with the heads of all folds."""
    job = Job.of(arguments)
    heads: dict[int, list[str]] = {}
    for receipt in sorted(job.upstream["train"], key=lambda found: (found["fold"], found["seed"])):
        heads.setdefault(receipt["fold"], []).append(receipt["place"])
    weights = {fold: [read_record(place)["weights_sha256"] for place in places] for fold, places in heads.items()}
    classes = job.upstream["gate"][0]["classes"]
    if "split" in job.upstream:
        fold_of = {row["bag"]: int(row["fold"]) for row in read_table(Path(job.upstream["split"][0]["split"]))}
        bags = by_bag(usable_rows(job))
        place = job.place(job.key({bag: _made_of(rows) for bag, rows in bags.items()}, fold_of, weights, classes), "")
        if not (place / "record.json").exists():
            _predict_test(job, place, bags, fold_of, heads, classes)
    else:
        done = [row for row in job.image_rows() if row["status"] == "done"]
        refuse_other_widths(job.name, done, int(read_record(heads[min(heads)][0])["features"]))
        cohort = job.slice["cohort"]
        trained = {row["patient"] for row in usable_rows(job)}
        bags = by_bag({**cohort[row["id"]], "label": None, **row} for row in done)
        named = {bag: [_made_of(rows), rows[0]["patient"] in trained] for bag, rows in bags.items()}
        place = job.place(job.key(named, weights, classes), "")
        if not (place / "record.json").exists():
            _predict_unlabelled(job, place, bags, trained, heads, classes)
    job.finish(place=str(place), head=job.slice["head"], classes=classes)


def _predict_test(
    job: Job,
    place: Path,
    bags: dict[str, Rows],
    fold_of: dict[str, int],
    heads: dict[int, list[str]],
    classes: list[str],
) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(job.threads)
    rows: Rows = []
    seen: list[tuple[dict[str, Any], Bag, NDArray[np.float32]]] = []
    for fold, places in sorted(heads.items()):
        test = [_bag(name, images) for name, images in bags.items() if fold_of[name] == fold]
        if not test:
            continue
        _note_test_use(job, fold, len(test))
        probabilities, attention, threshold = _ask(places, test)
        for number, bag in enumerate(test):
            likely = probabilities[number]
            decided = int(likely[1] >= threshold) if threshold is not None else int(np.argmax(likely))
            row: dict[str, Any] = {"bag": bag.name, "patient": bag.patient, "label": bag.label}
            row |= {"fold": fold, "decided": decided}
            row |= {f"p{index}": float(value) for index, value in enumerate(likely)}
            rows.append(row)
            seen.append((row, bag, attention[number]))
    columns = ["bag", "patient", "label", "fold", "decided", *(f"p{index}" for index in range(len(classes)))]
    # Shown are the bags that the head finds likeliest to be of the last class, one or several, right or wrong.
    seen.sort(key=lambda item: (-item[0][columns[-1]], item[0]["bag"]))
    shown = seen[: job.slice["settings"]["images"]]
    pictures = [{**row, "images": bag.images} for row, bag, _ in shown]
    _keep(place, table(columns, rows), pictures, {str(n): values for n, (_, _, values) in enumerate(shown)})
    say(f"{job.name}: {len(rows)} test bags in {len(heads)} folds")


def _predict_unlabelled(
    job: Job, place: Path, bags: dict[str, Rows], trained: set[str], heads: dict[int, list[str]], classes: list[str]
) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(job.threads)
    asked = [_bag(name, images) for name, images in bags.items()]
    rows: Rows = []
    if asked:
        folds = np.stack([_ask(places, asked)[0] for _, places in sorted(heads.items())])
        for number, bag in enumerate(asked):
            row: dict[str, Any] = {"bag": bag.name, "in_training": int(bag.patient in trained)}
            for index in range(len(classes)):
                values = folds[:, number, index]
                row |= {f"p{index}": values.mean(), f"p{index}_low": values.min(), f"p{index}_high": values.max()}
            rows.append(row)
    columns = ["bag", "in_training"]
    columns += [f"p{index}{part}" for index in range(len(classes)) for part in ("", "_low", "_high")]
    _keep(place, table(columns, rows), [], {})
    say(f"{job.name}: {len(rows)} unlabelled bags, ensemble of {len(heads)} folds")


def _ask(places: list[str], bags: "list[Bag]") -> "tuple[NDArray[np.float64], list[NDArray[np.float32]], float | None]":
    """Probabilities (bag, class), attention of each bag and threshold of one fold's heads: means over their seeds."""
    import numpy as np
    from safetensors.torch import load_file

    from pipeline.training import new_head, predict

    answers = []
    thresholds = []
    for place in places:
        record = read_record(place)
        settings = HeadSettings.model_validate(record["head"])
        head = new_head(settings, record["features"], record["classes"], record["seed"])
        head.load_state_dict(load_file(Path(place) / "weights.safetensors"))
        answers.append(predict(head, bags))
        thresholds.append(record["threshold"])
    probabilities = np.mean([answer[0] for answer in answers], axis=0)
    attention = [np.mean([answer[1][n] for answer in answers], axis=0) for n in range(len(bags))]
    return probabilities, attention, None if thresholds[0] is None else float(np.mean(thresholds))


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Figures of all heads of one modality, with intervals, and the difference of every pair of heads."""
    job = Job.of(arguments)
    places = {receipt["head"]: receipt["place"] for receipt in job.upstream["predict"]}
    classes = job.upstream["predict"][0]["classes"]
    place = job.place(job.key(sorted(places.items()), classes), ".json")
    if not place.exists():
        write_json(place, _evaluate(job, places, classes))
    job.finish(place=str(place), predictions=places)


def _evaluate(job: Job, places: dict[str, str], classes: list[str]) -> dict[str, Any]:
    from dataclasses import asdict
    from itertools import combinations

    import numpy as np

    from pipeline.evaluation import Predictions, compare, evaluate

    settings = EvaluationSettings.model_validate(job.slice["settings"])
    predictions = {}
    for head, folder in sorted(places.items()):
        rows = read_table(Path(folder) / "predictions.csv")
        predictions[head] = Predictions(
            labels=np.array([int(row["label"]) for row in rows]),
            probabilities=np.array([[float(row[f"p{index}"]) for index in range(len(classes))] for row in rows]),
            decided=np.array([int(row["decided"]) for row in rows]),
            patients=np.array([row["patient"] for row in rows]),
            folds=np.array([int(row["fold"]) for row in rows]),
        )
    heads = {head: asdict(evaluate(found, settings)) for head, found in predictions.items()}
    pairs = [
        {"a": a, "b": b, **asdict(compare(predictions[a], predictions[b], settings))}
        for a, b in combinations(predictions, 2)
    ]
    for head, found in heads.items():
        if found["auroc"]["value"] is not None:
            say(f"{job.name} {head}: AUROC {found['auroc']['value']:.3f} "
                f"[{found['auroc']['low']:.3f}, {found['auroc']['high']:.3f}]")  # fmt: skip
    return {"classes": classes, "confidence": settings.confidence, "heads": heads, "pairs": pairs}


def _made_of(rows: Rows) -> list[Any]:
    """What a bag is made of: its images' keys, its label and patient."""
    return [[row["key"] for row in rows], rows[0]["label"], rows[0]["patient"]]


def _bag(name: str, rows: Rows) -> "Bag":
    from pipeline.bags import load_bag

    stores = {row["id"]: row for row in rows}

    def load(image: str) -> "NDArray[np.float16]":
        row = stores[image]
        return Store(Path(row["store"]), row["key"]).read("embeddings")

    return load_bag(name, rows[0]["label"], rows[0]["patient"], list(stores), load)


def _keep(place: Path, predictions: bytes, pictures: Rows, attention: "dict[str, NDArray[np.float32]]") -> None:
    """Write what a predict job found, whole or not at all."""
    import numpy as np

    with new_folder(place) as beside:
        (beside / "predictions.csv").write_bytes(predictions)
        np.savez(beside / "attention.npz", allow_pickle=False, **attention)
        write_json(beside / "record.json", {"pictures": pictures, "sha256": digest(predictions.decode())})


def _note_test_use(job: Job, fold: int, bags: int) -> None:
    """Add a line to results/test_uses.tsv: a test fold was opened."""
    path = RESULTS / "test_uses.tsv"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with path.open("a") as file:
        if not file.tell():
            file.write("time\tstage\tjob\tfold\tbags\n")
        file.write(f"{now}\t{job.stage}\t{job.name}\t{fold}\t{bags}\n")


def test_uses() -> list[dict[str, str]]:
    """The openings of test folds so far."""
    path = RESULTS / "test_uses.tsv"
    lines = path.read_text().splitlines() if path.exists() else []
    return [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]


def read_predictions(place: str) -> Iterable[dict[str, str]]:
    """The rows of a predict job's table."""
    return read_table(Path(place) / "predictions.csv")


def read_pictures(place: str) -> Rows:
    """Which bags a predict job kept the attention of."""
    pictures: Rows = read_json(Path(place) / "record.json")["pictures"]
    return pictures
