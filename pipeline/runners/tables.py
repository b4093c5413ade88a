"""Reads and writes the tables of a run, and publishes copies under fixed names."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.runners.job import RESULTS, Job
from pipeline.store import read_json, write_bytes, write_json


def table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], delimiter: str = ",") -> bytes:
    """A table as UTF-8 text; columns that a row does not have are empty, what is not in `columns` is left out."""
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "backslashreplace")


def read_table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table that `table` made."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def read_catalog() -> list[dict[str, str]]:
    """The rows of the catalog that was published last."""
    return read_table(RESULTS / "catalog.tsv", "\t")


def publish(job: Job, files: Mapping[str, bytes]) -> None:
    """Copy what a user opens to its fixed name, and note which plan the copies stand for."""
    for name, content in files.items():
        write_bytes(RESULTS / name, content)
    marker = {"serial": job.slice["serial"], "core": job.slice["core"], "files": sorted(files)}
    write_json(RESULTS / "published" / f"{job.stage}.json", marker)


def usable_rows(job: Job) -> list[dict[str, Any]]:
    """The labelled images that the gate let through: `id`, `bag`, `patient`, `label`, `store`, `key`, `instances`."""
    rows: list[dict[str, Any]] = job.upstream["gate"][0]["rows"]
    return rows


def by_bag(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of images by their bag, both sorted by name."""
    bags: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["bag"], row["id"])):
        bags.setdefault(row["bag"], []).append(row)
    return bags


def refuse_other_widths(name: str, rows: Iterable[Mapping[str, Any]], width: int) -> None:
    """Refuse embeddings that are not `width` features wide; rows of before widths were kept are passed over.

    Raises:
        PipelineError: naming the first image that differs.
    """
    odd = [row for row in rows if row.get("features", width) != width]
    if odd:
        raise PipelineError(
            f"{name}: {odd[0]['id']} has {odd[0]['features']} features where {width} are usual "
            f"({len(odd)} images differ): bring features of one backbone, or exclude them with a reason in the labels"
        )


def read_record(folder: str) -> dict[str, Any]:
    """What `train` noted beside the weights of a head."""
    record: dict[str, Any] = read_json(Path(folder) / "record.json")
    return record
