"""What a second run does: nothing, or just what changed."""

import csv
import os
import shutil
from pathlib import Path

import pytest

from support.workspace import Workspace, write_series, write_slide


def test_a_run_makes_everything_that_it_promises(finished: Workspace) -> None:
    results = finished.folder / "results"
    for name in ("catalog.tsv", "metrics.csv", "predictions.csv", "splits.csv", "report.html", "test_uses.tsv"):
        assert (results / name).stat().st_size > 0
    assert finished.catalog()["slides/0.tiff"]["status"] == "done"
    assert finished.catalog()["ct/6"]["instances"] == "10"
    # 3 folds, each opened once, and a header
    assert len((results / "test_uses.tsv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("profile", [(), ("--workflow-profile", "none")])
def test_a_second_run_has_nothing_to_do(work: Workspace, profile: tuple[str, ...]) -> None:
    assert "Nothing to be done" in work.run(*profile)


def test_a_new_unlabelled_image_costs_its_shard_and_its_prediction(work: Workspace) -> None:
    weights, stores = work.weights(), work.stores()
    write_series(work.folder / "data/raw/ct/new", 500)
    assert work.jobs() == {"tile": 1, "embed": 1, "predict": 1, "catalog": 1, "report": 1}
    work.run()
    assert work.weights() == weights
    assert stores.items() <= work.stores().items()
    assert len(work.stores()) == len(stores) + 2
    assert b"ct/new" in work.result("predictions.csv")
    assert "Nothing to be done" in work.run()


def test_a_new_labelled_image_costs_its_shard_and_the_heads(work: Workspace) -> None:
    weights, stores, splits_before = work.weights(), work.stores(), work.result("splits.csv")
    write_series(work.folder / "data/raw/ct/new", 500)
    with (work.folder / "data/labels.csv").open("a") as file:
        file.write("ct/new,Q9,lesion\n")
    jobs = work.jobs()
    assert (jobs["tile"], jobs["embed"]) == (1, 1)
    assert (jobs["gate"], jobs["split"], jobs["train"]) == (1, 1, 3)
    work.run()
    assert stores.items() <= work.stores().items()
    assert len(work.stores()) == len(stores) + 2
    new = work.weights().keys() - weights.keys()
    # The new patient trains in one fold of three, validates in another and tests in the third, which changes no head.
    assert len(new) == 2
    assert all("/series-" in name for name in new)
    splits = list(csv.DictReader(work.result("splits.csv").decode().splitlines()))
    before = list(csv.DictReader(splits_before.decode().splitlines()))
    assert [line for line in splits if line["bag"] != "ct/new"] == before  # known patients keep their folds


def test_an_image_that_gets_a_label_is_not_read_again(work: Workspace) -> None:
    stores = work.stores()
    with (work.folder / "data/labels.csv").open("a") as file:
        file.write("ct/6,Q6,normal\n")
    work.run()
    assert work.stores() == stores
    assert work.catalog()["ct/6"]["label"] == "normal"
    rows = list(csv.DictReader(work.result("predictions.csv").decode().splitlines()))
    assert {row["of"] for row in rows if row["bag"] == "ct/6"} == {"test"}


def test_a_changed_label_redoes_heads_and_no_store(work: Workspace) -> None:
    stores, weights = work.stores(), work.weights()
    labels = work.folder / "data/labels.csv"
    labels.write_text(
        labels.read_text().replace("ct/2,Q2,normal", "ct/2,Q2,lesion").replace("ct/3,Q3,lesion", "ct/3,Q3,normal")
    )
    assert "tile" not in (jobs := work.jobs())
    assert jobs["train"] == 3
    work.run()
    assert work.stores() == stores
    # Both patients are in one fold: the heads that train or validate on it are new, the one that tests on it is kept.
    assert len(work.weights()) == len(weights) + 2


def test_a_changed_window_touches_ct_alone_and_reads_no_dicom(work: Workspace) -> None:
    work.configure(series__windows=[[40, 80], [80, 200], [600, 2800]])
    jobs = work.jobs()
    assert "tile" not in jobs
    assert (jobs["embed"], jobs["gate"], jobs["train"]) == (3, 1, 3)


def test_a_changed_head_setting_touches_that_head_alone(work: Workspace) -> None:
    weights = work.weights()
    work.configure(heads__mean={"method": "mean"})
    assert work.jobs()["train"] == 3  # the new head's folds
    work.run()
    assert weights.items() <= work.weights().items()
    assert len(work.weights()) == len(weights) + 3
    work.configure(heads__mean={"method": "mean"}, heads__abmil={"method": "abmil", "hidden": 4})
    jobs = work.jobs()
    assert "embed" not in jobs
    assert (jobs["train"], jobs["predict"]) == (3, 2)
    assert work.job_names("Train") == {f"series-abmil-fold{fold}-seed0" for fold in range(3)}


@pytest.mark.parametrize(
    ("setting", "changes"),
    [
        ({"slide__mpp": 1.0}, "catalog.tsv"),
        ({"series__windows": [[40, 80], [80, 200], [600, 2800]]}, "predictions.csv"),
    ],
    ids=["mpp", "window"],
)
def test_a_setting_set_back_finds_everything_again(work: Workspace, setting: dict[str, object], changes: str) -> None:
    names = ("catalog.tsv", "metrics.csv", "predictions.csv", "splits.csv")
    before = {name: work.result(name) for name in names}
    work.configure(**setting)
    work.run()
    assert work.result(changes) != before[changes]
    stores, weights = work.stores(), work.weights()
    work.configure()
    jobs = work.jobs()
    assert jobs == {"catalog": 1, "report": 1}
    work.run()
    assert (work.stores(), work.weights()) == (stores, weights)
    assert {name: work.result(name) for name in before} == before
    assert "Nothing to be done" in work.run()


def test_a_weights_file_set_back_finds_its_stores_again(empty: Workspace) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    write_series(empty.folder / "data/raw/a", 1)
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), empty.folder / f"{seed}.safetensors")
    backbone = {"model": "test_resnet", "input_size": 32, "batch": 8, "weights": "file"}
    stores = []
    for seed in (1, 2, 1):
        empty.configure(series__backbone={**backbone, "file": f"{seed}.safetensors"})
        empty.run()
        stores.append(empty.stores())
        assert "Nothing to be done" in empty.run()
    assert [len(found) for found in stores] == [2, 3, 3]
    assert stores[1] == stores[2]
    # Another model's weights under the same name are another model.
    shutil.copy(empty.folder / "2.safetensors", empty.folder / "1.safetensors")
    assert empty.jobs()["embed"] == 1


