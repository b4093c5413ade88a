"""Real series and odd real files: what becomes of each, against pydicom alone and against published values."""

import csv
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.spatial import get_series_volume_positions
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images.elements import quiet_pydicom
from pipeline.images.series import Series
from pipeline.images.volume import read_volume
from pipeline.windows import window

GE = "neurolabusc__dcm_qa_ct/In/GE"
PHILIPS = "neurolabusc__dcm_qa_ct/S21570/S2010"
LOCALIZER = "neurolabusc__dcm_qa_ct/S21570/S1000"
CAPTURES = "neurolabusc__dcm_qa_ct/S21570/S4010"
BODY = "wasserth__TotalSegmentator/tests/reference_files/example_ct_dicom"
SLICER = "Slicer__Slicer/Testing/Data/Input/CTHeadAxialDicom"
TORCHIO = "fepegar__torchio/tests/image_data/dicom"
FOUR_D = "DIAGNijmegen__rse-grand-challenge/app/tests/cases_tests/resources/dicom"
PANIMG = "DIAGNijmegen__rse-panimg/tests/resources"

WINDOWS = ((40, 80), (80, 200), (40, 380), (600, 2800))
PUBLISHED = {
    GE: (28, -548.8229, [0.181869, 0.144124, 0.206239, 0.130630]),
    PHILIPS: (28, -830.6064, [0.081304, 0.072400, 0.076923, 0.044412]),
    BODY: (20, -624.1259, [0.180233, 0.118819, 0.168511, 0.105802]),
}
"""Slices, mean HU when clipped at -1024, and means of the plain windows."""

ALL_OF_IT = {"min_slices": 1, "hu_check": "note", "max_oblique_deg": 90.0}


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


@cache
def read(folder: Path, **settings: Any) -> tuple[NDArray[np.int16], dict[str, Any]]:
    return read_volume(files_of(folder), SeriesSettings(**settings))


def line(folder: Path, **settings: Any) -> str:
    """Why a folder is refused."""
    with pytest.raises(ImageError) as caught:
        read_volume(files_of(folder), SeriesSettings(**settings))
    message = str(caught.value)
    assert message and "\n" not in message and str(folder) not in message
    return message


def computed(path: Path) -> NDArray[np.int16]:
    """HU (frame, y, x) of a file by pydicom and the words of the standard."""
    with quiet_pydicom():
        dataset = dcmread(path)
        stored = pixel_array(dataset)
        signed = dataset.PixelRepresentation == 1
        groups = [Dataset()]
        if "PerFrameFunctionalGroupsSequence" in dataset:
            groups = list(dataset.PerFrameFunctionalGroupsSequence)
        frames = stored.reshape(len(groups), *stored.shape[-2:])
        volume = []
        for own, values in zip(groups, frames, strict=True):
            rescale = dataset
            for level in (dataset.get("SharedFunctionalGroupsSequence", [Dataset()])[0], own):
                if "PixelValueTransformationSequence" in level:
                    rescale = level.PixelValueTransformationSequence[0]
            hounsfield = np.rint(values * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept))
            if "PixelPaddingValue" in dataset:
                padding = np.array(dataset.PixelPaddingValue % 65536, "u2")
                hounsfield[values == (padding.view("i2") if signed else padding)] = -1024
            volume.append(np.clip(hounsfield, -1024, 3071).astype(np.int16))
    return np.stack(volume)


# Whole series


@pytest.mark.parametrize("folder", PUBLISHED)
def test_real_series_have_the_published_values(shared_data, folder):
    slices, mean, means = PUBLISHED[folder]
    volume, properties = read(shared_data / "ct_series" / folder)
    assert volume.shape == (slices, 512, 512)
    assert volume.mean() == pytest.approx(mean, abs=1e-3)
    assert [window(volume, shown).mean() for shown in WINDOWS] == pytest.approx(means, abs=1e-6)
    assert not properties["qc"]["twelve_bit_fix"] and properties["n_missing"] == 0


