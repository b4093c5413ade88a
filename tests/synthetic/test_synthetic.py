"""The synthetic cohort: what is written, that it is the same every time, and that it is as hard as it should be."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pydicom
import pytest
import yaml
from numpy.typing import NDArray

from pipeline.config import load_config
from pipeline.synthetic import Member, plan_members, write_cohort
from pipeline.synthetic.probe import probe
from pipeline.synthetic.pyramid import write_pyramid
from pipeline.synthetic.series import render_series
from pipeline.synthetic.slides import lesion_tiles

WINDOWS = ((40, 80), (80, 200), (40, 380))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled, one broken and one unlabelled image of each kind."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, slides=5, series=5, seed=0, unlabelled=1, broken=1)
    return folder


def rows(folder: Path, kind: str) -> list[dict[str, str]]:
    """Rows of readable images of one kind."""
    with (folder / "data" / "labels.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["image"].startswith(kind) and "broken" not in row["image"]]


def truth(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = json.loads((folder / "data" / "truth.json").read_text())
    return found


def read_tiles(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Tiles of 128 pixels of which a quarter or more is tissue, and their origins, x first."""
    with openslide.OpenSlide(path) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    count = len(pixels) // 128
    tiles = pixels.reshape(count, 128, count, 128, 3).swapaxes(1, 2).reshape(-1, 128, 128, 3)
    origins = np.array([(x * 128, y * 128) for y in range(count) for x in range(count)], dtype=np.int32)
    red, green, blue = np.moveaxis(tiles, 3, 0)
    colour = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    tissue = (colour > 20).mean(axis=(1, 2)) >= 0.25
    return tiles[tissue], origins[tissue]


def read_hu(folder: Path) -> NDArray[np.float64]:
    """HU (slice, row, column), from the lowest position up."""
    files = sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files])


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_cohort(tmp_path / name, slides=1, series=2, seed=seed, unlabelled=0, broken=0)
    first, second, other = (digests(tmp_path / name) for name in "abc")
    assert first == second
    pixels = {name for name in first if name.endswith((".tiff", ".dcm"))}
    assert len(pixels) > 50
    assert not any(first[name] == other.get(name) for name in pixels)


def test_a_slide_opens_at_half_a_micrometre_with_halved_levels(cohort: Path) -> None:
    with openslide.OpenSlide(cohort / "data/raw" / rows(cohort, "slides/")[0]["image"]) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5, abs=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5, abs=1e-6)
        assert slide.level_dimensions == ((2048, 2048), (1024, 1024), (512, 512))


def test_a_pyramid_gives_back_its_colours_up_to_jpeg_also_beyond_whole_tiles(tmp_path: Path) -> None:
    pixels = np.empty((300, 500, 3), dtype=np.uint8)
    pixels[:, :250], pixels[:, 250:] = (200, 60, 120), (240, 238, 241)
    write_pyramid(tmp_path / "two.tiff", pixels, mpp=0.25, levels=2)
    with openslide.OpenSlide(tmp_path / "two.tiff") as slide:
        assert slide.level_dimensions == ((500, 300), (250, 150))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        left = np.asarray(slide.read_region((20, 260), 0, (40, 40)))[..., :3]
        right = np.asarray(slide.read_region((440, 260), 1, (20, 20)))[..., :3]
    assert np.abs(left.astype(int) - (200, 60, 120)).max() <= 4
    assert np.abs(right.astype(int) - (240, 238, 241)).max() <= 4


def test_enough_patients_labels_unlabelled_and_broken_images() -> None:
    expected_patients = {"slide": 18, "series": 20}
    for kind, patients in expected_patients.items():
        members = list(plan_members(kind, 28, seed=0, unlabelled=3, broken=1))
        healthy = [m for m in members if m.label is not None and not m.broken]
        assert Counter(m.label for m in healthy) == {"normal": 12, "lesion": 12}
        assert len({m.patient for m in healthy}) == patients
        assert [m.broken for m in members].count(True) == 1
        assert [m.label for m in members].count(None) == 3
        assert len({m.path for m in members}) == 28


