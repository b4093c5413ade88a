"""CT series: which files, in which order, in which units, through which windows."""

import logging
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.uid import JPEG2000Lossless, JPEGLossless, JPEGLSLossless

from pipeline.config import SeriesSettings
from pipeline.errors import ImageError
from pipeline.images.series import Series, window_table

SETTINGS = SeriesSettings(min_slices=1)


@pytest.fixture
def read(tmp_path):
    return lambda settings=SETTINGS: Series.from_dicom(tmp_path / "series", settings)


def hounsfield(series: Series) -> list[int]:
    """The HU of each slice's first pixel."""
    return series.arrays()["hu"][:, 0, 0].tolist()


# Windows


def test_windows_give_the_values_of_the_published_formula():
    """255 * clip((HU - (centre - width / 2)) / width, 0, 1), rounded half to even, by hand."""
    table = window_table(((40, 80), (80, 200), (40, 380)))
    assert table.shape == (4096, 3) and table.dtype == np.uint8
    hu = [-1000, -20, 0, 20, 30, 39, 40, 60, 79, 80, 100, 180, 230, 1000, 2000]
    shown = table[np.array(hu) + 1024].T.tolist()
    assert shown[0] == [0, 0, 0, 64, 96, 124, 128, 191, 252, 255, 255, 255, 255, 255, 255]
    assert shown[1] == [0, 0, 26, 51, 64, 75, 76, 102, 126, 128, 153, 255, 255, 255, 255]
    assert shown[2] == [0, 87, 101, 114, 121, 127, 128, 141, 154, 154, 168, 221, 255, 255, 255]


def test_windows_of_bone_and_stroke():
    table = window_table(((600, 2800), (40, 40), (30, 30)))
    assert table[np.array([-1024, 0, 30, 230, 1000, 3071]) + 1024].T.tolist() == [
        [0, 73, 76, 94, 164, 255],
        [0, 0, 64, 255, 255, 255],
        [0, 0, 128, 255, 255, 255],
    ]


def test_a_tile_shows_the_three_windows_as_channels():
    volume = np.zeros((2, 3, 4), dtype=np.int16)
    volume[1, 2, 3] = 60
    series = Series(volume, SETTINGS, {})
    assert (series.extent, series.tile_size, series.tile_stride) == ((4, 3, 2), (4, 3, 1), (4, 3, 1))
    pixels, _ = series.read(np.array([[0, 0, 1], [0, 0, 0]], dtype=np.int32), (4, 3, 1))
    assert pixels.shape == (2, 3, 4, 3)
    assert pixels[0, 2, 3].tolist() == [191, 102, 141]
    assert pixels[1, 2, 3].tolist() == pixels[0, 0, 0].tolist() == [0, 26, 101]
    assert series.min_foreground == 0.0


def test_the_thumbnail_is_the_middle_slice():
    volume = np.array([-1000, 60, 1000], dtype=np.int16)[:, None, None] * np.ones((1, 4, 8), dtype=np.int16)
    picture = Series(volume, SETTINGS, {}).thumbnail(16)
    assert picture.shape == (8, 16, 3)
    assert np.unique(picture.reshape(-1, 3), axis=0).tolist() == [[191, 102, 141]]


# Hounsfield units


def test_each_slice_has_its_own_slope_and_intercept(write_slice, read):
    write_slice("a", z=0, value=100, RescaleSlope=1, RescaleIntercept=-1024)
    write_slice("b", z=1, value=100, RescaleSlope=2, RescaleIntercept=-150)
    write_slice("c", z=2, value=101, RescaleSlope=0.25, RescaleIntercept=0.5)
    write_slice("d", z=3, value=40000, PixelRepresentation=0, RescaleSlope=0.05, RescaleIntercept=-1000)
    series = read()
    assert hounsfield(series) == [-924, 50, 26, 1000]
    assert series.arrays()["hu"].dtype == np.int16


def test_values_are_kept_between_air_and_dense_bone(write_slice, read):
    for z, value in enumerate([-3024, -1101, -1025, -1024, 3071, 3072, 30000]):
        write_slice(f"{z}", z=z, value=value)
    assert hounsfield(read()) == [-1024, -1024, -1024, -1024, 3071, 3071, 3071]


@pytest.mark.parametrize(
    "elements",
    [
        {"PixelPaddingValue": 500},
        {"PixelPaddingValue": DataElement(0x00280120, "US", 500)},
        {"PixelPaddingValue": 400, "PixelPaddingRangeLimit": 600},
        {"PixelPaddingValue": 600, "PixelPaddingRangeLimit": 400},
    ],
)
def test_padding_becomes_air_and_its_neighbours_do_not(write_slice, read, elements):
    values = np.full((16, 16), 7)
    values[0, :3] = [500, 399, 601]
    write_slice("a", value=values, **elements)
    assert read().arrays()["hu"][0, 0, :4].tolist() == [-1024, 399, 601, 7]


