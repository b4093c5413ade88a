"""A CT series as an image: what its tiles show, which files of a folder it is made of, and what it never tells."""

import json
import logging
import warnings

import numpy as np
import pytest
from pydicom import config, dcmread
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images import READ_OK, open_image, reopen_image
from pipeline.images.series import Series
from pipeline.store import digest

SETTINGS = SeriesSettings(min_slices=1, hu_check="note")
NEIGHBOURS = SeriesSettings(min_slices=1, hu_check="note", channels="neighbours", windows=((40, 80),))
LEAK = "ZZTEST^LEAK"
TEXTS = ("LO", "SH", "PN", "LT", "ST", "UT", "UC")


@pytest.fixture
def read(tmp_path):
    return lambda settings=SETTINGS, wanted="": Series.from_dicom(tmp_path / "series", settings, wanted)


def hounsfield(series: Series) -> list[int]:
    """The HU of each slice's first pixel."""
    return series.arrays()["hu"][:, 0, 0].tolist()


def shown(series: Series) -> list[list[int]]:
    """The three channels of each slice's first pixel."""
    origins = np.array([[0, 0, z] for z in range(series.extent[2])], dtype=np.int32)
    pixels, status = series.read(origins, series.tile_size)
    assert (status == READ_OK).all()
    return pixels[:, 0, 0].tolist()


# Tiles


def test_a_tile_shows_three_windows_as_channels():
    """60 HU: (60 - 0) / 80, (60 + 20) / 200 and (60 + 150) / 380 of 255; 0 HU: 0, 20 / 200 and 150 / 380."""
    volume = np.zeros((2, 3, 4), dtype=np.int16)
    volume[1, 2, 3] = 60
    series = Series(volume, SETTINGS, {"z_mm": [0, 1]})
    assert (series.extent, series.tile_size, series.tile_stride) == ((4, 3, 2), (4, 3, 1), (4, 3, 1))
    pixels, _ = series.read(np.array([[0, 0, 1], [0, 0, 0]], dtype=np.int32), (4, 3, 1))
    assert pixels.shape == (2, 3, 4, 3)
    assert pixels[0, 2, 3].tolist() == [191, 102, 141]
    assert pixels[1, 2, 3].tolist() == pixels[0, 0, 0].tolist() == [0, 26, 101]
    assert series.channels == ("brain 0 to 80 HU", "subdural -20 to 180 HU", "soft tissue -150 to 230 HU")
    assert series.min_foreground == 0.0 and not series.pads
    assert series.foreground(np.zeros((5, 3), dtype=np.int32), (4, 3, 1)).tolist() == [1] * 5


def test_the_ends_of_the_range_are_shown_too():
    volume = np.array([-1024, 3071], dtype=np.int16)[:, None, None]
    assert shown(Series(volume, SETTINGS, {"z_mm": [0, 1]})) == [[0, 0, 0], [255, 255, 255]]


def test_a_part_of_a_slice_is_read_from_its_place():
    volume = np.arange(4 * 80, dtype=np.int16).reshape(1, 4, 80)
    series = Series(volume, SETTINGS, {"z_mm": [0]})
    pixels, _ = series.read(np.array([[16, 0, 0]], dtype=np.int32), (3, 1, 1))
    assert pixels[0, 0, :, 0].tolist() == [51, 54, 57]  # 255 / 80 a HU


def test_room_for_tiles_is_filled_and_given_back():
    series = Series(np.full((3, 2, 2), 80, dtype=np.int16), SETTINGS, {"z_mm": [0, 1, 2]})
    room = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    pixels, _ = series.read(np.array([[0, 0, 0], [0, 0, 2]], dtype=np.int32), (2, 2, 1), out=room)
    assert np.shares_memory(pixels, room) and pixels.shape == (2, 2, 2, 3)
    assert room[:2].min() == 127 + 1 and not room[2:].any()  # 100 / 200 of 255, rounded to even


