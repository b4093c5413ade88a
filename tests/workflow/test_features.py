"""A workflow that starts from features that exist already, and what a second run of it does."""

import csv
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.store import Store, file_digest, read_json
from support.workspace import Workspace

SLIDES = 9


def values(seed: int, positive: bool, width: int = 6) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Five tiles, shifted where the slide is a positive one."""
    return np.random.default_rng(seed).normal(2.0 * positive, 1, (5, width)).astype(np.float32)


def write_h5(path: Path, seed: int, positive: bool, width: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = values(seed, positive, width)
        file["coords"] = np.stack([np.arange(5) * 512, np.full(5, seed)], axis=1)
        file["coords"].attrs["patch_size_level0"] = 512


@pytest.fixture
def slides(empty: Workspace) -> Workspace:
    """CLAM's layout of nine labelled slides and one unlabelled one, a bad file, and no raw image at all."""
    folder = empty.folder / "features"
    lines = ["case_id,slide_id,label"]
    for number in range(SLIDES):
        write_h5(folder / f"h5_files/slide_{number}.h5", number, bool(number % 2))
        lines.append(f"P{number},slide_{number},{('normal', 'lesion')[number % 2]}")
    (folder / "pt_files").mkdir()
    (folder / "pt_files/slide_0.pt").write_bytes(b"the same in another form, which nobody opens")
    np.save(folder / "new.npy", values(99, True).astype(np.float16))
    (folder / "bad.h5").write_bytes(b"no HDF5")
    (empty.folder / "data/labels.csv").write_text("\n".join(lines) + "\n")
    empty.configure(slide__features="features", slide__images_per_shard=4)
    return empty


