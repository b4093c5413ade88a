"""What stands before the split: who may learn, and that nobody is there twice under two patients."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.runners.cohort import run_gate
from pipeline.store import read_json, write_json


def gate(patients: list[str], keys: list[str], widths: list[int], failed: int = 0) -> dict[str, Any]:
    """The receipt of the gate for images called a, b, c and so on; the last ones failed."""
    names = [chr(ord("a") + number) for number in range(len(patients))]
    rows = [
        {"id": name, "status": "done", "store": f"stores/{name}", "key": key, "instances": 3, "features": width}
        for name, key, width in zip(names, keys, widths, strict=True)
    ]
    for row in rows[len(rows) - failed :]:
        row.update(status="failed", reason="torn")
    write_json(Path("results/receipts/adopt/slide-labelled.json"), {"rows": rows})
    cohort = {n: {"bag": n, "patient": p, "label": 0} for n, p in zip(names, patients, strict=True)}
    content = {
        "stage": "gate",
        "name": "slide",
        "version": 1,
        "settings": {"max_failed": 0.3},
        "upstream": ["results/receipts/adopt/slide-labelled.json"],
        "cohort": cohort,
        "classes": ["no", "yes"],
    }
    write_json(Path("slice.json"), content)
    run_gate(
        argparse.Namespace(
            slice="slice.json", receipt="gate.json", threads=1, device="cpu", silence_seconds=1, memory_mb=1
        )
    )
    found: dict[str, Any] = read_json(Path("gate.json"))
    return found


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_images_that_can_be_used_go_through_with_their_patients() -> None:
    rows = gate(["P1", "P2", "P3", "P4"], ["k1", "k2", "k3", "k4"], [8] * 4, failed=1)["rows"]
    assert [(row["id"], row["patient"], row["key"]) for row in rows] == [
        ("a", "P1", "k1"), ("b", "P2", "k2"), ("c", "P3", "k3"),
    ]  # fmt: skip


def test_the_same_bytes_under_two_patients_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    """One could be in training and the other in the test."""
    found = gate(["P1", "P2", "P3", "P4"], ["k1", "k2", "k1", "k1"], [8] * 4)
    (warning,) = found["warnings"]
    assert warning.startswith("a and c and 1 more hold the same, byte for byte, and are of different patients: a head ")
    assert f"slide: warning: {warning}" in capsys.readouterr().out
    assert len(found["rows"]) == 4


def test_the_same_bytes_of_one_patient_are_no_leak() -> None:
    found = gate(["P1", "P2", "P1"], ["k1", "k2", "k1"], [8] * 3)
    assert (found["warnings"], len(found["rows"])) == ([], 3)


def test_an_image_of_another_width_than_most_is_named() -> None:
    with pytest.raises(PipelineError, match="slide: b has 9 features where 8 are usual"):
        gate(["P1", "P2", "P3"], ["k1", "k2", "k3"], [8, 9, 8])


def test_too_many_failures_stop_the_run_before_training() -> None:
    with pytest.raises(PipelineError, match=r"2 of 4 labelled images failed, more than max_failed 0.3 allows"):
        gate(["P1", "P2", "P3", "P4"], ["k1", "k2", "k3", "k4"], [8] * 4, failed=2)
