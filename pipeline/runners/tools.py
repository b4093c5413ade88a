"""What a user runs by hand: `check`, `retry`, `verify`, `gc`, `schema`."""

import argparse
import json
import shutil
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from pipeline.config import Config, load_config
from pipeline.errors import ConfigError, PipelineError, StoreError, one_line
from pipeline.names import Names
from pipeline.plan import Plan, build
from pipeline.raw import KINDS, Kind
from pipeline.runners.job import PER_IMAGE, RESULTS
from pipeline.runners.tables import read_catalog, read_table
from pipeline.store import Store, read_json

SECONDS = {"slide": 60.0, "series": 1.0, "adopted": 0.2}
"""ASSUME: seconds of one core that an image takes, before any was done; afterwards the median of those that were."""


def read_config(path: Path) -> Config:
    """The config file.

    Raises:
        ConfigError: it is not there, is not YAML, or holds a wrong key or value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: is not there: run in the folder that holds it, or name it with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, not settings: write `key: value` lines")
    return load_config(values)


def run_check(arguments: argparse.Namespace) -> None:
    """Say in seconds what a run would do: who is there, who is missing, what it costs. Runs nothing."""
    config = read_config(Path(arguments.config))
    plan = build(config)
    names = Names.of(config)
    for kind in KINDS:
        labelled = plan.labelled(kind)
        count = Counter(row.label for row in labelled.values())
        patients = len({row.patient for row in labelled.values()})
        print(
            f"{kind}: {len(plan.images[kind])} images, {len(labelled)} labelled ("
            + (", ".join(f"{label}: {number}" for label, number in sorted(count.items())) or "nothing is learnt")
            + f") from {patients} patients"
        )
        for warning in plan.warnings(config, kind):
            print(f"warning: {warning}")
    for what, found in [
        ("missing", [names.missing(row)[0] for row in plan.cohort.missing]),
        ("excluded", [names.image(image) for image in plan.excluded]),
        ("waiting", [f"{names.image(image)} ({reason})" for image, reason in plan.waiting]),
        ("ignored", [f"{names.free_text(item.path)} {item.reason}" for item in plan.ignored]),
    ]:
        if found:
            print(f"{what}: {len(found)}: " + ", ".join(found[:5]) + (", ..." if len(found) > 5 else ""))
    print(_cost(plan))


def _cost(plan: Plan) -> str:
    """What is left to do, roughly."""
    open_jobs = [job for job in plan.jobs if not Path(job.receipt).exists()]
    seconds = 0.0
    for kind in KINDS:
        adopted = any(job.stage == "adopt" and job.name.startswith(kind) for job in open_jobs)
        stages = ("adopt",) if adopted else ("tile", "embed")
        times = [row["seconds"] for stage in stages for row in _all_rows(stage, kind) if row["status"] == "done"]
        each = len(stages) * median(times) if times else SECONDS["adopted" if adopted else kind]
        seconds += each * _images_to_do(open_jobs, kind)
    left = Counter(job.stage for job in open_jobs)
    jobs = ", ".join(f"{number} {stage}" for stage, number in left.items()) or "nothing"
    return f"to do: {jobs}; about {seconds / 60:.0f} minutes of one core for the images"


def _images_to_do(jobs: list[Any], kind: Kind) -> int:
    found = {(job.stage, image["id"]) for job in jobs if job.stage in PER_IMAGE and job.name.startswith(kind)
             for image in job.slice["images"]}  # fmt: skip
    return len({image for _, image in found})


def _all_rows(stage: str, kind: str) -> list[dict[str, Any]]:
    receipts = (RESULTS / "receipts" / stage).glob(f"{kind}-*.json")
    return [row for path in receipts for row in read_json(path)["rows"]]


def _row_paths() -> list[Path]:
    """The rows of all images that a per-image stage has finished, sorted by path."""
    return sorted(path for stage in PER_IMAGE for path in (RESULTS / stage).rglob("*.row.json"))


def run_retry(arguments: argparse.Namespace) -> None:
    """Forget failed rows, so that the next run tries these images again.

    Raises:
        PipelineError: a named image has no failed row.
    """
    wanted = set(arguments.images)
    forgotten: set[str] = set()
    for path in _row_paths():
        row = read_json(path)
        if row["status"] == "failed" and (not wanted or row["id"] in wanted):
            path.unlink()
            forgotten.add(row["id"])
    for path in (path for stage in PER_IMAGE for path in (RESULTS / "receipts" / stage).glob("*.json")):
        rows = read_json(path)["rows"]
        if any(row["status"] == "failed" and (not wanted or row["id"] in wanted) for row in rows):
            forgotten |= {
                row["id"] for row in rows if row["status"] == "failed" and (not wanted or row["id"] in wanted)
            }
            path.unlink()
    if unknown := sorted(wanted - forgotten):
        raise PipelineError(f"{unknown[0]}: has not failed: see results/catalog.tsv for those that have")
    _forget_later_stages(forgotten)
    print(f"{len(forgotten)} images will be tried again by the next run")


def _forget_later_stages(images: set[str]) -> None:
    """Remove the receipts of cohort-level jobs: their workers look again, and keep what has not changed."""
    if images:
        for stage in ("gate", "split", "train", "predict", "evaluate", "explain", "catalog", "report"):
            shutil.rmtree(RESULTS / "receipts" / stage, ignore_errors=True)


def run_verify(arguments: argparse.Namespace) -> None:
    """Read every byte of every store; with --repair remove the damaged ones, which the next run makes anew.

    Raises:
        PipelineError: some are damaged and --repair was not given.
    """
    stores: set[str] = set()
    damaged = []
    for path in _row_paths():
        row = read_json(path)
        if row["status"] != "done" or row["store"] in stores:  # a file that was touched has two rows
            continue
        stores.add(row["store"])
        try:
            store = Store(Path(row["store"]), row["key"])
            for name in store.names():
                store.read(name)
        except StoreError as error:
            damaged.append(row["id"])
            print(f"{row['id']}: {one_line(error)}")
            if arguments.repair:
                shutil.rmtree(row["store"], ignore_errors=True)
                path.unlink()
                for receipt in (RESULTS / "receipts" / row["stage"]).glob("*.json"):
                    if any(found.get("store") == row["store"] for found in read_json(receipt)["rows"]):
                        receipt.unlink()
    if arguments.repair:
        _forget_later_stages(set(damaged))
    print(f"{len(stores)} stores read, {len(damaged)} damaged")
    if damaged and not arguments.repair:
        raise PipelineError(f"{len(damaged)} stores are damaged: `python -m pipeline verify --repair` removes them")


def run_gc(arguments: argparse.Namespace) -> None:
    """Remove plan slices, receipts and stores that the present plan does not name, and half-written leftovers.

    Only lists them unless --yes is given. Do not run it while a run is going.

    Raises:
        PipelineError: the present plan is not done: stores that it would find again could not be told from old ones.
    """
    plan = build(read_config(Path(arguments.config)))
    if undone := sum(not Path(job.receipt).exists() for job in plan.jobs):
        raise PipelineError(
            f"gc: {undone} jobs of the present plan are not done: finish a run first, or their stores would go"
        )
    keep = {Path(job.receipt) for job in plan.jobs} | {job.slice_path for job in plan.jobs}
    kept_stores: set[str] = set()
    for job in plan.jobs:
        receipt = Path(job.receipt)
        if receipt.exists():
            content = read_json(receipt)
            kept_stores |= {row[of] for row in content.get("rows", []) for of in ("store", "picture") if of in row}
            kept_stores |= {content[name] for name in ("place", "split") if name in content}
    # An image of features may itself be called something.zarr: its folder holds a store that is kept.
    kept_stores |= {str(above) for store in kept_stores for above in Path(store).parents}
    day = time.time() - 24 * 3600
    doomed = [
        path for folder in ("plan", "receipts") for path in (RESULTS / folder).glob("*/*.json") if path not in keep
    ]
    doomed += [path for path in RESULTS.rglob(".*.tmp") if path.stat().st_mtime < day]
    doomed += (RESULTS / "embed").rglob("*.partial")
    doomed += [path for stage in PER_IMAGE for path in (RESULTS / stage).rglob("*.zarr")
               if not path.name.startswith(".") and path.parent.suffix != ".partial"
               and str(path) not in kept_stores]  # fmt: skip
    doomed += [path for pictures in ("tile/**/*.png", "embed/**/*.jpg") for path in RESULTS.glob(pictures)
               if str(path) not in kept_stores]  # fmt: skip
    doomed += [path for stage in ("train", "predict", "explain", "evaluate") for path in (RESULTS / stage).glob("*/*")
               if not path.name.startswith(".") and str(path) not in kept_stores]  # fmt: skip
    size = sum(file.stat().st_size for path in doomed for file in ([path] if path.is_file() else path.rglob("*"))
               if file.is_file())  # fmt: skip
    print(f"{len(doomed)} files and stores that the present plan does not name, {size / 2**20:.0f} MB")
    if not arguments.yes:
        print("nothing is removed without --yes")
        return
    for path in doomed:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for row_path in _row_paths():
        row = read_json(row_path)
        if row["status"] == "done" and not Path(row["store"]).exists():
            row_path.unlink()


def run_schema(arguments: argparse.Namespace) -> None:
    """Print the JSON schema of the config."""
    print(json.dumps(Config.model_json_schema(), indent=1))


def run_demo_cohort(arguments: argparse.Namespace) -> None:
    """Write the synthetic cohort of the demo below a folder."""
    from pipeline.synthetic import write_cohort

    write_cohort(Path(arguments.folder), seed=arguments.seed)


def run_summary(arguments: argparse.Namespace) -> None:
    """Print what a run found: AUROCs with intervals, who failed and why, and where the report is."""
    for row in read_table(RESULTS / "metrics.csv"):
        figure = (
            f"{float(row['auroc']):.2f} [{float(row['auroc_low']):.2f}, {float(row['auroc_high']):.2f}]"
            if row["auroc"]
            else f"n/a ({row['auroc_reason']})"
        )
        print(f"{row['modality']:7} {row['head']:12} AUROC {figure}  ({row['patients']} patients, {row['bags']} bags)")
    for row in read_catalog():
        if row["status"] != "done":
            print(f"{row['status']}: {row['image']}: {row['reason']}")
    config = read_config(Path(arguments.config))
    for kind in KINDS:
        backbone = config.modality(kind).backbone
        if backbone.weights == "random" and not config.modality(kind).features:
            seed = f"RANDOM weights (seed {backbone.seed})"
            print(f"{kind}: the backbone {backbone.model} has {seed}: its embeddings carry no learnt meaning")
    print(f"report: {(RESULTS / 'report.html').resolve()}")