def test_a_slide_replaced_and_restored_finds_its_store_again(work: Workspace) -> None:
    slide, kept = work.folder / "data/raw/slides/1.tiff", work.folder / "kept.tiff"
    before = work.result("catalog.tsv")
    shutil.copy2(slide, kept)
    write_slide(slide, 77)
    work.run()
    assert work.result("catalog.tsv") != before
    stores = work.stores()
    shutil.copy2(kept, slide)
    work.run()
    assert work.stores() == stores
    assert work.result("catalog.tsv") == before


@pytest.mark.parametrize("loss", ["touched images", "lost .snakemake", "--use-conda"])
def test_what_snakemake_thinks_changes_no_store_and_no_head(work: Workspace, loss: str, tmp_path: Path) -> None:
    before = work.stores(), work.weights(), work.result("metrics.csv"), work.result("predictions.csv")
    arguments, environment = ["--workflow-profile", "none"], {}
    if loss == "touched images":
        os.utime(work.folder / "data/raw/slides/0.tiff")
        for path in (work.folder / "data/raw/ct/0").iterdir():
            os.utime(path)
    elif loss == "lost .snakemake":
        shutil.rmtree(work.folder / ".snakemake")
    else:
        environment = {"PATH": f"{stand_in_for_conda(tmp_path)}:{os.environ['PATH']}"}
        arguments += ["--use-conda", "--conda-prefix", str(tmp_path / "environments")]
    text = work.run(*arguments, env=environment)
    if loss == "--use-conda":
        assert "tile" in text, "Snakemake was expected to start the jobs again"
    assert (work.stores(), work.weights(), work.result("metrics.csv"), work.result("predictions.csv")) == before


def stand_in_for_conda(folder: Path) -> Path:
    """A folder with a `conda` that makes environments out of the one the tests run in."""
    import sys

    place = folder / "conda" / "bin"
    place.mkdir(parents=True)
    conda = place / "conda"
    conda.write_text(
        f"""#!/bin/bash
case "$1" in
  --version) echo "conda 24.9.0";;
  info) echo '{{"conda_prefix": "{place.parent}", "root_prefix": "{place.parent}", "platform": "linux-64"}}';;
  config) echo '{{"get": {{"channel_priority": "strict"}}}}';;
  env) while [ $# -gt 0 ]; do [ "$1" = --prefix ] && prefix="$2"; shift; done
       mkdir -p "$prefix/bin" "$prefix/conda-meta"; ln -s "{sys.executable}" "$prefix/bin/python";;
esac
"""
    )
    conda.chmod(0o755)
    activate = place / "activate"
    activate.write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\nexport CONDA_PREFIX="$1"\n')
    return place


def test_one_core_and_two_give_the_same(finished: Workspace, tmp_path: Path) -> None:
    alone = Workspace(tmp_path / "alone", finished.repository)
    alone.folder.mkdir()
    shutil.copytree(finished.folder / "data", alone.folder / "data")
    alone.configure()
    alone.run(cores=1)
    tiles = [
        {
            str(p.relative_to(w.folder)): p.read_bytes()
            for p in sorted((w.folder / "results/tile").rglob("c/**/*"))
            if p.is_file()
        }
        for w in (finished, alone)
    ]
    assert tiles[0] == tiles[1]
    assert alone.result("splits.csv") == finished.result("splits.csv")
    tables = [list(csv.reader(w.result("predictions.csv").decode().splitlines())) for w in (finished, alone)]
    assert len(tables[0]) == len(tables[1]) == 1 + 7
    for first, second in zip(*tables, strict=True):
        for a, b in zip(first, second, strict=True):
            try:
                assert float(a) == pytest.approx(float(b), abs=1e-5)
            except ValueError:
                assert a == b