@pytest.mark.parametrize("folder", PUBLISHED)
def test_tiles_of_real_series_have_the_means_of_their_windows(shared_data, folder):
    """To half a step of 255, of which rounding leaves a thousandth of one in the mean of so many pixels."""
    volume, properties = read(shared_data / "ct_series" / folder)
    series = Series(volume, SeriesSettings(), properties)
    origins = np.array([[0, 0, z] for z in range(len(volume))], dtype=np.int32)
    pixels, _ = series.read(origins, series.tile_size)
    means = [pixels[..., channel].mean() / 255 for channel in range(3)]
    assert means == pytest.approx(PUBLISHED[folder][2][:3], abs=1e-4)


@pytest.mark.parametrize("folder", [GE, PHILIPS, BODY, SLICER, TORCHIO])
def test_real_series_are_what_pydicom_reads_in_the_order_of_their_places(shared_data, folder):
    files = [path for path in files_of(shared_data / "ct_series" / folder) if path.name != "DIRFILE"]
    volume, properties = read(shared_data / "ct_series" / folder, **ALL_OF_IT)
    places = []
    for path in files:
        dataset = dcmread(path, stop_before_pixels=True)
        rows, columns = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
        places.append(float(np.cross(rows, columns) @ np.array(dataset.ImagePositionPatient, dtype=float)))
    order = np.argsort(places)
    assert properties["z_mm"] == pytest.approx([places[index] for index in order], abs=1e-3)
    assert np.array_equal(volume, np.concatenate([computed(files[index]) for index in order]))


def test_the_tilted_head_has_its_order_tilt_and_gaps(shared_data):
    _, properties = read(shared_data / "ct_series" / GE)
    z = properties["z_mm"]
    assert (z[0], z[1], z[-2], z[-1]) == pytest.approx((-33.6655, -29.6636, 103.4242, 110.4228), abs=1e-3)
    assert properties["gap_mm"] == pytest.approx([4.002] * 13 + [1.081] + [6.999] * 13, abs=1e-3)
    assert properties["tilt_deg"] == pytest.approx(18.5, abs=0.05)
    assert properties["tilt_tag_deg"] == 18.5
    assert properties["normal"] == pytest.approx([0, 0.3173, 0.94832], abs=1e-5)
    assert (properties["thicknesses"], properties["regular"]) == ([4.0, 7.0], False)
    assert properties["instance_number"] == list(range(1, 29))
    assert properties["notes"] == [
        "gaps of 1.081 to 6.999 mm",
        "slice thickness 4 and 7 mm",
        "gantry tilt 18.5 degrees",
    ]
    assert (properties["qc"]["padding"], properties["qc"]["bits"]) == ("-1500", "16 of 16 signed")


def test_the_phantom_is_regular(shared_data):
    folder = shared_data / "ct_series" / PHILIPS
    _, properties = read(folder)
    assert properties["z_mm"] == pytest.approx([696.21 + 5 * k for k in range(28)], abs=1e-3)
    assert (properties["regular"], properties["tilt_deg"], properties["qc"]["maker"]) == (True, 0, "PHILIPS")
    assert properties["qc"]["excluded"] == {"a DICOMDIR": 1}
    datasets = [dcmread(path, stop_before_pixels=True) for path in files_of(folder)]
    slices = [dataset for dataset in datasets if "Rows" in dataset]
    spacing, positions = get_series_volume_positions(slices)
    assert spacing == pytest.approx(5) and positions is not None
    oracle = np.argsort(positions)[:: 1 if slices[positions.index(0)].ImagePositionPatient[2] < 700 else -1]
    assert [int(slices[index].InstanceNumber) for index in oracle] == properties["instance_number"]


