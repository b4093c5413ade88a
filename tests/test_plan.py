"""Which jobs an experiment has, and what makes each of them another job."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import plan as plan_module
from pipeline.config import Config, load_config
from pipeline.errors import CohortError, ConfigError
from pipeline.plan import Job, Plan, build
from pipeline.store import read_json, write_json

LEARNING = {"gate", "split", "train", "predict", "evaluate", "explain"}
TABLES = {"catalog", "report"}
EVERYTHING = {"tile", "embed"} | LEARNING | TABLES
LABELLED = [(kind, n) for kind in ("slide", "series") for n in range(8)]

BASE: dict[str, Any] = {
    "raw": "raw",
    "labels": "labels.csv",
    "private": "private",
    "settle_seconds": 0,
    "split": {"folds": 3},
    "heads": {"mean": {"method": "mean"}, "abmil": {"method": "abmil"}},
}


def put_image(kind: str, name: object) -> Path:
    path = Path("raw/slides") / f"{name}.svs" if kind == "slide" else Path("raw/ct") / str(name) / "0.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"pixels")
    return path


def image_path(kind: str, name: object) -> str:
    return f"slides/{name}.svs" if kind == "slide" else f"ct/{name}"


def label(*rows: tuple[str, ...], columns: str = "image,patient,label") -> None:
    Path("labels.csv").write_text("\n".join([columns, *(",".join(row) for row in rows)]) + "\n")


def eight_of_each() -> list[tuple[str, str, str]]:
    return [(image_path(kind, n), f"{kind}{n}", ("no", "yes")[n % 2]) for kind, n in LABELLED]


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with eight labelled images, four of each class, and one unlabelled one of each modality."""
    monkeypatch.chdir(tmp_path)
    for kind, n in LABELLED:
        put_image(kind, n)
    put_image("slide", "unlabelled")
    put_image("series", "unlabelled")
    label(*eight_of_each())
    return tmp_path


def config(**changes: Any) -> Config:
    """The experiment with some keys changed, `slide__mpp` meaning slide.mpp."""
    values = json.loads(json.dumps(BASE))
    for name, value in changes.items():
        *above, last = name.split("__")
        section = values
        for key in above:
            section = section.setdefault(key, {})
        section[last] = value
    return load_config(values)


def keys(plan: Plan) -> dict[tuple[str, str], str]:
    return {(job.stage, job.name): job.key for job in plan.jobs}


def differing(before: Plan, after: Plan) -> set[tuple[str, str]]:
    """(stage, name) of the jobs of either plan that are not in the other one."""
    first, second = keys(before), keys(after)
    return {job for job in first.keys() | second.keys() if first.get(job) != second.get(job)}


def by_kind(jobs: set[tuple[str, str]]) -> dict[str, set[str]]:
    """Stages of some jobs by modality; the tables are of all modalities."""
    found: dict[str, set[str]] = {}
    for stage, name in jobs:
        found.setdefault(name.split("-")[0], set()).add(stage)
    return found


def names(plan: Plan, stage: str) -> list[str]:
    return sorted(job.name for job in plan.jobs if job.stage == stage)


def ids(job: Job) -> set[str]:
    return {image["id"] for image in job.slice["images"]}


def test_the_jobs_of_a_small_experiment(cohort: Path) -> None:
    plan = build(config())
    kinds, heads, folds = ("series", "slide"), ("abmil", "mean"), range(3)
    shards = sorted(f"{kind}-{family}-0000of0001" for kind in kinds for family in ("labelled", "unlabelled"))
    assert names(plan, "tile") == names(plan, "embed") == shards
    assert names(plan, "gate") == names(plan, "split") == names(plan, "evaluate") == list(kinds)
    assert names(plan, "train") == sorted(f"{k}-{h}-fold{f}-seed0" for k in kinds for h in heads for f in folds)
    assert names(plan, "predict") == sorted(
        f"{k}-{h}-{of}" for k in kinds for h in heads for of in ("test", "unlabelled")
    )
    assert names(plan, "explain") == sorted(f"{k}-{h}" for k in kinds for h in heads)
    assert plan.targets == [job.receipt for job in plan.jobs if job.stage in TABLES]
    assert plan.classes == {"slide": ("no", "yes"), "series": ("no", "yes")}