def test_padding_stated_in_the_other_signedness_is_understood(write_slice, read):
    """63536 is -2000 read as unsigned; with a slope, -2000 would otherwise become -100 HU."""
    values = np.full((16, 16), -2000)
    values[1:] = 0
    stated = DataElement(0x00280120, "US", 63536)
    write_slice("a", value=values, RescaleSlope=0.05, PixelPaddingValue=stated)
    assert read().arrays()["hu"][0, :2, 0].tolist() == [-1024, 0]


def test_monochrome1_is_not_inverted(write_slice, read):
    write_slice("a", value=-700, PhotometricInterpretation="MONOCHROME1")
    assert hounsfield(read()) == [-700]


@pytest.mark.parametrize(
    ("elements", "found"),
    [
        ({"RescaleType": "OD"}, "rescale type OD"),
        ({"RescaleSlope": None}, "no RescaleSlope and RescaleIntercept"),
        ({"RescaleIntercept": None}, "no RescaleSlope and RescaleIntercept"),
    ],
)
def test_values_that_are_not_hounsfield_units_are_refused(write_slice, read, elements, found):
    write_slice("a", **elements)
    with pytest.raises(ImageError, match=rf"^slice 1 of 1: values are not in Hounsfield units \({found}\): "):
        read()


# Order


def test_slices_are_sorted_by_position_whatever_their_names_and_numbers(write_slice, read):
    for name, z, number in [("a", 7.5, 1), ("b", -3.25, 2), ("c", 0.0, 3), ("d", 2.5, 0)]:
        write_slice(name, z=z, value=int(100 * z), InstanceNumber=number)
    series = read()
    assert series.properties["z_mm"] == [-3.25, 0.0, 2.5, 7.5]
    assert hounsfield(series) == [-325, 0, 250, 750]


def test_position_is_measured_along_the_normal_of_the_slices(write_slice, read):
    """Sagittal slices: rows run to the back (y), columns run down (-z), so the normal points to the right (-x)."""
    for name, x in [("a", 1.0), ("b", 3.0), ("c", 2.0)]:
        elements = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [x, 5.0, 9.0]}
        write_slice(name, value=int(x), **elements)
    series = read()
    assert series.properties["z_mm"] == [-3.0, -2.0, -1.0]
    assert hounsfield(series) == [3, 2, 1]


def test_tilt_is_the_angle_between_the_stack_and_its_normal(write_slice, read):
    """Orientation (1, 0, 0), (0, 0.8, -0.6) has the normal (0, 0.6, 0.8); stacked along z: acos 0.8 = 36.87 degrees."""
    for z in range(3):
        write_slice(f"{z}", z=10.0 * z, ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])
    properties = read().properties
    assert properties["tilt_deg"] == 36.87
    assert np.diff(properties["z_mm"]) == pytest.approx([8.0, 8.0])


def test_identical_duplicates_are_counted_and_left_out(write_slice, read):
    for name, z in [("a", 0), ("b", 1), ("c", 1), ("d", 2), ("e", 1)]:
        write_slice(name, z=z, value=z)
    series = read()
    assert hounsfield(series) == [0, 1, 2]
    assert (series.properties["duplicates"], series.properties["n_files"]) == (2, 5)


def test_different_slices_at_one_position_are_refused(write_slice, read):
    for name, z, value in [("a", 0, 0), ("b", 1, 1), ("c", 1, 2)]:
        write_slice(name, z=z, value=value)
    with pytest.raises(
        ImageError, match="^slice 2 of 2: 2 different slices lie at this position: keep one phase only$"
    ):
        read()


def test_slices_of_different_sizes_are_refused(write_slice, read):
    write_slice("a", z=0)
    write_slice("b", z=1)
    write_slice("c", z=2, Rows=8, PixelData=bytes(2 * 8 * 16))
    with pytest.raises(ImageError, match=r"^slices differ in size \(16 x 8: 1, 16 x 16: 2\): keep those of one size$"):
        read()


def test_slices_of_different_orientations_are_refused(write_slice, read):
    write_slice("a", z=0)
    write_slice("b", z=1, ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])
    with pytest.raises(ImageError, match="^slices differ in orientation: keep those of one orientation$"):
        read()


# Which files