def test_the_body_without_classes_and_ids_is_read(shared_data):
    _, properties = read(shared_data / "ct_series" / BODY)
    assert properties["thicknesses"] == [3.0] and properties["gap_mm"] == pytest.approx([2.0] * 19)
    assert properties["qc"]["decoder"].startswith("pylibjpeg-openjpeg ")
    assert "SOPClassUID" in properties["qc"]["missing_attributes"]
    assert properties["qc"]["tissue_median_hu"] == pytest.approx(63, abs=1)
    assert len(properties["notes"]) == 1 and properties["notes"][0].startswith("the median of its tissue is 6")


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        (LOCALIZER, "no CT slices (1 a DICOMDIR, 1 localizer): leave this folder out"),
        (CAPTURES, "no CT slices (1 dose sheet, 1 localizer): leave this folder out"),
        (FOUR_D, "4 slices in the largest of 19 CT series, fewer than min_slices 10: lower series.min_slices, or "
         "leave this series out"),
        (f"{PANIMG}/dicom_window_level", "2 slices, fewer than min_slices 10: lower series.min_slices, or leave this "
         "series out"),
        (f"{PANIMG}/dicom_slope", "1 slices, fewer than min_slices 10: lower series.min_slices, or leave this series "
         "out"),
        (f"{PANIMG}/dicom_intercept", "1 slices, fewer than min_slices 10: lower series.min_slices, or leave this "
         "series out"),
        (SLICER, "values do not look like Hounsfield units (0.0% of its pixels are air and 46.6% are tissue; usual are "
         "more than 5 % and 1.5 %): check its rescaling, or set series.hu_check to note"),
        (TORCHIO, "values do not look like Hounsfield units (0.0% of its pixels are air and 49.4% are tissue; usual "
         "are more than 5 % and 1.5 %): check its rescaling, or set series.hu_check to note"),
    ],
)  # fmt: skip
def test_other_real_folders_are_refused_with_what_was_found(shared_data, folder, found):
    assert line(shared_data / "ct_series" / folder) == found