def adopted(work: Workspace) -> dict[str, tuple[int, int]]:
    """Every adopted store with the inode and the modification time of its first file."""
    found = sorted((work.folder / "results/adopt").rglob("*.zarr/zarr.json"))
    return {str(path.parent): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_features_alone_are_enough_for_a_report(slides: Workspace) -> None:
    work = slides
    jobs = work.jobs()
    # nine labelled slides at four a shard are four shards, the two others one
    assert (jobs["adopt"], jobs["train"]) == (5, 3)
    assert not {"tile", "embed", "explain", "weights"} & jobs.keys()
    said = work.pipeline("check")
    assert "slide: 11 images, 9 labelled (lesion: 4, normal: 5) from 9 patients" in said
    assert "ignored: 1: pt_files/slide_0.pt is another form of an image whose .h5 file is taken" in said
    work.run()

    catalog = work.catalog()
    assert {image: row["status"] for image, row in catalog.items()} == {
        **{f"h5_files/slide_{n}.h5": "done" for n in range(SLIDES)}, "new.npy": "done", "bad.h5": "failed",
    }  # fmt: skip
    assert catalog["bad.h5"]["reason"] == "cannot be read as HDF5 (OSError): is the file whole?"
    assert (catalog["new.npy"]["instances"], catalog["new.npy"]["stage"]) == ("5", "adopt")
    row = catalog["h5_files/slide_3.h5"]
    receipts = [read_json(path) for path in (work.folder / "results/receipts/adopt").glob("*.json")]
    key = next(found["key"] for receipt in receipts for found in receipt["rows"] if found.get("store") == row["store"])
    store = Store(work.folder / row["store"], key)
    np.testing.assert_array_equal(store.read("embeddings"), values(3, True))
    assert store.read("origins").tolist() == [[n * 512, 3] for n in range(5)]
    assert store.read("status").tolist() == [0] * 5
    told = store.attributes
    assert (told["instances"], told["features"], told["source_format"]) == (5, 6, ".h5")
    assert (told["origins_unit"], told["size"]) == ("level0_pixels", [512.0, 512.0])
    assert told["sha256"] == file_digest(work.folder / "features/h5_files/slide_3.h5")

    metrics = list(csv.DictReader(work.result("metrics.csv").decode().splitlines()))
    assert [(line["modality"], line["bags"]) for line in metrics] == [("slide", "9")]
    predictions = list(csv.DictReader(work.result("predictions.csv").decode().splitlines()))
    assert {line["bag"] for line in predictions if line["of"] == "unlabelled"} == {"new.npy"}
    page = " ".join(work.result("report.html").decode().split())
    assert "features that existed already were read: which model made them, of what, is not known here" in page
    assert "No picture: features that existed already were read, without the pixels they are of." in page
    assert "slide.features_of" in page and "slide.backbone" not in page and "RANDOM" not in page
    assert "slide: the backbone" not in work.pipeline("summary")
    assert "10 stores read, 0 damaged" in work.pipeline("verify")
    assert "0 files and stores that the present plan does not name" in work.pipeline("gc")
    assert "Nothing to be done" in work.run("-n")

    stores, weights = adopted(work), work.weights()
    os.utime(work.folder / "features/h5_files/slide_3.h5")
    assert work.jobs()["adopt"] == 1
    work.run()
    assert (adopted(work), work.weights()) == (stores, weights)

    write_h5(work.folder / "features/h5_files/slide_3.h5", 300, True)
    assert work.jobs()["adopt"] == 1
    work.run()
    assert stores.items() <= adopted(work).items()
    assert len(adopted(work)) == len(stores) + 1

    work.pipeline("export", "out", "--format", "npz")
    with np.load(work.folder / "out/h5_files/slide_3.npz") as file:
        np.testing.assert_array_equal(file["features"], values(300, True))
    assert "1 images will be tried again" in work.pipeline("retry")


def test_features_of_another_width_stop_before_training_and_say_which(slides: Workspace) -> None:
    write_h5(slides.folder / "features/h5_files/slide_7.h5", 7, True, width=8)
    text = slides.run("--until", "gate", fails=True)
    said = (
        "slide: h5_files/slide_7.h5 has 8 features where 6 are usual (1 images differ): bring features of one backbone"
    )
    assert said in slides.logs("gate")
    assert "Traceback" not in slides.logs("gate") + text
    labels = slides.folder / "data/labels.csv"
    lines = labels.read_text().splitlines()
    lines[0] += ",exclude"
    lines[8] += ",another backbone"
    labels.write_text("\n".join(lines) + "\n")
    slides.run("--until", "gate")
    assert "slide: 8 of 8 labelled images can be used" in slides.logs("gate")


def test_adopted_slides_and_raw_series_learn_side_by_side(work: Workspace) -> None:
    """With hashed names: of none of both is anything to be seen."""
    for number in range(6):
        write_h5(work.folder / f"features/Doe_{number}.h5", number, bool(number % 2))
    (work.folder / "features/Doe_bad.h5").write_bytes(b"no HDF5")
    with (work.folder / "data/labels.csv").open("a") as file:
        file.writelines(f"Doe_{n},P{n},{('normal', 'lesion')[n % 2]}\n" for n in range(6))
    work.configure(slide__features="features", series__images_per_shard=4, ids="hashed")
    jobs = work.jobs()
    assert (jobs["adopt"], jobs["train"], jobs["explain"]) == (2, 6, 1)  # pictures of the series alone
    work.run()
    metrics = list(csv.DictReader(work.result("metrics.csv").decode().splitlines()))
    assert {line["modality"] for line in metrics} == {"slide", "series"}
    statuses = [row["status"] for row in work.catalog().values() if row["kind"] == "slide"]
    assert sorted(statuses) == ["done"] * 6 + ["failed"]
    assert "passed over: 1 × 2 raw images (slide) are left out: slide.features takes their place" in work.logs(
        "catalog"
    )
    shown = [work.folder / "results" / name for name in ("catalog.tsv", "report.html", "predictions.csv", "splits.csv")]
    shown += [
        path for folder in ("logs", "results/adopt", "results/receipts") for path in (work.folder / folder).rglob("*")
    ]
    for path in shown:
        assert "Doe_" not in path.name
        assert not path.is_file() or b"Doe_" not in path.read_bytes()
