"""Real slides and CT series, from raw files to embeddings and a prediction."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import zarr

from support.workspace import Workspace

SVS = "wsi/libvips__libvips/test/test-suite/images/CMU-1-Small-Region.svs"
CROP = "wsi/PingjunChen__pyslide/test/data/Slides/CropBreastSlide.tiff"
SMALL = "wsi/openslide__openslide-python/tests/fixtures/small.svs"
DICOM = "wsi/cytomine__cytomine/app-engine/src/test/resources/artifacts/images/image"
SERIES = {
    "GE": "ct_series/neurolabusc__dcm_qa_ct/In/GE",
    "S2010": "ct_series/neurolabusc__dcm_qa_ct/S21570/S2010",
    "TotalSegmentator": "ct_series/wasserth__TotalSegmentator/tests/reference_files/example_ct_dicom",
}
NOT_HU = "ct_series/Slicer__Slicer/Testing/Data/Input/CTHeadAxialDicom"
"""A head whose values begin at 0, of an unstated unit."""
GOLDEN_WINDOWS = {
    "GE": (0.181869, 0.144124, 0.206239),
    "S2010": (0.081304, 0.072400, 0.076923),
    "TotalSegmentator": (0.180233, 0.118819, 0.168511),
}
"""Means of the windows 40/80, 80/200 and 40/380 over the whole stack, published for these series."""
SLICES = {"GE": 28, "S2010": 28, "TotalSegmentator": 20}
WINDOWS = ((40, 80), (80, 200), (40, 380))


def window_means(folder: Path) -> list[float]:
    """Means of the windows over a folder of one series, with pydicom and numpy alone."""
    totals, pixels = np.zeros(3), 0
    for path in folder.iterdir():
        try:
            file = pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            continue
        if "PixelData" not in file:  # the licence and the DICOMDIR of the folder
            continue
        hounsfield = file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)
        for number, (centre, width) in enumerate(WINDOWS):
            totals[number] += np.clip((hounsfield - (centre - width / 2)) / width, 0, 1).sum()
        pixels += hounsfield.size
    return list(totals / pixels)


@pytest.fixture(scope="module")
def real(shared_data: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished run over the real images; the heads learn from copies of two of them, which says nothing."""
    work = Workspace(tmp_path_factory.mktemp("real") / "work", repository)
    raw = work.folder / "data" / "raw"
    (raw / "slides").mkdir(parents=True)
    for name in (SVS, CROP, SMALL):
        shutil.copy(shared_data / name, raw / "slides")
    shutil.copytree(shared_data / DICOM, raw / "slides" / "dicom")
    for name, folder in SERIES.items():
        shutil.copytree(shared_data / folder, raw / "ct" / name)
    shutil.copytree(shared_data / NOT_HU, raw / "ct" / "no HU")
    lines = ["image,patient,label,mpp", "slides/CropBreastSlide,C,,1.0"]
    for number in range(6):
        source, label = (("GE", "a"), ("S2010", "b"))[number % 2]
        shutil.copytree(raw / "ct" / source, raw / "copies" / f"{number}")
        lines.append(f"copies/{number},P{number},{label},")
    (work.folder / "data/labels.csv").write_text("\n".join(lines) + "\n")
    backbone = {"model": "test_resnet", "weights": "random", "input_size": 64}
    work.configure(
        classes=[],
        slide__mpp=1.0,
        slide__tile=128,
        slide__stride=128,
        slide__backbone=backbone,
        series__backbone=backbone,
    )
    work.run()
    return work


def store(work: Workspace, image: str, stage: str) -> zarr.Group:
    """The one store of an image."""
    (path,) = (work.folder / "results" / stage).glob(f"*/{image}/*.zarr")
    return zarr.open_group(path, mode="r")


