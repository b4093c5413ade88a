"""A job as its worker sees it: a slice to read, upstream receipts, a receipt to write."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.plan import RESULTS
from pipeline.shards import Limits, Row
from pipeline.store import digest, read_json, write_json

PER_IMAGE = ("tile", "embed", "adopt")
"""Stages that map over images, and keep a row and a store for each."""

LAST = ("embed", "adopt")
"""Of these, those whose stores hold embeddings: an image goes through one of them, and its row says what came out."""


@dataclass(frozen=True)
class Job:
    """What the command line of a stage says."""

    slice_path: Path
    receipt: Path
    threads: int
    device: str
    limits: Limits

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Job":
        """The job that a command line names."""
        limits = Limits(arguments.silence_seconds, arguments.memory_mb)
        return cls(Path(arguments.slice), Path(arguments.receipt), arguments.threads, arguments.device, limits)

    @cached_property
    def slice(self) -> dict[str, Any]:
        """What the plan says of this job."""
        content: dict[str, Any] = read_json(self.slice_path)
        return content

    @property
    def stage(self) -> str:
        """The stage's name."""
        return str(self.slice["stage"])

    @property
    def name(self) -> str:
        """The job's name without its digest."""
        return str(self.slice["name"])

    @cached_property
    def upstream(self) -> dict[str, list[dict[str, Any]]]:
        """The receipts that this job waits for, by their stage."""
        receipts: dict[str, list[dict[str, Any]]] = {}
        for path in self.slice["upstream"]:
            receipts.setdefault(Path(path).parent.name, []).append(read_json(Path(path)))
        return receipts

    def upstream_rows(self, stage: str) -> list[Row]:
        """The rows of all upstream receipts of a per-image stage, sorted by image."""
        rows = [row for receipt in self.upstream.get(stage, []) for row in receipt["rows"]]
        return sorted(rows, key=lambda row: str(row["id"]))

    def image_rows(self) -> list[Row]:
        """The rows of all images of the upstream receipts, embedded here or adopted, sorted by image."""
        rows = [row for stage in LAST for row in self.upstream_rows(stage)]
        return sorted(rows, key=lambda row: str(row["id"]))

    def key(self, *made_of: object) -> str:
        """The key of a result: its stage, version, settings and what else it is made of."""
        return digest([self.stage, self.slice["version"], self.slice["settings"], *made_of])

    def place(self, key: str, suffix: str) -> Path:
        """Where a result that is kept by its key lies."""
        return RESULTS / self.stage / self.name / f"{key[:16]}{suffix}"

    def finish(self, **content: object) -> None:
        """Write the receipt: the job is done."""
        write_json(self.receipt, {"stage": self.stage, "name": self.name, **content})
