"""Names of files and people: odd ones work, none leaves the results folder, and none shows when it shall not."""

import csv
from pathlib import Path

import pytest

from support.workspace import Workspace, write_cohort, write_series, write_slide

ODD = [
    "a b/c.tiff",
    "a b/d/c.tiff",
    "dots..in..name.tiff",
    "-rf.tiff",
    "ünï/日本語 ✓.tiff",
    "n" * 200 + ".tiff",
    "$(touch pwned)`touch pwned`.tiff",
    "<script>alert(1)</script>.tiff".replace("/", "∕"),
    "{name}.{digest}.tiff",
    "quote'\"; rm -rf x.tiff",
    "%s%n.tiff",
]


def test_odd_names_work_and_reach_neither_shell_nor_html(empty: Workspace) -> None:
    raw = empty.folder / "data" / "raw"
    for number, name in enumerate(ODD):
        write_slide(raw / name, number)
    (raw / "new\nline.tiff").write_bytes(b"")
    (raw / ".hidden.tiff").write_bytes(b"")
    write_series(raw / "-series; touch pwned", 1)
    before = {path.name for path in empty.folder.iterdir()}
    empty.run()
    with (empty.folder / "results/catalog.tsv").open(newline="") as file:
        found = {row["image"]: row["status"] for row in csv.DictReader(file, delimiter="\t")}
    assert found == dict.fromkeys([*ODD, "-series; touch pwned"], "done")
    assert {path.name for path in empty.folder.iterdir()} - before <= {"results", "logs", ".snakemake"}
    assert not list(empty.folder.rglob("pwned"))
    report = empty.result("report.html").decode()
    assert "<script" not in report
    assert "new\\nline.tiff" in report


def test_names_do_not_show_when_ids_are_hashed(empty: Workspace, tmp_path: Path) -> None:
    """A name planted in folders, files, DICOM headers, patients, cases and reasons occurs in no byte of any output."""
    write_cohort(empty.folder, slides=6, series=0)
    raw, labels = empty.folder / "data" / "raw", empty.folder / "data" / "labels.csv"
    for path in list((raw / "slides").iterdir()):
        path.rename(path.with_name(f"ZZTEST^LEAK {path.name}"))
    (raw / "slides").rename(raw / "zztest slides")
    write_series(raw / "ZZTEST^LEAK/ct", 50, patient="ZZTEST^LEAK")
    write_series(raw / "ZZTEST^LEAK/short", 51, slices=2, patient="ZZTEST^LEAK")
    (raw / "ZZTEST^LEAK/broken.svs").write_bytes(b"ZZTEST")
    (raw / "ZZTEST^LEAK/notes.txt").write_text("ZZTEST")
    text = labels.read_text().replace("slides/", "zztest slides/ZZTEST^LEAK ").replace(",P", ",ZZTEST-P")
    text = "\n".join(line + ("," if number else ",exclude") for number, line in enumerate(text.splitlines()))
    labels.write_text(text + "\nZZTEST^LEAK/short,ZZTEST^LEAK,normal,ZZTEST asked\nZZTEST gone,ZZTEST,normal,\n")
    empty.configure(ids="hashed", bag="patient", max_failed=1)
    out = empty.run()
    out += empty.run("-n", "--forceall")
    with (empty.folder / "results/catalog.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    counts = [sum(row["status"] == status for row in rows) for status in ("done", "failed", "excluded", "missing")]
    assert counts == [8, 1, 1, 1]
    outputs = [path for name in ("results", "logs", ".snakemake") for path in (empty.folder / name).rglob("*")]
    assert len(outputs) > 100
    needle = b"zztest"
    assert needle not in out.lower().encode()
    assert [path for path in outputs if needle.decode() in path.name.lower()] == []
    assert [path for path in outputs if path.is_file() and needle in path.read_bytes().lower()] == []
    private = empty.folder / "data" / "private"
    assert (private / "names.key").stat().st_mode & 0o077 == 0
    assert any(needle in path.read_bytes().lower() for path in private.rglob("*.json"))
    assert "Nothing to be done" in empty.run()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"slide__mppp": 1}, "error: config.yaml: slide.mppp: found 1: Extra inputs are not permitted"),
        ({"slide__mpp": -1}, "error: config.yaml: slide.mpp: found -1: Input should be greater than or equal to 0"),
        ({"heads": {"Mean!": {}}}, "error: config.yaml: heads.Mean!.[key]: "),
        ({"split__folds": 4}, "error: labels: class 'lesion' has 3 patients among the labelled "),
        ({"raw": "config.yaml"}, "error: raw: config.yaml is a file: "),
    ],
)
def test_a_mistake_in_the_settings_is_one_line_before_any_job(
    finished: Workspace, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    work = Workspace(tmp_path / "w", finished.repository)
    work.folder.mkdir()
    (work.folder / "data").symlink_to(finished.folder / "data")
    work.configure(**config)
    text = work.run(fails=True)
    assert message in text
    assert "Traceback" not in text
    assert not (work.folder / "logs").exists()
    assert message in work.pipeline("check", fails=True)


def test_check_says_what_a_run_would_do(finished: Workspace) -> None:
    text = finished.pipeline("check")
    assert "slide: 2 images, 0 labelled (nothing is learnt) from 0 patients" in text
    assert "series: 7 images, 6 labelled (lesion: 3, normal: 3) from 6 patients" in text
    assert "to do: nothing" in text