def test_every_job_but_the_targets_is_somebodys_upstream(cohort: Path) -> None:
    """Snakemake follows receipts up from the targets: a job that nobody names would never run."""
    plan = build(config())
    named = {receipt for job in plan.jobs for receipt in job.slice["upstream"]} | set(plan.targets)
    assert {job.receipt for job in plan.jobs} == named


def test_slices_are_written_once_and_say_what_the_job_is(cohort: Path) -> None:
    plan = build(config())
    plan.write()
    written = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.json")}
    assert {job.slice_path for job in plan.jobs} < written.keys()
    for job in plan.jobs:
        assert read_json(job.slice_path) == json.loads(json.dumps(job.slice))
    again = build(config())
    again.write()
    assert keys(again) == keys(plan)
    assert {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.json")} == written


def test_without_labels_images_are_embedded_and_nothing_is_learnt(cohort: Path) -> None:
    Path("labels.csv").unlink()
    assert {job.stage for job in build(config()).jobs} == {"tile", "weights", "embed", "catalog", "report"}


def test_an_empty_raw_folder_still_has_a_catalog_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [job.stage for job in build(config()).jobs] == ["catalog", "report"]


@pytest.mark.parametrize(
    ("images", "per_shard", "shards"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (16, 8, 2), (17, 8, 4), (33, 8, 8), (5, 1, 8)]
)
def test_shards_are_the_smallest_power_of_two_that_keeps_them_near_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, per_shard: int, shards: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(images):
        put_image("slide", number)
    plan = build(config(slide__images_per_shard=per_shard))
    assert read_json(Path("results/plan/shards.json")) == {"slide-unlabelled": shards}
    assert all(name.endswith(f"of{shards:04d}") for name in names(plan, "tile"))
    assert sum(len(ids(job)) for job in plan.jobs if job.stage == "tile") == images


def test_shards_only_ever_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When images go away, the others stay in their shards."""
    monkeypatch.chdir(tmp_path)
    files = [put_image("slide", number) for number in range(9)]
    build(config(slide__images_per_shard=4))
    assert read_json(Path("results/plan/shards.json")) == {"slide-unlabelled": 4}
    for file in files[1:]:
        file.unlink()
    (job,) = (job for job in build(config(slide__images_per_shard=4)).jobs if job.stage == "tile")
    assert job.name.endswith("of0004")
    for number in range(10, 30):
        put_image("slide", number)
    assert len(names(build(config(slide__images_per_shard=4)), "tile")) == 8
    assert read_json(Path("results/plan/shards.json")) == {"slide-unlabelled": 8}


def test_an_image_lies_in_the_shard_of_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`printf slides/0.svs | sha256sum` ends in b (11), of 1.svs in d (13), of 2.svs in 5; all modulo 4."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        put_image("slide", number)
    plan = build(config(slide__images_per_shard=1))
    where = {image: job.name for job in plan.jobs if job.stage == "tile" for image in ids(job)}
    assert where == {f"slides/{n}.svs": f"slide-unlabelled-000{shard}of0004" for n, shard in enumerate([3, 1, 1])}


def test_a_new_image_touches_one_shard_and_no_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(20):
        put_image("slide", number)
        rows.append((image_path("slide", number), f"P{number}", ("no", "yes")[number % 2]))
    for number in range(20, 25):
        put_image("slide", number)
    label(*rows)
    before = build(config(slide__images_per_shard=4))
    put_image("slide", "new")
    changed = differing(before, build(config(slide__images_per_shard=4)))
    (tile,) = (name for stage, name in changed if stage == "tile")
    assert tile.startswith("slide-unlabelled-")
    assert changed == {
        ("tile", tile),
        ("embed", tile),
        *(("predict", f"slide-{head}-unlabelled") for head in ("mean", "abmil")),
        *(("catalog", "all"), ("report", "all")),
    }


def test_labelled_and_unlabelled_images_share_no_shard(cohort: Path) -> None:
    wanted = {image_path(kind, n) for kind, n in LABELLED}
    for job in build(config()).jobs:
        if job.stage in {"tile", "embed"}:
            assert (ids(job) <= wanted) == ("-labelled-" in job.name)
            assert ids(job) <= wanted or not ids(job) & wanted


def touch(path: str) -> Callable[[], None]:
    return lambda: os.utime(path, ns=(1, 1))


def relabel(index: int, **cells: str) -> Callable[[], None]:
    def change() -> None:
        rows = [dict(zip(("image", "patient", "label"), row, strict=True)) for row in eight_of_each()]
        rows[index] |= cells
        label(*((row["image"], row["patient"], row["label"]) for row in rows))

    return change


AFTER_GATE = LEARNING - {"gate"}
AFTER_SPLIT = AFTER_GATE - {"split"}
FROM_TILE, FROM_EMBED = {"tile", "embed"} | LEARNING, {"embed"} | LEARNING


def both(stages: set[str], tables: set[str]) -> dict[str, set[str]]:
    return {"slide": stages, "series": stages, "all": tables}


@pytest.mark.parametrize(
    ("key", "value", "redone"),
    [
        ("slide__mpp", 1.0, {"slide": FROM_TILE, "all": TABLES}),
        ("slide__tile", 256, {"slide": FROM_TILE, "all": TABLES}),
        ("slide__tissue__min_share", 0.5, {"slide": FROM_TILE, "all": TABLES}),
        ("slide__tissue__mpp", 4.0, {"slide": FROM_TILE, "all": TABLES}),
        ("slide__mpp_policy", "assume", {"slide": FROM_TILE, "all": TABLES}),
        ("content_hash", "full", {"slide": FROM_TILE, "all": TABLES}),
        ("series__min_slices", 5, {"series": FROM_TILE, "all": TABLES}),
        ("slide__backbone__model", "resnet34", {"slide": FROM_EMBED, "all": TABLES}),
        ("slide__backbone__batch", 16, {"slide": FROM_EMBED, "all": TABLES}),
        ("slide__max_unreadable", 0.2, {"slide": FROM_EMBED, "all": TABLES}),
        ("series__windows", [[40, 80], [80, 200], [600, 2800]], {"series": FROM_EMBED, "all": TABLES}),
        ("series__windows", ["bone", "lung", "stroke"], {"series": FROM_EMBED, "all": TABLES}),
        ("series__windows", ["brain", [80, 200], "soft_tissue"], {}),  # the same by other names
        ("series__hu_check", "note", {"series": FROM_TILE, "all": TABLES}),
        ("max_failed", 0.5, both(LEARNING, {"report"})),
        ("split__seed", 1, both(AFTER_GATE, {"report"})),
        ("training__epochs", 3, both(AFTER_SPLIT, {"report"})),
        ("heads__mean__dropout", 0.5, both(AFTER_SPLIT, {"report"})),
        ("explain__images", 1, both(AFTER_SPLIT - {"train"}, {"report"})),
        ("evaluation__resamples", 300, both({"evaluate"}, {"report"})),
        ("device", "cpu", {"all": {"report"}}),
        ("silence_seconds", 60, {"all": {"report"}}),
    ],
)
def test_a_setting_redoes_what_it_decides_and_what_follows(
    cohort: Path, key: str, value: object, redone: dict[str, set[str]]
) -> None:
    assert by_kind(differing(build(config()), build(config(**{key: value})))) == redone


def test_a_setting_of_one_head_trains_that_head_alone(cohort: Path) -> None:
    changed = differing(build(config()), build(config(heads__mean__dropout=0.5)))
    assert {name.split("-")[1] for stage, name in changed if stage in {"train", "predict", "explain"}} == {"mean"}


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (touch("raw/slides/0.svs"), {"slide": FROM_TILE, "all": TABLES}),
        (touch("raw/ct/0/0.dcm"), {"series": FROM_TILE, "all": TABLES}),
        (touch("raw/slides/unlabelled.svs"), {"slide": {"tile", "embed", "predict"}, "all": TABLES}),
        (relabel(0, label="yes"), {"slide": LEARNING, "all": TABLES}),
        (relabel(0, patient="P9"), {"slide": LEARNING, "all": {"report"}}),
    ],
    ids=["slide touched", "series touched", "unlabelled slide touched", "label changed", "patient changed"],
)
def test_files_and_labels_redo_what_reads_them(
    cohort: Path, change: Callable[[], None], redone: dict[str, set[str]]
) -> None:
    before = build(config())
    change()
    assert by_kind(differing(before, build(config()))) == redone


def test_an_unlabelled_image_that_changes_trains_no_head(cohort: Path) -> None:
    before = build(config())
    os.utime("raw/slides/unlabelled.svs", ns=(1, 1))
    changed = differing(before, build(config()))
    assert {name for stage, name in changed if stage == "predict"} == {
        "slide-abmil-unlabelled",
        "slide-mean-unlabelled",
    }
    assert {name for stage, name in changed if stage == "tile"} == {"slide-unlabelled-0000of0001"}


def test_other_weights_in_the_same_file_are_embedded_anew(cohort: Path) -> None:
    Path("weights.pt").write_bytes(b"0123")
    from_file = config(slide__backbone={"weights": "file", "file": "weights.pt"})
    before = build(from_file)
    os.utime("weights.pt", ns=(1, 1))
    assert by_kind(differing(before, build(from_file))) == {"slide": FROM_EMBED, "all": TABLES}


@pytest.mark.parametrize("stage", sorted(EVERYTHING))
def test_a_raised_version_redoes_its_stage(cohort: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    before = build(config())
    monkeypatch.setitem(plan_module.VERSIONS, stage, 99)
    changed = differing(before, build(config()))
    assert {job for job in keys(before) if job[0] == stage} <= changed
    after = {
        "tile": EVERYTHING,
        "embed": EVERYTHING - {"tile"},
        "gate": LEARNING | {"report"},
        "split": AFTER_GATE | {"report"},
        "train": AFTER_SPLIT | {"report"},
        "predict": AFTER_SPLIT - {"train"} | {"report"},
        "evaluate": {"evaluate", "report"},
        "explain": {"explain", "report"},
        "catalog": {"catalog"},
        "report": {"report"},
    }
    assert {found for found, _ in changed} == after[stage]


def test_an_image_that_gets_a_label_changes_family(cohort: Path) -> None:
    newcomer = image_path("slide", "unlabelled")
    label(*eight_of_each(), (newcomer, "new", "yes"))
    where = {job.name.split("-")[1] for job in build(config()).jobs if job.stage == "tile" and newcomer in ids(job)}
    assert where == {"labelled"}


def test_an_image_with_a_row_and_no_label_is_predicted_and_never_trains(cohort: Path) -> None:
    newcomer = image_path("slide", "unlabelled")
    label(*eight_of_each(), (newcomer, "slide0", ""))
    plan = build(config())
    (gate,) = (job for job in plan.jobs if (job.stage, job.name) == ("gate", "slide"))
    assert newcomer not in gate.slice["cohort"]
    assert len(gate.slice["cohort"]) == 8
    (asked,) = (job for job in plan.jobs if job.name == "slide-mean-unlabelled")
    assert asked.slice["cohort"] == {newcomer: {"bag": newcomer, "patient": "slide0"}}  # whom training may have seen


def test_excluded_images_are_in_no_shard(cohort: Path) -> None:
    rows = [(*row, "") for row in eight_of_each()] + [("slides/unlabelled.svs", "P9", "", "out of focus")]
    label(*rows, columns="image,patient,label,exclude")
    plan = build(config())
    assert [image.path for image in plan.excluded] == ["slides/unlabelled.svs"]
    assert not any("slides/unlabelled.svs" in ids(job) for job in plan.jobs if job.stage == "tile")
    (catalog,) = (job for job in plan.jobs if job.stage == "catalog")
    assert catalog.slice["listed"]["excluded"] == [["slides/unlabelled.svs", "slide", "out of focus"]]


def test_images_changed_a_moment_ago_wait(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.05)
    now = time.time()
    time.sleep(0.05)
    put_image("slide", "copying")
    put_image("series", "copying")
    monkeypatch.setattr(plan_module.time, "time", lambda: now + 30)
    plan = build(config(settle_seconds=30))
    reason = "changed too recently: run again"
    assert [(image.path, why) for image, why in plan.waiting] == [
        ("slides/copying.svs", reason),
        ("ct/copying", reason),
    ]
    (catalog,) = (job for job in plan.jobs if job.stage == "catalog")
    assert catalog.slice["listed"]["waiting"] == [
        ["slides/copying.svs", "slide", reason],
        ["ct/copying", "series", reason],
    ]
    assert {len(plan.images["slide"]), len(plan.images["series"])} == {9}
    assert not any({"slides/copying.svs", "ct/copying"} & ids(job) for job in plan.jobs if job.stage == "tile")
    monkeypatch.setattr(plan_module.time, "time", lambda: now + 60)
    assert build(config(settle_seconds=30)).waiting == []


def put_incomplete_slide(name: str) -> None:
    """A MIRAX slide whose two data files are on their way."""
    Path(f"raw/slides/{name}").mkdir()
    Path(f"raw/slides/{name}.mrxs").write_bytes(b"x")
    lines = ("[DATAFILE]", f"FILE_0 = {name} 0.dat", f"FILE_1 = {name} 1.dat")
    Path(f"raw/slides/{name}/Slidedat.ini").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("naming", "said"),
    [
        ("path", "incomplete: Doe 0.dat and 1 more of its files are not there yet"),
        ("hashed", "incomplete: 2 of its files are not there yet"),
    ],
)
def test_a_slide_that_is_not_all_there_waits_twenty_times_as_long(
    cohort: Path, monkeypatch: pytest.MonkeyPatch, naming: str, said: str
) -> None:
    put_incomplete_slide("Doe")
    now = time.time()
    for later, reasons in [(31.0, [said]), (590.0, [said]), (601.0, [])]:
        monkeypatch.setattr(plan_module.time, "time", lambda later=later: now + later)
        plan = build(config(settle_seconds=30, ids=naming))
        assert [reason for _, reason in plan.waiting] == reasons
        (catalog,) = (job for job in plan.jobs if job.stage == "catalog")
        assert [reason for _, _, reason in catalog.slice["listed"]["waiting"]] == reasons
    assert "slides/Doe.mrxs" in [image.path for image in plan.images["slide"]]
    assert build(config()).waiting == []  # settle_seconds 0: nothing ever waits


def test_a_slide_that_becomes_complete_is_another_image(cohort: Path) -> None:
    put_incomplete_slide("Doe")
    before = build(config())
    Path("raw/slides/Doe/Doe 0.dat").write_bytes(b"x")
    assert {stage for stage, _ in differing(before, build(config()))} == {"tile", "embed", "predict"} | TABLES


def test_a_plain_image_is_a_slide_when_its_resolution_is_stated_and_else_ignored(cohort: Path) -> None:
    before = build(config())
    for name in ("0.png", "9.png"):  # the first is a preview beside slides/0.svs
        Path("raw/slides", name).write_bytes(b"\x89PNG\r\n\x1a\n")
    reason = "is a plain image and nobody states its mpp: give it one in the `mpp` column of labels.csv"
    label(*((image.removesuffix(".svs"), *others) for image, *others in eight_of_each()))
    plan = build(config())
    assert [(item.path, item.reason) for item in plan.ignored] == [("slides/0.png", reason), ("slides/9.png", reason)]
    assert {stage for stage, _ in differing(before, plan)} == TABLES
    label(*((*row, "", "") for row in eight_of_each()), ("slides/9.png", "P9", "", "0.5", "assume"),
          columns="image,patient,label,mpp,mpp_policy")  # fmt: skip
    plan = build(config())
    assert [item.path for item in plan.ignored] == ["slides/0.png"]
    (entry,) = (e for job in plan.jobs if job.stage == "tile" for e in job.slice["images"] if e["id"] == "slides/9.png")
    assert (entry["kind"], entry["stated"]) == ("slide", {"mpp": 0.5, "mpp_policy": "assume"})
    assert build(config(slide={"mpp_policy": "override", "native_mpp": 0.5})).ignored == []


def test_an_annotation_that_is_edited_tiles_its_slide_anew(cohort: Path) -> None:
    Path("raw/slides/0.geojson").write_text("{}")
    before = build(config())
    (entry,) = (
        e for job in before.jobs if job.stage == "tile" for e in job.slice["images"] if e["id"] == "slides/0.svs"
    )
    assert entry["files"] == ["slides/0.svs", "slides/0.geojson"]
    Path("raw/slides/0.geojson").write_text("{ }")
    assert by_kind(differing(before, build(config()))) == {"slide": FROM_TILE, "all": TABLES}


def test_another_segmenter_in_the_same_file_tiles_anew(cohort: Path) -> None:
    by_model = config(slide={"tissue": {"method": "model", "model": "segmenter.pt"}})

    def model_file() -> object:
        (job,) = (job for job in build(by_model).jobs if (job.stage, job.name) == ("tile", "slide-labelled-0000of0001"))
        return job.slice["settings"]["model_file"]

    assert model_file() is None
    Path("segmenter.pt").write_bytes(b"0123")
    os.utime("segmenter.pt", ns=(1, 1))
    assert model_file() == [4, 1]
    before = build(by_model)
    os.utime("segmenter.pt", ns=(2, 2))
    assert by_kind(differing(before, build(by_model))) == {"slide": FROM_TILE, "all": TABLES}
    assert not any("model_file" in job.slice["settings"] for job in build(config()).jobs if job.stage == "tile")


def test_rows_without_image_are_listed_or_when_strict_refused(cohort: Path) -> None:
    label(*eight_of_each(), ("slides/lost.svs", "P9", "yes"))
    (catalog,) = (job for job in build(config()).jobs if job.stage == "catalog")
    assert catalog.slice["listed"]["missing"] == [["slides/lost.svs", "18"]]
    said = r"labels.csv: 1 rows name images that are not below raw \(lines 18\): bring them, or set strict: false"
    with pytest.raises(CohortError, match=said):
        build(config(strict=True))


def test_the_users_own_mpp_is_part_of_the_image(cohort: Path) -> None:
    before = build(config())
    label(
        *((*row, "0.25" if n == 0 else "") for n, row in enumerate(eight_of_each())), columns="image,patient,label,mpp"
    )
    changed = differing(before, build(config()))
    assert {name for stage, name in changed if stage == "tile"} == {"slide-labelled-0000of0001"}


def test_the_policy_of_a_row_is_part_of_the_image(cohort: Path) -> None:
    before = build(config())
    label(*((*row, "assume" if n == 0 else "") for n, row in enumerate(eight_of_each())),
          columns="image,patient,label,mpp_policy")  # fmt: skip
    changed = differing(before, build(config()))
    assert {name for stage, name in changed if stage == "tile"} == {"slide-labelled-0000of0001"}


def published(plan: Plan, stage: str) -> None:
    """What the stage's worker leaves behind when it is done."""
    (job,) = (job for job in plan.jobs if job.stage == stage)
    name = {"catalog": "catalog.tsv", "report": "report.html"}[stage]
    Path("results", name).write_text("published")
    marker = {"serial": job.slice["serial"], "core": job.slice["core"], "files": [name]}
    write_json(Path("results/published") / f"{stage}.json", marker)


@pytest.mark.parametrize("stage", ["catalog", "report"])
def test_a_published_table_is_made_again_when_it_stands_for_another_plan(cohort: Path, stage: str) -> None:
    def serial_and_receipt(**changes: Any) -> tuple[int, str]:
        plan = build(config(**changes))
        (job,) = (job for job in plan.jobs if job.stage == stage)
        return job.slice["serial"], job.receipt

    first = serial_and_receipt()
    assert first[0] == 1
    published(build(config()), stage)
    assert serial_and_receipt() == first  # done: nothing to do
    assert serial_and_receipt(slide__mpp=1.0)[0] == 2
    published(build(config(slide__mpp=1.0)), stage)
    back = serial_and_receipt()
    assert back[0] == 3
    assert back[1] != first[1]  # the receipt of the first plan is there, its table is not
    published(build(config()), stage)
    Path("results", {"catalog": "catalog.tsv", "report": "report.html"}[stage]).unlink()
    assert serial_and_receipt()[0] == 4  # somebody deleted the table


def test_with_hashed_ids_no_name_is_in_any_slice_or_job(cohort: Path) -> None:
    put_image("slide", "Doe Jane")
    label(*eight_of_each(), ("slides/Doe Jane.svs", "MRN0815", "yes"), ("slides/Doe John.svs", "MRN4711", "yes"))
    Path("raw/notes of Doe.txt").write_text("x")
    plan = build(config(ids="hashed", bag="patient"))
    plan.write()
    text = "\n".join(str(path) + path.read_text() for path in Path("results").rglob("*.json"))
    for name in ("Doe", "MRN", "slides/", "ct/0", "series0"):
        assert name not in text
    tables = {path.stem for path in Path("private/tile").glob("*.json")}
    assert tables == {job.key for job in plan.jobs if job.stage == "tile"}


@pytest.fixture
def adopted(cohort: Path) -> Path:
    """The cohort with features of eight slides, named like them, and of one that has no label."""
    Path("features/deep").mkdir(parents=True)
    for n in range(8):
        Path(f"features/deep/{n}.h5").write_bytes(b"numbers")
    Path("features/new.h5").write_bytes(b"numbers")
    label(*((image.replace("slides/", "deep/").removesuffix(".svs"), *rest) for image, *rest in eight_of_each()))
    return cohort


def test_features_take_the_place_of_raw_images_of_their_kind(adopted: Path) -> None:
    plan = build(config(slide__features="features"))
    assert by_kind({(job.stage, job.name) for job in plan.jobs}) == {
        "slide": {"adopt"} | LEARNING - {"explain"},
        "series": {"tile", "embed"} | LEARNING,
        "hub": {"weights"},
        "all": TABLES,
    }
    assert names(plan, "adopt") == ["slide-labelled-0000of0001", "slide-unlabelled-0000of0001"]
    assert [image.path for image in plan.images["slide"]] == [*(f"deep/{n}.h5" for n in range(8)), "new.h5"]
    assert plan.cohort.missing == []
    said = "9 raw images (slide) are left out: slide.features takes their place"
    assert [(item.path, item.reason) for item in plan.ignored] == [("raw", said)]
    assert by_kind(differing(build(config()), plan)).keys() == {"slide", "all"}  # the series are as they were
    (job,) = (job for job in plan.jobs if (job.stage, job.name) == ("adopt", "slide-labelled-0000of0001"))
    assert (job.slice["raw"], job.slice["upstream"]) == ("features", [])
    assert all(set(entry) == {"id", "kind", "identity"} for entry in job.slice["images"])
    (gate,) = (job for job in plan.jobs if (job.stage, job.name) == ("gate", "slide"))
    assert gate.slice["upstream"] == [job.receipt]
    named = {receipt for job in plan.jobs for receipt in job.slice["upstream"]} | set(plan.targets)
    assert {job.receipt for job in plan.jobs} == named


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (touch("features/deep/0.h5"), {"slide": {"adopt"} | LEARNING - {"explain"}, "all": TABLES}),
        (touch("features/new.h5"), {"slide": {"adopt", "predict"}, "all": TABLES}),
        (touch("raw/slides/0.svs"), {}),
    ],
)
def test_a_feature_file_redoes_what_reads_it(
    adopted: Path, change: Callable[[], None], redone: dict[str, set[str]]
) -> None:
    before = build(config(slide__features="features"))
    change()
    assert by_kind(differing(before, build(config(slide__features="features")))) == redone