def test_images_of_one_patient_have_one_label_and_no_patient_has_both_kinds() -> None:
    members: list[Member] = [m for kind in ("slide", "series") for m in plan_members(kind, 28, 1, 3, 1)]
    labels: dict[str, set[tuple[str | None, str]]] = {}
    for member in members:
        labels.setdefault(member.patient, set()).add((member.label, member.path.split("/")[0]))
    assert all(len(found) == 1 for found in labels.values())


def test_labels_have_three_columns_and_rows_for_labelled_images_only(cohort: Path) -> None:
    lines = (cohort / "data/labels.csv").read_text().splitlines()
    assert lines[0] == "image,patient,label"
    assert len(lines) == 1 + 4 + 4
    assert all((cohort / "data/raw" / line.split(",")[0]).exists() for line in lines[1:])
    assert len(list((cohort / "data/raw/slides").iterdir())) == 5
    assert len(list((cohort / "data/raw/ct").iterdir())) == 5
    assert sorted(truth(cohort)) == sorted(line.split(",")[0] for line in lines[1:])


def test_the_config_is_accepted_and_says_it_is_synthetic(cohort: Path) -> None:
    text = (cohort / "config.yaml").read_text()
    assert text.startswith("# A synthetic experiment")
    config = load_config(yaml.safe_load(text))
    assert (config.slide.mpp, config.slide.tile, config.slide.stride, config.split.folds) == (0.5, 128, 128, 4)
    assert config.slide.backbone.weights == config.series.backbone.weights == "random"


def test_a_tile_shows_a_lesion_when_a_quarter_of_it_lies_in_a_rectangle() -> None:
    origins = np.array([[0, 0], [100, 0], [0, 100], [100, 100]], dtype=np.int32)
    box = {"x": 75, "y": 0, "width": 100, "height": 120}  # covers 25, 75, 5 and 15 % of the four tiles
    assert lesion_tiles(origins, 100, [box]).tolist() == [True, True, False, False]
    assert not lesion_tiles(origins, 100, []).any()


def test_lesions_are_one_to_ten_percent_of_a_diseased_slide_and_absent_from_normal_ones(cohort: Path) -> None:
    for row in rows(cohort, "slides/"):
        _, origins = read_tiles(cohort / "data/raw" / row["image"])
        assert 75 <= len(origins) <= 150
        share = lesion_tiles(origins, 128, truth(cohort)[row["image"]]).mean()
        assert 0.01 <= share <= 0.10 if row["label"] == "lesion" else share == 0


def test_lesions_are_one_to_ten_percent_of_a_diseased_series_and_absent_from_normal_ones() -> None:
    for seed in range(12):
        volume, lesion = render_series(np.random.default_rng(seed), 0.08 + 0.02 * seed / 11)
        assert 0.01 <= len(lesion) / len(volume) <= 0.10
        assert 0 <= min(lesion) <= max(lesion) < len(volume)
    assert render_series(np.random.default_rng(0), 0.0)[1] == []