def test_neighbours_are_channels_through_one_window():
    """40 HU apart are 127.5 of 255 apart, rounded half to even; at the ends and at a gap a slice repeats itself."""
    volume = np.array([0, 20, 40, 60, 80], dtype=np.int16)[:, None, None]
    series = Series(volume, NEIGHBOURS, {"z_mm": [0, 5, 10, 30, 35]})
    assert shown(series) == [[0, 0, 64], [0, 64, 128], [64, 128, 128], [191, 191, 255], [191, 255, 255]]
    assert series.channels == ("brain 0 to 80 HU",)


def test_the_thumbnail_is_the_middle_slice():
    volume = np.array([-1000, 60, 1000], dtype=np.int16)[:, None, None] * np.ones((1, 4, 8), dtype=np.int16)
    picture = Series(volume, SETTINGS, {"z_mm": [0, 1, 2]}).thumbnail(16)
    assert picture.shape == (8, 16, 3)
    assert np.unique(picture.reshape(-1, 3), axis=0).tolist() == [[191, 102, 141]]


def test_a_series_is_opened_again_from_its_volume_through_other_windows(write_slice, tmp_path):
    for z in range(3):
        write_slice(f"{z}", z=z, value=20 * z)
    first = open_image(tmp_path / "series", SETTINGS)
    again = reopen_image(tmp_path / "nowhere", NEIGHBOURS, first.arrays(), first.properties)
    assert again.reading() == {"z_mm": [0.0, 1.0, 2.0]}
    assert isinstance(again, Series) and shown(again) == [[0, 0, 64], [0, 64, 128], [64, 128, 128]]


# Which files


def test_what_is_no_slice_is_counted_by_reason(write_slice, read, tmp_path):
    for z in range(3):
        write_slice(f"{z}", z=z, value=z)
    write_slice("mr", Modality="MR")
    write_slice("dose", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"])
    write_slice("capture", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ImageType=["DERIVED", "SECONDARY"])
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
    assert series.properties["qc"]["n_files"] == 11  # what its identity covers: no LICENSE, no DICOMDIR
    assert series.properties["qc"]["excluded"] == {
        "colour": 1,
        "dose sheet": 1,
        "localizer": 1,
        "modality is not CT": 1,
        "no position or orientation": 2,
        "secondary capture": 1,
    }
    assert series.properties["qc"]["other_series"] == ["1 slices: not preferred by most_slices"]
    assert "left out, though they may be slices: 2 no position or orientation" in "; ".join(series.properties["notes"])


def test_an_empty_folder_is_refused(read, tmp_path):
    (tmp_path / "series").mkdir()
    with pytest.raises(ImageError, match=r"^no CT slices \(no files\): leave this folder out$"):
        read()


def test_a_folder_of_texts_is_refused(read, tmp_path):
    (tmp_path / "series").mkdir()
    for name in ("a.txt", "b.dcm", "DICOMDIR", "VERSION"):
        (tmp_path / "series" / name).write_text("Doe^Jane")
    with pytest.raises(ImageError, match=r"^no CT slices \(1 not DICOM\): leave this folder out$"):
        read()


@pytest.mark.parametrize(("name", "value"), [("7", 2), ("1.2.99", 2), ("6", 1), ("1.2.3", 1)])
def test_the_labels_choose_the_series(write_slice, read, name, value):
    for z in range(3):
        write_slice(f"a{z}", z=z, value=1, SeriesNumber=6)
        write_slice(f"b{z}", z=z, value=2, SeriesNumber=7, SeriesInstanceUID="1.2.99")
    assert hounsfield(read(wanted=digest(name, 16))) == [value] * 3


def test_slices_of_different_sizes_are_refused(write_slice, read):
    write_slice("a", z=0)
    write_slice("b", z=1)
    write_slice("c", z=2, Rows=8, PixelData=bytes(2 * 8 * 16))
    with pytest.raises(ImageError, match=r"^slices differ in size \(16 x 8: 1, 16 x 16: 2\): keep those of one size$"):
        read()


def test_slices_of_another_orientation_are_another_series(write_slice, read):
    for z in range(3):
        write_slice(f"{z}", z=z, value=z)
    write_slice("b", z=1, ImageOrientationPatient=[1, 0, 0, 0, 0.8, -0.6])
    series = read(SETTINGS.model_copy(update={"max_oblique_deg": 90.0}))
    assert hounsfield(series) == [0, 1, 2]
    assert series.properties["qc"]["other_series"] == ["1 slices of the same series: not preferred by most_slices"]


def test_position_is_measured_along_the_normal_of_the_slices(write_slice, read):
    """Sagittal slices: rows run to the back (y), columns run down (-z), so the normal points to the right (-x)."""
    for name, x in [("a", 1.0), ("b", 3.0), ("c", 2.0)]:
        elements = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1], "ImagePositionPatient": [x, 5.0, 9.0]}
        write_slice(name, value=int(x), **elements)
    series = read(SETTINGS.model_copy(update={"max_oblique_deg": 90.0}))
    assert series.properties["z_mm"] == [-3.0, -2.0, -1.0]
    assert hounsfield(series) == [3, 2, 1]
    with pytest.raises(ImageError, match=r"^3 slices lie 90 degrees from axial, more than max_oblique_deg 35: "):
        read()


