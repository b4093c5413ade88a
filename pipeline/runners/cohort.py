"""Runs `catalog`, `gate` and `split`: who is there, whether enough of them are, and who is on which side."""

import argparse
from collections import Counter
from typing import Any

from pipeline.errors import PipelineError
from pipeline.raw import KINDS
from pipeline.runners.job import RESULTS, Job
from pipeline.runners.tables import by_bag, publish, refuse_other_widths, table, usable_rows
from pipeline.shards import Row, say
from pipeline.store import digest, read_json, write_bytes, write_json

# fmt: off
CATALOG_COLUMNS = (
    "image", "kind", "status", "reason", "label", "site", "instances", "unreadable", "seconds", "mpp", "mpp_source",
    "notes", "removed", "device", "stage", "store",
    "picture",
)
# fmt: on


# fmt: off
SERIES_COLUMNS = (
    "image", "status", "reason", "notes", "n_files", "n_read", "excluded", "other_series", "duplicates",
    "other_volumes", "n_missing", "gap_min_mm", "gap_median_mm", "gap_max_mm", "regular", "thicknesses", "spacing",
    "tilt_deg", "tilt_tag_deg", "order_source", "transfer_syntax", "decoder", "lossy", "bits", "rescale", "padding",
    "padding_source", "twelve_bit_fix", "twelve_bit_evidence", "air_share", "tissue_share", "tissue_median_hu",
    "constant_slices", "series_number", "kvp", "maker", "contrast", "missing_attributes", "warnings",
)
# fmt: on
"""Of results/series.tsv: how each CT series was read."""


def catalog_rows(job: Job) -> list[Row]:
    """One row for every image of the experiment, whatever became of it."""
    labels, sites = job.slice["labels"], job.slice.get("sites", {})
    listed = job.slice["listed"]
    rows = [
        {**row, "image": row["id"], "label": labels.get(row["id"], ""), "site": sites.get(row["id"], "")}
        for row in job.image_rows()
    ]
    rows += [
        {"image": image, "kind": "", "status": "missing", "reason": f"line {line} of the labels: no such image"}
        for image, line in listed["missing"]
    ]
    rows += [
        {"image": image, "kind": kind, "status": "excluded", "reason": reason}
        for image, kind, reason in listed["excluded"]
    ]
    rows += [
        {"image": image, "kind": kind, "status": "waiting", "reason": reason}
        for image, kind, reason in listed["waiting"]
    ]
    return sorted(rows, key=lambda row: (row["kind"], row["image"]))


def run_catalog(arguments: argparse.Namespace) -> None:
    """Write results/catalog.tsv: every image with its status and reason. Always succeeds."""
    job = Job.of(arguments)
    rows = catalog_rows(job)
    files = {"catalog.tsv": table(CATALOG_COLUMNS, rows, "\t")}
    series = [{**row, **{name: _cell(value) for name, value in row.get("qc", {}).items()}} for row in rows]
    if any(row["kind"] == "series" for row in rows):
        files["series.tsv"] = table(SERIES_COLUMNS, [row for row in series if row["kind"] == "series"], "\t")
    publish(job, files)
    for kind in KINDS:
        count: dict[str, int] = {}
        for row in rows:
            if row["kind"] == kind:
                count[row["status"]] = count.get(row["status"], 0) + 1
        if count:
            say(f"{kind}: " + ", ".join(f"{number} {status}" for status, number in sorted(count.items())))
    if listed := job.slice["listed"]["ignored"]:
        reasons = Counter(reason for _, reason in listed)
        say("passed over: " + "; ".join(f"{number} × {reason}" for reason, number in reasons.items()))
    job.finish(images=len(rows))


def _cell(value: object) -> object:
    """A value of a record as a cell of a table says it: lists and counts in one line, nothing for nothing."""
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else value


def run_gate(arguments: argparse.Namespace) -> None:
    """Let the labelled images through that can be used, unless too many of them failed.

    Raises:
        PipelineError: more than `max_failed` of the labelled images failed, or some differ in the width of their
            embeddings: no head takes both.
    """
    job = Job.of(arguments)
    cohort: dict[str, dict[str, Any]] = job.slice["cohort"]
    rows = job.image_rows()
    failed = [row for row in rows if row["status"] == "failed"]
    limit = job.slice["settings"]["max_failed"]
    if len(failed) > limit * len(rows):
        raise PipelineError(
            f"{job.name}: {len(failed)} of {len(rows)} labelled images failed, more than max_failed {limit:g} allows "
            f"(first: {failed[0]['id']}: {failed[0]['reason']}): see results/catalog.tsv, mend them or exclude "
            "them with a reason in the labels"
        )
    done = [row for row in rows if row["status"] == "done"]
    widths = Counter(row["features"] for row in done if "features" in row)
    if widths:
        refuse_other_widths(job.name, done, max(widths, key=lambda width: (widths[width], width)))
    warnings = _twins(done, cohort)
    for warning in warnings:
        say(f"{job.name}: warning: {warning}")
    kept = [{**cohort[row["id"]], **{name: row[name] for name in ("id", "store", "key", "instances")}} for row in done]
    say(f"{job.name}: {len(kept)} of {len(rows)} labelled images can be used")
    counts = {"labelled": len(rows), "failed": len(failed)}
    job.finish(rows=kept, classes=job.slice["classes"], warnings=warnings, **counts)


def _twins(done: list[Row], cohort: dict[str, dict[str, Any]]) -> list[str]:
    """What to say of images that are the same, byte for byte, and of two patients; nothing where there are none."""
    first_of: dict[str, str] = {}
    found = []
    for row in done:
        first = first_of.setdefault(row["key"], row["id"])
        if cohort[first]["patient"] != cohort[row["id"]]["patient"]:
            found.append((first, row["id"]))
    if not found:
        return []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return [
        f"{' and '.join(found[0])}{more} hold the same, byte for byte, and are of different patients: a head may be "
        "tested on what it was trained on. Correct the labels, or exclude all but one with a reason there"
    ]


def run_split(arguments: argparse.Namespace) -> None:
    """Divide patients into folds; known patients keep theirs when the cohort grows.

    Who is known is read from a ledger per settings, which split alone reads and writes. The result is kept by what it
    was made of, so that an earlier cohort finds its own split again.
    """
    from pipeline.config import SplitSettings
    from pipeline.splits import assign_folds

    job = Job.of(arguments)
    settings = SplitSettings.model_validate(job.slice["settings"])
    bags = by_bag(usable_rows(job))
    firsts = {bag: rows[0] for bag, rows in bags.items()}
    key = job.key({bag: [row["patient"], row["label"]] for bag, row in firsts.items()})
    place = job.place(key, ".csv")
    if not place.exists():
        ledger_path = RESULTS / "split" / job.name / f"ledger-{digest(job.slice['settings'], 8)}.json"
        ledger: dict[str, int] = read_json(ledger_path) if ledger_path.exists() else {}
        patients = [str(row["patient"]) for row in firsts.values()]
        folds = assign_folds(patients, [row["label"] for row in firsts.values()], settings, ledger)
        write_json(ledger_path, {**ledger, **folds})
        rows = [{"bag": bag, **row, "fold": folds[row["patient"]]} for bag, row in firsts.items()]
        write_bytes(place, table(["bag", "patient", "label", "fold"], rows))
    say(f"{job.name}: {len(bags)} bags in {settings.folds} folds")
    job.finish(split=str(place), folds=settings.folds)
