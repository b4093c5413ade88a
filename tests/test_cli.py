"""The command line finds a runner for every command, and tells a user's mistake from a bug."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import cli
from pipeline.cli import HOMES, STAGES, TOOLS, main, parser
from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.versions import VERSIONS

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("command", [*STAGES, *TOOLS])
def test_every_command_has_a_runner(command: str) -> None:
    module = importlib.import_module(f"pipeline.runners.{HOMES.get(command, 'tools')}")
    runner = getattr(module, f"run_{command.replace('-', '_')}")
    assert callable(runner)
    assert runner.__doc__


def test_every_stage_has_a_version() -> None:
    assert set(STAGES) == set(VERSIONS)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_a_slice_and_a_receipt(stage: str) -> None:
    parsed = parser().parse_args([stage, "s.json", "r.json", "--threads", "2", "--memory-mb", "500"])
    assert (parsed.slice, parsed.receipt, parsed.threads, parsed.device) == ("s.json", "r.json", 2, "auto")
    assert (parsed.memory_mb, parsed.silence_seconds) == (500, 900)


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["embedd"])
    assert caught.value.code == 2
    assert "invalid choice: 'embedd'" in capsys.readouterr().err


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "error: config.yaml: is not there: run in the folder that holds it, or name it with --config"),
        ("slide: {mmp: 0.5}", "error: config.yaml: slide.mmp: found 0.5: Extra inputs are not permitted"),
        ("slide: [", "error: config.yaml: is not YAML: "),
        ("- raw", "error: config.yaml: holds list, not settings: write `key: value` lines"),
        ("labels: labels.csv", "error: labels.csv: has no column `patient` (found: image): add it, one row per image"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(
    work: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    Path("labels.csv").write_text("image\n1.svs\n")
    if content is not None:
        Path("config.yaml").write_text(content)
    assert main(["check"]) == 1
    assert error_line(capsys).startswith(said)


def test_a_slice_that_is_gone_is_one_line(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "results/plan/gate/slide.0.json", "r.json"]) == 1
    assert "slide.0.json: is missing: run snakemake again" in error_line(capsys)


def fails_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run_check(arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(
        cli, "importlib", SimpleNamespace(import_module=lambda name: SimpleNamespace(run_check=run_check))
    )


def test_a_message_of_many_lines_becomes_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, PipelineError("labels:\n  two\n  lines"))
    assert main(["check"]) == 1
    assert error_line(capsys) == "error: labels: two lines"


def test_a_full_disk_is_the_machines_state_and_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(monkeypatch, OSError(28, "No space left on device", "results/x.json"))
    assert main(["check"]) == 1
    assert error_line(capsys).startswith("error: results/x.json: [Errno 28] No space left on device")


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), AssertionError("x"), ZeroDivisionError()])
def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fails_with(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["check"])


def test_check_says_what_a_run_would_do(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("raw/a").mkdir(parents=True)
    rows = ["image,patient,label,exclude"]
    for number in range(6):
        Path(f"raw/a/{number}.svs").write_bytes(b"x")
        rows.append(f"a/{number}.svs,P{number},{('no', 'yes')[number % 2]},")
    Path("raw/a/blurred.svs").write_bytes(b"x")
    Path("raw/notes.txt").write_bytes(b"x")
    rows += ["a/blurred.svs,P9,no,blurred", "lost.svs,P8,no,"]
    Path("labels.csv").write_text("\n".join(rows))
    Path("config.yaml").write_text("{raw: raw, labels: labels.csv, settle_seconds: 0, split: {folds: 3}}")
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "slide: 6 images, 6 labelled (no: 3, yes: 3) from 6 patients",
        "series: 0 images, 0 labelled (nothing is learnt) from 0 patients",
        "missing: 1: lost.svs",
        "excluded: 1: a/blurred.svs",
        "ignored: 1: notes.txt is no slide and no DICOM file",
    ]
    assert lines[-1].startswith(
        "to do: 1 tile, 1 weights, 1 embed, 1 gate, 1 split, 6 train, 2 predict, 2 explain, 1 evaluate, "
    )
    assert "about 6 minutes of one core" in lines[-1]  # 60 s a slide as long as none was done


def test_schema_prints_the_schema_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"].keys() == Config.model_fields.keys()


def imported_by(*code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after some lines of code."""
    script = "\n".join([*code, "import sys; print(chr(10).join({name.split('.')[0] for name in sys.modules}))"])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    return set(done.stdout.split())


def test_help_imports_neither_torch_nor_numpy() -> None:
    """It answers at once, also where they are not installed."""
    found = imported_by("import runpy, sys", "sys.argv = ['pipeline', '--help']", "try:",
                        "    runpy.run_module('pipeline', run_name='__main__')", "except SystemExit: pass")  # fmt: skip
    assert "pipeline" in found
    assert not found & {"torch", "numpy", "pydantic", "zarr", "pydicom", "openslide"}


def test_the_plan_imports_neither_torch_nor_numpy() -> None:
    """It runs in Snakemake's own process at every start, over ten thousands of files."""
    found = imported_by("import pipeline.plan, pipeline.names, pipeline.shards", "import pipeline.runners.cohort")
    assert "pydantic" in found
    assert not found & {"torch", "numpy", "zarr", "pydicom", "openslide", "snakemake"}


@pytest.mark.parametrize("module", ["shard", "learn", "show"])
def test_a_runner_without_work_imports_nothing_heavy(module: str) -> None:
    assert not imported_by(f"import pipeline.runners.{module}") & {"torch", "numpy", "zarr", "pydicom", "openslide"}


def test_a_command_runs_in_the_folder_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.yaml").write_text("raw: somewhere\n")
    monkeypatch.chdir(tmp_path)
    assert main(["-d", "there", "check"]) == 0
    assert "slide: 0 images" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["-d", "nowhere", "check"]) == 1
    assert capsys.readouterr().err == "error: nowhere: No such file or directory: name a folder\n"