def test_a_series_reads_as_a_head_in_hounsfield_units(cohort: Path) -> None:
    row = next(row for row in rows(cohort, "ct/") if row["label"] == "normal")
    files = [pydicom.dcmread(file) for file in sorted((cohort / "data/raw" / row["image"]).iterdir())]
    assert {file.file_meta.TransferSyntaxUID.name for file in files} == {"Explicit VR Little Endian"}
    assert {file.SOPClassUID.name for file in files} == {"CT Image Storage"}
    assert {(str(file.PatientName), file.PatientID == row["patient"]) for file in files} == {("", True)}
    assert row["patient"].startswith("SYN-")
    heights = [float(file.ImagePositionPatient[2]) for file in files]
    assert heights != sorted(heights)  # names are in no order of position
    assert set(np.diff(sorted(heights))) == {5.0}
    hu = read_hu(cohort / "data/raw" / row["image"])
    assert 24 <= len(hu) <= 32
    assert hu.shape[1:] == (128, 128)
    assert np.median(hu[:, :8, :8]) == pytest.approx(-1000, abs=3)
    assert np.median(hu[len(hu) // 2, 50:78, 30:40]) == pytest.approx(34, abs=8)  # brain
    assert 950 < np.percentile(hu, 99) < 1050  # skull
    assert (hu[-2] > 500).sum() < 0.6 * (hu[len(hu) // 2] > 500).sum()  # the head is smaller at the top


def test_a_haemorrhage_is_bright_on_its_slices_and_not_beside_them(cohort: Path) -> None:
    row = next(row for row in rows(cohort, "ct/") if row["label"] == "lesion")
    hu, lesion = read_hu(cohort / "data/raw" / row["image"]), truth(cohort)[row["image"]]
    bright = ((hu > 60) & (hu < 90)).sum(axis=(1, 2))
    assert bright[lesion].min() > 2 * bright[[lesion[0] - 1, lesion[-1] + 1]].max()


def test_the_broken_images_cannot_be_read(cohort: Path) -> None:
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(cohort / "data/raw/slides/broken.tiff")
    file = next((cohort / "data/raw/ct/broken").iterdir())
    with pytest.raises((ValueError, AttributeError, EOFError)):
        _ = pydicom.dcmread(file).pixel_array


def test_the_probe_is_one_on_separable_rows_and_about_half_on_noise() -> None:
    rng = np.random.default_rng(0)
    labels, patients = np.arange(200) % 2, np.arange(200) // 4
    noise = rng.normal(size=(200, 5))
    assert probe(noise + 8 * labels[:, None], labels, patients) == pytest.approx(1.0)
    assert 0.35 < probe(noise, labels, patients) < 0.65


def test_the_probe_never_trains_on_the_patient_it_is_tested_on() -> None:
    """Features that name the patient, and a label that the patient's features alone cannot tell, are worth nothing."""
    patients = np.repeat(np.arange(40), 5)
    labels = np.random.default_rng(1).permutation(np.arange(40) % 2)[patients]
    assert probe(np.eye(40)[patients], labels, patients) < 0.6


@pytest.mark.slow
def test_instances_are_separable_and_means_of_bags_only_partly(tmp_path: Path) -> None:
    """With random weights: a linear model finds lesion instances well, and diseased bags by their means badly."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    write_cohort(tmp_path, seed=0)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 60e6
    torch.manual_seed(0)
    network = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = ((torch.from_numpy(pixels).float() / 255 - mean) / deviation).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return np.concatenate([network(part).numpy() for part in batch.split(64)])

    for kind in ("slides/", "ct/"):
        embeddings, instance_labels = [], []
        for row in rows(tmp_path, kind):
            path, lesions = tmp_path / "data/raw" / row["image"], truth(tmp_path)[row["image"]]
            if kind == "slides/":
                pixels, origins = read_tiles(path)
                lesion = lesion_tiles(origins, 128, lesions)
            else:
                hu = read_hu(path)
                shown = [((hu - centre) / width + 0.5).clip(0, 1) * 255 for centre, width in WINDOWS]
                pixels = np.stack(shown, axis=-1).astype(np.uint8)
                lesion = np.isin(np.arange(len(hu)), lesions)
            assert lesion.any() == (row["label"] == "lesion")
            assert lesion.mean() <= 0.10
            embeddings.append(embed(pixels))
            instance_labels.append(lesion)
        patients = np.array([row["patient"] for row in rows(tmp_path, kind)])
        bags = np.array([row["label"] == "lesion" for row in rows(tmp_path, kind)]).astype(int)
        lengths = [len(lesion) for lesion in instance_labels]
        instances = probe(
            np.concatenate(embeddings),
            np.concatenate(instance_labels).astype(int),
            np.repeat(patients, lengths),
            repeats=1,
        )
        assert instances > 0.8
        assert 0.55 < probe(np.stack([e.mean(axis=0) for e in embeddings]), bags, patients) < 0.85