def test_what_is_no_slice_is_counted_by_reason(write_slice, read, tmp_path):
    for z in range(3):
        write_slice(f"{z}", z=z, value=z)
    write_slice("mr", Modality="MR")
    write_slice("dose", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"])
    write_slice("scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice("rgb", SamplesPerPixel=3)
    write_slice("nowhere", ImagePositionPatient=None)
    write_slice("flat", ImageOrientationPatient=[0, 0, 0, 0, 0, 0])
    write_slice("other", z=9, SeriesInstanceUID="1.2.99")
    for name in ("DICOMDIR", "VERSION", ".hidden", "LICENSE"):
        (tmp_path / "series" / name).write_text("no image")
    write_slice("deep", folder="series/deeper", z=5)
    series = read()
    assert hounsfield(series) == [0, 1, 2]
    assert series.properties["n_files"] == 14
    assert series.properties["excluded"] == {
        "colour": 1,
        "localizer": 1,
        "modality is not CT": 1,
        "no position or orientation": 2,
        "not DICOM": 1,
        "not an image by its name": 3,
        "of another series": 1,
        "secondary capture": 1,
    }


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": None},
        {"SOPClassUID": None, "Modality": None},
        {"Modality": None},
        {"SOPClassUID": None, "meta_class": "1.2.3"},
    ],
)
def test_a_class_or_a_modality_is_enough_to_be_ct(write_slice, read, elements):
    write_slice("a", **elements)
    assert read().extent == (16, 16, 1)


def test_without_class_and_modality_it_is_not_ct(write_slice, read):
    write_slice("a", SOPClassUID=None, Modality=None, meta_class="1.2.3")
    with pytest.raises(ImageError, match=r"^no CT slices \(1 modality is not CT\): leave this folder out$"):
        read()


def test_the_series_with_most_slices_is_read(write_slice, read):
    for z in range(3):
        write_slice(f"a{z}", z=z, value=1)
    for z in range(4):
        write_slice(f"b{z}", z=z, value=2, SeriesInstanceUID="1.2.99")
    assert hounsfield(read()) == [2, 2, 2, 2]


def test_two_series_of_equal_size_are_refused(write_slice, read):
    for z in range(2):
        write_slice(f"a{z}", z=z)
        write_slice(f"b{z}", z=z, SeriesInstanceUID="1.2.99")
    with pytest.raises(ImageError, match="^2 CT series of 2 slices each: put each in a folder of its own$"):
        read()


def test_too_few_slices_are_refused(write_slice, read):
    for z in range(3):
        write_slice(f"{z}", z=z)
    with pytest.raises(ImageError, match="^3 slices, fewer than min_slices 10: lower series.min_slices, or leave"):
        read(SeriesSettings())


@pytest.mark.parametrize("elements", [{"NumberOfFrames": 2}, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}])
def test_multi_frame_files_are_refused(write_slice, read, elements):
    write_slice("a", **elements)
    with pytest.raises(ImageError, match="^multi-frame CT is not supported yet: convert it to one file per slice$"):
        read()


def test_an_empty_folder_is_refused(read, tmp_path):
    (tmp_path / "series").mkdir()
    with pytest.raises(ImageError, match=r"^no CT slices \(no files\): leave this folder out$"):
        read()


# Broken files