@pytest.mark.parametrize("key", ["slide__mpp", "slide__backbone__model", "slide__tile", "slide__features_of"])
def test_settings_of_reading_decide_nothing_where_features_are_read(adopted: Path, key: str) -> None:
    value = {"slide__backbone__model": "resnet34", "slide__features_of": "folder"}.get(key, 99)
    before = build(config(slide__features="features"))
    changed = by_kind(differing(before, build(config(slide__features="features", **{key: value}))))
    assert changed == ({"slide": {"adopt"} | LEARNING - {"explain"}, "all": TABLES} if key.endswith("_of") else {})


def test_where_images_are_read_the_words_about_features_decide_nothing(cohort: Path) -> None:
    changed = by_kind(differing(build(config()), build(config(slide__features_of="folder"))))
    assert "tile" not in changed.get("slide", set())


def test_a_raised_version_adopts_anew(adopted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build(config(slide__features="features"))
    monkeypatch.setitem(plan_module.VERSIONS, "adopt", 99)
    changed = by_kind(differing(before, build(config(slide__features="features"))))
    assert changed == {"slide": {"adopt"} | LEARNING - {"explain"}, "all": TABLES}


def test_a_folder_of_features_is_an_image_with_its_files(adopted: Path) -> None:
    label(*(("deep", "P", ""),))
    plan = build(config(slide__features="features", slide__features_of="folder", ids="path"))
    (entry,) = (entry for job in plan.jobs if job.stage == "adopt" for entry in job.slice["images"])
    assert (entry["id"], entry["files"]) == ("deep", [f"deep/{n}.h5" for n in range(8)])
    assert [item.path for item in plan.ignored if item.path != "raw"] == ["new.h5"]


def test_hashed_features_show_no_name(adopted: Path) -> None:
    label(*((image, patient, "") for image, patient, _ in [("deep/0", "P0", "")]))
    plan = build(config(slide__features="features", ids="hashed"))
    told = json.dumps([{**job.slice, "raw": "", "private": ""} for job in plan.jobs])
    assert ".h5" not in told and "deep" not in told
    assert "(hidden)" in told
    tables = [read_json(Path("private/adopt") / f"{job.key}.json") for job in plan.jobs if job.stage == "adopt"]
    assert {row["path"] for table in tables for row in table.values()} == {
        *(f"deep/{n}.h5" for n in range(8)),
        "new.h5",
    }


def test_features_of_both_kinds_need_names_of_their_own(adopted: Path) -> None:
    with pytest.raises(ConfigError, match="features: 9 slides have the paths of series: put the features of each into"):
        build(config(slide__features="features", series__features="features"))


def test_features_that_are_being_copied_wait(adopted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(plan_module.time, "time", lambda: now + 20)
    plan = build(config(slide__features="features", settle_seconds=30))
    assert len([1 for image, _ in plan.waiting if image.path.endswith(".h5")]) == 9
    assert plan.images["slide"] == []


def test_a_table_of_labels_that_names_no_image_at_all_is_refused(cohort: Path) -> None:
    Path("labels.csv").write_text("image,patient,label\nother/1.svs,P1,a\nother/2.svs,P2,b\n")
    with pytest.raises(CohortError, match=r"labels.csv: none of its 2 rows names one of the \d+ images .*line 2 says "):
        build(config())