def test_tilt_is_the_angle_between_the_stack_and_its_normal(write_slice, read):
    """Orientation (1, 0, 0), (0, 0.9, -0.4359) has the normal (0, 0.4359, 0.9); stacked along z: acos 0.9 = 25.84."""
    for z in range(3):
        write_slice(f"{z}", z=10.0 * z, ImageOrientationPatient=[1, 0, 0, 0, 0.9, -0.43588989])
    properties = read().properties
    assert properties["tilt_deg"] == pytest.approx(25.8419, abs=1e-4)
    assert np.diff(properties["z_mm"]) == pytest.approx([9.0, 9.0])
    assert "gantry tilt 25.8 degrees" in properties["notes"]


def test_slices_as_the_rsna_competition_has_them_are_read(write_slice, read):
    """Hardly any elements, identifiers that are no UIDs, no numbers, one slice whose intercept differs by one."""
    absent = ("SOPClassUID", "ImageType", "SliceThickness", "PatientName", "InstanceNumber")
    for name, z in [("ID_c", 0.0), ("ID_a", 5.0), ("ID_b", 10.0)]:
        path = write_slice(name, z=z, value=int(z), RescaleIntercept=int(z == 5), **dict.fromkeys(absent))
        path.write_bytes(
            path.read_bytes().replace(b"1.2.3\0", b"ID_abc").replace(b"1.2.3.4\0", b"ID_" + name[-1:].encode() * 5)
        )
    series = read()
    assert hounsfield(series) == [0, 6, 10] and series.properties["z_mm"] == [0, 5, 10]
    assert series.properties["instance_number"] == [-1, -1, -1]
    assert len(set(series.properties["sop_hash"])) == 3
    assert {"SOPClassUID", "InstanceNumber", "SliceThickness"} < set(series.properties["qc"]["missing_attributes"])


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


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_compressed_pixels_that_are_none_are_refused(write_slice, read, syntax, capfd):
    pixels = DataElement(0x7FE00010, "OB", encapsulate([b"\xff\xd8 no picture \xff\xd9"]))
    pixels.is_undefined_length = True
    write_slice("a", syntax=syntax, PixelData=pixels)
    with pytest.raises(ImageError, match="^slice 1 of 1: .*: (copy or export this series again|install .*)$") as caught:
        read()
    assert "\n" not in str(caught.value) and syntax.name.partition(" (")[0] in str(caught.value)