def test_every_real_folder_has_its_test(shared_data):
    root = shared_data / "ct_series"
    folders = {str(path.parent.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    slopes = {f"{PANIMG}/dicom_{name}" for name in ("window_level", "slope", "intercept")}
    assert folders == {*PUBLISHED, LOCALIZER, CAPTURES, SLICER, TORCHIO, FOUR_D} | slopes


def test_a_head_in_an_old_format_is_read_in_the_order_of_its_places(shared_data):
    """93 slices 1.5 mm apart, whose files are numbered CTHead1 to CTHead93: by name, 10 would follow 1."""
    _, properties = read(shared_data / "ct_series" / SLICER, **ALL_OF_IT)
    assert properties["z_mm"] == [1.5 * number for number in range(93)]
    assert "rescale type US: the unit of its values is not stated, taken as HU" in properties["notes"]


def test_nineteen_series_of_one_number_need_a_choice(shared_data):
    found = line(shared_data / "ct_series" / FOUR_D, min_slices=4)
    assert found.startswith(
        "19 CT series of 4 slices are equally good: name one by its SeriesNumber or SeriesInstanceUID in the column"
    )


@pytest.mark.parametrize(
    ("name", "rescale"), [("slope", "slope 1.001 intercept 0"), ("intercept", "slope 1 intercept 0.01")]
)
def test_a_rescale_that_rounds_away_is_recorded(shared_data, name, rescale):
    volume, properties = read(shared_data / "ct_series" / PANIMG / f"dicom_{name}", **ALL_OF_IT)
    assert volume.shape == (1, 2, 3) and not volume.any()
    assert properties["qc"]["rescale"] == rescale


def test_series_mixed_in_one_folder_are_told_apart(shared_data, tmp_path):
    """Of a head, a phantom, a localizer and captures, all of one study or none: two patients are refused first."""
    for folder in (PHILIPS, LOCALIZER, CAPTURES):
        for path in files_of(shared_data / "ct_series" / folder):
            shutil.copy(path, tmp_path / f"{len(list(tmp_path.iterdir()))}-{path.name}.dcm")
    volume, properties = read_volume(files_of(tmp_path), SeriesSettings())
    assert np.array_equal(volume, read(shared_data / "ct_series" / PHILIPS)[0])
    assert properties["qc"]["excluded"] == {"a DICOMDIR": 2, "dose sheet": 1, "localizer": 2}
    for path in files_of(shared_data / "ct_series" / GE):
        shutil.copy(path, tmp_path / f"GE-{path.name}")
    assert line(tmp_path).startswith("slices of 2 patients in one folder: ")


@pytest.mark.parametrize("folder", [GE, PHILIPS, BODY])
def test_real_headers_are_not_told(shared_data, folder):
    _, properties = read(shared_data / "ct_series" / folder)
    told = json.dumps(properties)
    with quiet_pydicom():
        dataset = dcmread(files_of(shared_data / "ct_series" / folder)[0], stop_before_pixels=True)
        for element in dataset.iterall():
            if element.VR in ("UI", "PN", "LO", "LT", "ST", "DA") and len(str(element.value)) > 7:
                assert str(element.value) not in told


# Odd files, one by one

REFUSED = {
    "CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm": "cannot be decoded by any package",
    "CTImage.dcm_JPEGProcess6_8TransferSyntax_1.2.840.10008.1.2.4.53.dcm": "cannot be decoded by any package",
    "CTImage.dcm_JPEGProcess2_4TransferSyntax_1.2.840.10008.1.2.4.51.dcm": "install pylibjpeg-libjpeg (GPL-3.0",
    "CT0012.fragmented_no_bot_jpeg_baseline.51.dcm": "install pylibjpeg-libjpeg (GPL-3.0",
    "CT-MONO2-16-ankle": "1 secondary capture",
    "GH178.dcm": "1 screen save",
    "GH223.dcm": "1 localizer",
    "CT_JPEG70.dcm": "1 localizer",
    "CT_Implicit_Little_Headless_Retired.dcm": "none of 1 CT slices states its position",
    "6293": "1 localizer",
    "6924": "1 localizer",
}
"""CT files that are refused, by name, and what is said. Those without pixels or of which nobody makes sense beside."""


def test_every_odd_file_is_read_as_pydicom_reads_it_or_refused_in_one_line(shared_data):
    with (shared_data / "VERIFY_DICOM.tsv").open(newline="") as table:
        known = {row["file"]: row for row in csv.DictReader(table, delimiter="\t")}
    outcomes = {"read": 0, "refused": 0}
    for path in sorted(path for path in (shared_data / "ct_odd").rglob("*") if path.is_file()):
        row = known.get(str(path.relative_to(shared_data)))
        ct = row is not None and row["Modality"] == "CT"
        try:
            volume, properties = read_volume([path], SeriesSettings(**ALL_OF_IT))
        except ImageError as error:
            message = str(error)
            assert message and "\n" not in message and path.name not in message and str(shared_data) not in message
            if ct and "TINY_ALPHA" not in path.parts:
                assert REFUSED[path.name] in message, path.name
            outcomes["refused"] += 1
            continue
        assert row is not None and ct and row["decode"] == "ok" and path.name not in REFUSED, path.name
        expected = computed(path)
        order = np.array(properties["instance_number"]) - 1 if len(expected) > 1 else [0]
        assert np.array_equal(volume, expected[order]), path.name
        outcomes["read"] += 1
    assert outcomes["read"] > 50 and outcomes["refused"] > 50


def test_the_lossless_ways_to_write_one_slice_give_one_volume(shared_data):
    root = shared_data / "ct_odd/cornerstonejs__cornerstoneWADOImageLoader/examples/test-images"
    lossless = ("LittleEndian", "BigEndian", "Deflated", "RLE", "JPEGProcess14", "JPEGLSLossless", "JPEG2000Lossless")
    volumes, lossy = [], []
    for path in files_of(root):
        kind = path.name.split("_")[1]
        if kind.startswith(lossless):
            volumes.append(read_volume([path], SeriesSettings(**ALL_OF_IT))[0])
        elif kind.startswith(("JPEG2000Transfer", "JPEGLSLossy", "JPEGProcess1Transfer")):
            lossy.append(read_volume([path], SeriesSettings(**ALL_OF_IT))[0])
    assert len(volumes) == 9 and all(np.array_equal(volume, volumes[0]) for volume in volumes)
    assert (volumes[0].min(), volumes[0].max()) == (-1024, 1378)
    assert len(lossy) == 3 and all(0 < np.abs(volume - volumes[0]).mean() < 20 for volume in lossy)