@pytest.mark.parametrize("missing", [1, 100, 511])
def test_truncated_pixels_are_refused_by_the_place_of_the_slice(write_slice, read, missing):
    write_slice("a", z=1)
    path = write_slice("Doe Jane", z=0)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(
        ImageError, match="^slice 1 of 2: pixels in Explicit VR Little Endian are truncated or damaged"
    ) as caught:
        read()
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (JPEGLossless, "JPEG Lossless, Non-Hierarchical .* cannot be decoded: install python-gdcm$"),
        (JPEGLSLossless, "JPEG-LS Lossless Image Compression cannot be decoded: install pyjpegls$"),
        (
            JPEG2000Lossless,
            r"pixels in JPEG 2000 .* are truncated or damaged .+: copy or export this series again$",
        ),
    ],
)
def test_an_undecodable_syntax_is_named_with_its_remedy(write_slice, read, syntax, message):
    pixels = DataElement(0x7FE00010, "OB", pydicom.encaps.encapsulate([b"\xff\xd8 no picture \xff\xd9"]))
    pixels.is_undefined_length = True
    write_slice("a", syntax=syntax, PixelData=pixels)
    with pytest.raises(ImageError, match=f"^slice 1 of 1: {message}") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_header_values_reach_no_warning_and_no_log(write_slice, read, recwarn, caplog, capfd):
    for z in range(2):
        bad_uid = DataElement(0x0020000E, "UI", "ID_JaneDoe", validation_mode=pydicom.config.IGNORE)
        bad_spacing = DataElement(0x00280030, "DS", ["0.48828125000000000001", "0.5"], validation_mode=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_slice(f"{z}", z=z, SeriesInstanceUID=bad_uid, PixelSpacing=bad_spacing)
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    capfd.readouterr()
    series = read()
    assert series.properties["warnings"] > 0
    assert len(recwarn) == 0 and caplog.text == "" and capfd.readouterr() == ("", "")


def test_properties_hold_geometry_and_counts_only(write_slice, read):
    for z in range(2):
        write_slice(f"{z}", z=5.0 * z, PatientBirthDate="19700101", StudyDate="20200101")
    assert read().properties == {
        "z_mm": [0.0, 5.0],
        "spacing": [0.5, 0.75],
        "thickness": [5.0],
        "tilt_deg": 0.0,
        "n_files": 2,
        "excluded": {},
        "duplicates": 0,
        "transfer_syntax": "Explicit VR Little Endian",
        "warnings": 0,
        "notes": [],
    }


# Real series

GE = "ct_series/neurolabusc__dcm_qa_ct/In/GE"
PHILIPS = "ct_series/neurolabusc__dcm_qa_ct/S21570/S2010"
TOTALSEGMENTATOR = "ct_series/wasserth__TotalSegmentator/tests/reference_files/example_ct_dicom"
WINDOWS = ((40, 80), (80, 200), (40, 380))


def computed_means(folder) -> list[float]:
    """Means of the three plain windows over a folder of one series, straight from pydicom."""
    slices = []
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        if "PixelData" in dataset:
            slices.append(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
    volume = np.stack(slices).astype(np.float32)
    return [float(np.clip((volume - (centre - width / 2)) / width, 0, 1).mean()) for centre, width in WINDOWS]


@pytest.mark.parametrize(
    ("folder", "slices", "published"),
    [
        (GE, 28, [0.181869, 0.144124, 0.206239]),
        (PHILIPS, 28, [0.081304, 0.072400, 0.076923]),
        (TOTALSEGMENTATOR, 20, [0.180233, 0.118819, 0.168511]),
    ],
)
def test_real_series_have_the_published_window_means(shared_data, folder, slices, published):
    series = Series.from_dicom(shared_data / folder, SeriesSettings())
    assert series.extent == (512, 512, slices)
    origins = np.array([[0, 0, z] for z in range(slices)], dtype=np.int32)
    pixels, _ = series.read(origins, series.tile_size)
    shown = pixels.reshape(-1, 3).mean(axis=0) / 255
    assert shown == pytest.approx(published, abs=0.003)
    assert shown == pytest.approx(computed_means(shared_data / folder), abs=0.003)


def test_real_tilted_series_with_two_gaps(shared_data):
    series = Series.from_dicom(shared_data / GE, SeriesSettings())
    z = series.properties["z_mm"]
    assert (z[0], z[1], z[-1]) == pytest.approx((-33.6655, -29.6636, 110.4228), abs=1e-3)
    assert np.diff(z) == pytest.approx([4.002] * 13 + [1.081] + [6.999] * 13, abs=1e-3)
    assert series.properties["tilt_deg"] == 18.5
    assert series.properties["thickness"] == [4.0, 7.0]
    first = pydicom.dcmread(shared_data / GE / "01.dcm").pixel_array
    assert np.array_equal(series.arrays()["hu"][0], np.clip(first, -1024, 3071))


def test_a_unit_that_is_not_stated_is_taken_as_hounsfield_and_noted(write_slice, read):
    write_slice("a", value=35, RescaleType="US")
    series = read()
    assert hounsfield(series) == [35]
    assert series.properties["notes"] == ["rescale type US: the unit of its values is not stated, taken as HU"]


def test_the_real_series_of_unstated_unit_is_read_in_order_as_its_header_says(shared_data):
    """93 slices of 64 x 64, 1.5 mm apart, whose files are numbered CTHead1 to CTHead93: by name, 10 would follow 1."""
    folder = shared_data / "ct_series/Slicer__Slicer/Testing/Data/Input/CTHeadAxialDicom"
    series = Series.from_dicom(folder, SeriesSettings())
    assert series.extent == (64, 64, 93)
    assert series.properties["z_mm"] == [1.5 * number for number in range(93)]
    tenth = pydicom.dcmread(folder / "CTHead10.dcm")
    assert np.array_equal(series.arrays()["hu"][9], np.clip(tenth.pixel_array, -1024, 3071))
    assert len(series.properties["notes"]) == 1


def test_every_real_folder_opens_or_is_refused_in_one_line(shared_data):
    files = [path for name in ("ct_series", "ct_odd") for path in (shared_data / name).rglob("*") if path.is_file()]
    opened = 0
    for folder in sorted({path.parent for path in files} - {shared_data / TOTALSEGMENTATOR}):
        try:
            Series.from_dicom(folder, SETTINGS)
            opened += 1
        except ImageError as error:
            assert "\n" not in str(error) and str(shared_data) not in str(error)
    assert opened >= 15