def test_12_bit_jpeg_is_named_with_its_remedy(write_slice, read):
    pixels = DataElement(0x7FE00010, "OB", encapsulate([b"\xff\xd8 no picture \xff\xd9"]))
    pixels.is_undefined_length = True
    write_slice("a", syntax=JPEGExtended12Bit, PixelData=pixels)
    with pytest.raises(ImageError, match=r"^slice 1 of 1: JPEG Extended .* install pylibjpeg-libjpeg \(GPL-3.0: the "):
        read()


# What it never tells


@pytest.fixture
def with_leaks(tmp_path):
    """Plants a name in every element of text that DICOM has, and in words of ImageType."""

    def plant(path, *without):
        dataset = dcmread(path)
        for tag, (vr, *_) in DicomDictionary.items():
            keyword = keyword_for_tag(tag)
            if vr in TEXTS and tag >> 16 > 2 and keyword and keyword not in without:
                dataset.add(DataElement(tag, vr, LEAK, validation_mode=config.IGNORE))
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "ZZTEST LEAK"]
        dataset.save_as(path)
        return path

    return plant


def test_no_text_of_a_header_is_in_the_properties(write_slice, write_frames, with_leaks, read_series):
    for z in range(2):
        with_leaks(write_slice(f"ZZTEST {z}", z=z, value=z, InstanceNumber=z), "RescaleType")
        frames = [{"z": 2 * z + k, "value": 7} for k in range(2)]
        with_leaks(write_frames(f"ZZTEST {z}", frames, {"ConvolutionKernel": LEAK}, folder="frames"))
    for folder, slices in (("series", 2), ("frames", 4)):
        volume, properties = read_series(folder=folder)
        assert len(volume) == slices and "ZZTEST" not in json.dumps(properties)
        assert properties["qc"]["maker"] == "" and properties["qc"]["contrast"] is True


REFUSED = {
    "another rescale type": ({}, {}),
    "text burned into": ({"BurnedInAnnotation": "YES"}, {}),
    "state no RescaleSlope": ({"RescaleSlope": None}, {}),
    "states its position": ({"ImagePositionPatient": None}, {}),
    "slices are missing": ({}, {"missing_slices": "refuse"}),
    "fewer than min_slices": ({}, {"min_slices": 50}),
    "degrees from axial": ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, {}),
    "different slices": ({"ImagePositionPatient": [0, 0, 0]}, {}),
    "not CT": ({"Modality": "ZZTEST"}, {}),
    "do not look like": ({}, {"hu_check": "refuse"}),
    "an unknown transfer syntax": ({}, {}),
    "no PixelSpacing": ({"PixelSpacing": None}, {"field_mm": 200}),
    "fewer bytes than pixels": ({"Rows": 17}, {}),
    "bits a pixel": ({"BitsAllocated": 24}, {}),
}


@pytest.mark.parametrize("found", REFUSED)
def test_no_text_of_a_header_is_in_a_message(write_slice, with_leaks, refusal, found):
    elements, settings = REFUSED[found]
    kept = () if found == "another rescale type" else ("RescaleType",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for z in (0, 1, 2, 10, 11, 12, 13):
            path = write_slice(f"ZZTEST {z}", **({"z": z, "value": z} | elements))
            with_leaks(path, *kept)
            if "syntax" in found:
                path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.999.ZZTEST.LEAK\0"))
    assert found in refusal(**settings)


def test_header_values_reach_no_warning_and_no_log(write_slice, read, recwarn, caplog, capfd):
    for z in range(2):
        bad_uid = DataElement(0x0020000E, "UI", "ID_JaneDoe", validation_mode=config.IGNORE)
        bad_spacing = DataElement(0x00280030, "DS", ["0.48828125000000000001", "0.5"], validation_mode=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_slice(f"{z}", z=z, SeriesInstanceUID=bad_uid, PixelSpacing=bad_spacing)
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    capfd.readouterr()
    series = read()
    assert series.properties["spacing"] == [0.48828125, 0.5]
    assert len(recwarn) == 0 and caplog.text == "" and capfd.readouterr() == ("", "")