def test_every_image_is_there_under_its_path(real: Workspace) -> None:
    rows = real.catalog()
    dicom = [image for image in rows if image.startswith("slides/dicom/")]
    assert len(dicom) == 1  # four files, one slide
    assert set(rows) - {image for image in rows if image.startswith("copies/")} == {
        "slides/CMU-1-Small-Region.svs",
        "slides/CropBreastSlide.tiff",
        "slides/small.svs",
        dicom[0],
        *(f"ct/{name}" for name in SERIES),
        "ct/no HU",
    }
    assert rows["ct/no HU"]["status"] == "failed"
    assert rows["ct/no HU"]["reason"].startswith("values do not look like Hounsfield units (0.0% of its pixels are air")
    assert rows["slides/small.svs"]["status"] == "empty"
    assert "fewer than one tile" in rows["slides/small.svs"]["reason"]
    assert {image for image, row in rows.items() if row["status"] != "done"} == {"slides/small.svs", "ct/no HU"}
    assert rows["slides/CropBreastSlide.tiff"]["mpp_source"] == "labels"


def test_the_same_slide_as_svs_and_as_dicom_has_the_same_extent(real: Workspace) -> None:
    (dicom,) = [image for image in real.catalog() if image.startswith("slides/dicom/")]
    # Halved in the decoder, 0.499 µm are 0.998, which is near enough to 1; what OpenSlide reads is resampled to 1.
    for image, mpp in (("slides/CMU-1-Small-Region.svs", 0.998), (dicom, 1.0)):
        found = store(real, image, "tile")
        assert found.attrs["properties"]["mpp"] == pytest.approx(mpp)
        assert list(found.attrs["extent"]) == pytest.approx([2220 * 0.499 / mpp, 2967 * 0.499 / mpp], abs=1)
        origins = np.asarray(found["origins"])
        assert len(origins) > 20
        assert (origins % 128 == 0).all()
        assert [tuple(origin) for origin in origins] == sorted((tuple(o) for o in origins), key=lambda o: (o[1], o[0]))
        assert np.asarray(store(real, image, "embed")["embeddings"]).shape[0] == len(origins)


@pytest.mark.parametrize("name", sorted(SERIES))
def test_series_have_their_slices_in_order_and_their_window_means(
    real: Workspace, shared_data: Path, name: str
) -> None:
    found = store(real, f"ct/{name}", "tile")
    volume = np.asarray(found["hu"]).astype(np.float64)
    assert len(volume) == SLICES[name] == int(real.catalog()[f"ct/{name}"]["instances"])
    z = found.attrs["properties"]["z_mm"]
    assert z == sorted(z)
    means = [np.clip((volume - (c - w / 2)) / w, 0, 1).mean() for c, w in WINDOWS]
    assert means == pytest.approx(window_means(shared_data / SERIES[name]), abs=1e-3)
    assert means == pytest.approx(GOLDEN_WINDOWS.get(name, means), abs=1e-3)
    assert np.isfinite(np.asarray(store(real, f"ct/{name}", "embed")["embeddings"])).all()


def test_positions_are_those_of_the_scanner(real: Workspace) -> None:
    z = store(real, "ct/GE", "tile").attrs["properties"]["z_mm"]
    assert (z[0], z[1], z[-1]) == pytest.approx((-33.6655, -29.6636, 110.4228), abs=1e-3)
    steps = np.diff(z)
    assert steps == pytest.approx([4.002] * 13 + [1.081] + [6.999] * 13, abs=2e-3)


def test_unlabelled_images_are_predicted_by_every_fold(real: Workspace) -> None:
    rows = list(csv.DictReader(real.result("predictions.csv").decode().splitlines()))
    ensemble = {row["bag"]: row for row in rows if row["of"] == "unlabelled"}
    assert set(ensemble) == {f"ct/{name}" for name in SERIES}
    for row in ensemble.values():
        low, mean, high = (float(row[name]) for name in ("p_b_low", "p_b", "p_b_high"))
        assert 0 <= low <= mean <= high <= 1


def test_an_implausible_mpp_asks_for_the_true_one(real: Workspace, tmp_path: Path) -> None:
    work = Workspace(tmp_path / "work", real.repository)
    (work.folder / "data/raw").mkdir(parents=True)
    shutil.copy(real.folder / "data/raw/slides/CropBreastSlide.tiff", work.folder / "data/raw")
    work.configure()
    work.run()
    row = work.catalog()["CropBreastSlide.tiff"]
    assert row["status"] == "failed"
    assert "mpp 264.583 is implausible" in row["reason"]
    assert "`mpp` column of labels.csv" in row["reason"]
