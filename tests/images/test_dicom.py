"""What the files of a folder are, and what is known of each slice and frame."""

import hashlib
import warnings
from collections import Counter

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSNearLossless,
)

from pipeline.errors import ImageError
from pipeline.images.dicom import Coding, SliceHeader, is_place, padding_range, read_file, read_headers

LEGACY_CT, SECONDARY = "1.2.840.10008.5.1.4.1.1.2.2", "1.2.840.10008.5.1.4.1.1.7"
RESCALE = ("RescaleSlope", "RescaleIntercept")
MF = "ct_odd/QIICR__dcmqi/data/segmentations/23x38x3"
SUPPLEMENTAL = "ct_odd/pydicom__pydicom-data/data_store/data/eCT_Supplemental.dcm"


def only(path) -> SliceHeader:
    found = read_file(path)
    assert not isinstance(found, str), found
    (header,) = found
    return header


# Which files are slices


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "MR"}, "modality is not CT"),
        ({"Modality": None, "SOPClassUID": None, "meta_class": "1.2.3"}, "modality is not CT"),
        ({"Modality": "PT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}, "modality is not CT"),
        ({"SOPClassUID": SECONDARY}, "secondary capture"),
        ({"SOPClassUID": SECONDARY + ".4"}, "secondary capture"),
        ({"SOPClassUID": None, "meta_class": SECONDARY}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.11.1"}, "not of a class of CT images"),
        ({"SOPClassUID": "1.2.840.10008.1.3.10"}, "a DICOMDIR"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REF_SURVIEW"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen save"),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, "dose sheet"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PATIENT_INFO"]}, "patient sheet"),
        ({"ImageType": ["DERIVED", "SECONDARY", "RESULTS"]}, "result sheet"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"NumberOfFrames": 1_000_000_000}, "more frames than can be read"),
        ({"PixelData": None}, "no pixels"),
        ({"Rows": None}, "no pixels"),
        ({"Columns": 0}, "no pixels"),
        ({"NumberOfFrames": 2}, "multi-frame without a place for each frame"),
    ],
)
def test_what_is_no_slice_has_a_reason(write_slice, elements, reason):
    assert read_file(write_slice("a", **elements)) == reason


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir", "VERSION", ".hidden"])
def test_some_files_are_no_images_by_their_names(write_slice, name):
    assert read_file(write_slice(name)) == "not an image by its name"


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": None},
        {"SOPClassUID": None, "Modality": None},
        {"Modality": None},
        {"Modality": ""},
        {"SOPClassUID": None, "meta_class": "1.2.3"},
        {"SOPClassUID": "1.2.3.4.5"},
        {"NumberOfFrames": 1},
        {"NumberOfFrames": 0},
    ],
)
def test_what_has_a_class_or_a_modality_of_ct_is_a_slice(write_slice, elements):
    """Some archives leave the class out; some anonymisers replace it by one that does not exist."""
    assert only(write_slice("a", **elements)).extent == (16, 16)


def test_files_are_read_in_the_order_given_and_the_others_counted(write_slice, tmp_path):
    paths = [write_slice("b", z=1), write_slice("mr", Modality="MR"), write_slice("a", z=2), tmp_path / "text"]
    paths[-1].write_text("Doe^Jane")
    headers, excluded = read_headers(paths)
    assert [header.position[2] for header in headers] == [1, 2]
    assert excluded == Counter({"modality is not CT": 1, "not DICOM": 1})


def test_a_file_that_the_disk_does_not_give_is_not_passed_over(tmp_path):
    with pytest.raises(ImageError, match="^a file cannot be read: No such file or directory$"):
        read_headers([tmp_path / "Doe"])


# What is known of a slice


def test_a_header_has_what_the_file_states(write_slice):
    header = only(
        write_slice(
            "a",
            z=2.5,
            StudyInstanceUID="1.2.4",
            SeriesNumber=7,
            InstanceNumber=3,
            AcquisitionNumber=5,
            ContentTime="101500.5",
            KVP=120,
            ConvolutionKernel="H30s",
            ContrastBolusAgent="Iodine",
            BurnedInAnnotation="YES",
            LossyImageCompression="01",
            Manufacturer="SIEMENS Healthineers",
            GantryDetectorTilt=-18.5,
            RescaleIntercept=-1024,
            RescaleType="HU",
            PixelPaddingValue=-2000,
        )
    )
    assert (header.frame, header.frames, header.extent) == (0, 1, (16, 16))
    assert (header.patient, header.study, header.series, header.number) == ("MRN0815", "1.2.4", "1.2.3", 7)
    assert (header.instance, header.sop) == (3, hashlib.sha256(b"1.2.3.4 0").hexdigest()[:16])
    assert header.phase == ("", "", "5", "", "", "", "101500.5")
    assert (header.position, header.orientation) == ((-4, -4, 2.5), (1, 0, 0, 0, 1, 0))
    assert (header.spacing, header.thickness, header.tilt) == ((0.5, 0.75), 5, -18.5)
    assert header.coding == Coding(16, 16, True, 1, -1024, (-2000, -2000))
    assert (header.unit, header.words, header.kernel) == ("HU", ("ORIGINAL", "PRIMARY", "AXIAL"), "H30s")
    assert (header.contrast, header.burned_in, header.lossy, header.kvp) == (True, True, True, 120)
    assert (header.maker, header.missing) == ("SIEMENS", ())


def test_what_is_not_stated_is_not_made_up(write_slice):
    absent = ("PatientID", "SOPInstanceUID", "SeriesInstanceUID", "PixelSpacing", "SliceThickness", "SOPClassUID")
    others = ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "ImageType")
    header = only(write_slice("a", **dict.fromkeys(absent + others)))
    assert (header.patient, header.sop, header.series, header.number, header.instance) == ("", "", "", None, -1)
    assert (header.position, header.orientation, header.spacing, header.thickness) == ((), (), (), None)
    assert (header.coding, header.kvp, header.maker, header.kernel) == (None, None, "", "")
    assert (header.unit, header.words) == ("HU", ("",))
    assert not (header.contrast or header.burned_in or header.lossy)
    assert set(header.missing) == {*absent, "StudyInstanceUID", "InstanceNumber"}


@pytest.mark.parametrize("stated", ["1e308", "-1", "0"])
def test_lengths_that_cannot_be_are_not_stated(write_slice, stated):
    header = only(write_slice("a", SliceThickness=stated, PixelSpacing=["0.5", stated]))
    assert (header.thickness, header.spacing) == (None, ())


@pytest.mark.parametrize(
    "agent", ["", "NONE", "NO", "None", "no", "No contrast", "NON-CONTRAST", "W/O", "without", "0", "N", "none given"]
)
def test_no_contrast_is_written_in_several_ways(write_slice, agent):
    assert not only(write_slice("a", ContrastBolusAgent=agent)).contrast


@pytest.mark.parametrize("agent", ["Non-ionic, 100 ml", "Iodine", "NORMAL SALINE", "Omnipaque 300"])
def test_other_words_are_names_of_contrast(write_slice, agent):
    assert only(write_slice("a", ContrastBolusAgent=agent)).contrast


@pytest.mark.parametrize(
    ("written", "unit"),
    [("hu", "HU"), ("Hounsfield Units", "HU"), ("HOUNSFIELD", "HU"), ("UNSPECIFIED", "US"), ("us", "US"), ("OD", "OD")],
)
def test_a_unit_may_be_written_out(write_slice, written, unit):
    assert only(write_slice("a", RescaleType=written)).unit == unit


def test_a_syntax_that_loses_something_needs_no_other_word(write_slice):
    pixels = DataElement(0x7FE00010, "OB", pydicom.encaps.encapsulate([b"no picture"]))
    pixels.is_undefined_length = True
    assert only(write_slice("a", syntax=JPEGLSNearLossless, PixelData=pixels)).lossy


@pytest.mark.parametrize("spacing", [[5e-324, 5e-324], [1e-6, 1], [1, 1e7], [0, 1], [-1, 1]])
def test_a_spacing_that_cannot_be_is_none(write_slice, spacing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert only(write_slice("a", PixelSpacing=spacing)).spacing == ()


def test_a_value_without_end_is_none(write_slice):
    """It would be a million numbers."""
    stated = DataElement("ImagePositionPatient", "UN", b"1\\" * 40_000)
    assert only(write_slice("a", ImagePositionPatient=stated)).position == ()


def test_a_maker_that_is_not_known_is_not_told(write_slice):
    assert only(write_slice("a", Manufacturer="Doe^Jane")).maker == ""


def test_uids_that_are_none_are_uids_all_the_same(write_slice):
    path = write_slice("a")
    path.write_bytes(path.read_bytes().replace(b"1.2.3\0", b"ID_abc"))
    assert only(path).series == "ID_abc"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_a_header_is_the_same_in_every_native_syntax(write_slice, syntax):
    pixels = DataElement(0x7FE00010, "OW", bytes(512))
    paths = [write_slice(f"{at}", 3.5, syntax=at, PixelData=pixels) for at in ("1.2.840.10008.1.2.1", syntax)]
    plain, other = map(only, paths)
    assert other.coding == plain.coding == Coding(16, 16, True, 1, 0, None)
    assert (other.extent, other.position, other.spacing) == ((16, 16), (-4, -4, 3.5), (0.5, 0.75))


@pytest.mark.parametrize(
    ("stated", "bits", "signed", "padding"),
    [
        ([], 16, True, None),
        ([63536], 16, True, (-2000, -2000)),
        ([63536], 16, False, (63536, 63536)),
        ([65535 - 1499], 16, True, (-1500, -1500)),
        ([0x8000], 16, True, (-32768, -32768)),
        ([0], 16, False, (0, 0)),
        ([500, 400], 16, True, (400, 500)),
        ([0xFF], 8, True, (-1, -1)),
    ],
)
def test_padding_is_taken_in_the_signedness_of_the_pixels(stated, bits, signed, padding):
    assert padding_range(stated, bits, signed) == padding


def test_padding_that_is_stated_without_a_value_is_not_stated(write_slice):
    """Else -1 HU, which is brain, would become air."""
    coding = only(write_slice("a", PixelPaddingValue=DataElement(0x00280120, "SS", None))).coding
    assert coding is not None and coding.padding is None


@pytest.mark.parametrize(
    ("position", "orientation", "usable"),
    [
        ((0, 0, 0), (1, 0, 0, 0, 1, 0), True),
        ((0, 0, 0), (1, 0, 0, 0, 0.94832, -0.3173), True),
        ((0, 0, -1e308), (1, 0, 0, 0, 1, 0), False),
        ((0, 0), (1, 0, 0, 0, 1, 0), False),
        ((), (1, 0, 0, 0, 1, 0), False),
        ((0, 0, 0), (), False),
        ((0, 0, 0), (0, 0, 0, 0, 0, 0), False),
        ((0, 0, 0), (1, 0, 0, 1, 0, 0), False),
        ((0, 0, 0), (1, 0, 0, 0, 2, 0), False),
    ],
)
def test_a_place_is_a_position_and_two_directions_at_right_angles(position, orientation, usable):
    assert is_place(tuple(map(float, position)), tuple(map(float, orientation))) is usable


# Multi-frame


def test_frames_are_slices_each_with_its_own_groups_before_those_of_all(write_frames):
    frames = [
        {"z": 10.0, "value": 1, "RescaleSlope": 2, "RescaleIntercept": -7, "TemporalPositionIndex": 32},
        {"z": 0.0, "value": 2, "SliceThickness": 2.5, "PixelSpacing": [0.25, 0.3], "FrameAcquisitionNumber": 256},
        {"z": 5.0, "value": 3, "ConvolutionKernel": "B60f", "ImageOrientationPatient": [1, 0, 0, 0, 0.8, -0.6]},
    ]
    path = write_frames("a", frames, {"RescaleIntercept": -1024, "ConvolutionKernel": "H30"}, InstanceNumber=9)
    headers = read_file(path)
    assert not isinstance(headers, str)
    assert [(header.frame, header.frames, header.instance) for header in headers] == [(0, 3, 1), (1, 3, 2), (2, 3, 3)]
    assert [header.position for header in headers] == [(-4, -4, 10), (-4, -4, 0), (-4, -4, 5)]
    rescale = [(header.coding.slope, header.coding.intercept) for header in headers if header.coding]
    assert rescale == [(2, -7), (1, -1024), (1, -1024)]
    assert [header.thickness for header in headers] == [5, 2.5, 5]
    assert [header.spacing for header in headers] == [(0.5, 0.75), (0.25, 0.3), (0.5, 0.75)]
    assert [header.orientation[4] for header in headers] == [1, 1, 0.8]
    assert [header.kernel for header in headers] == ["H30", "H30", "B60f"]
    assert [header.phase[1:3] for header in headers] == [("32", ""), ("", "256"), ("", "")]
    assert len({header.sop for header in headers}) == 3
    assert not {"PixelSpacing", "SliceThickness"}.intersection(headers[0].missing)


@pytest.mark.parametrize("count", [1, 3])
def test_frames_without_a_place_for_each_are_no_slices(write_frames, count):
    path = write_frames("a", [{"z": z, "value": 0} for z in range(2)], NumberOfFrames=count)
    assert read_file(path) == "multi-frame without a place for each frame"


def test_an_enhanced_file_of_one_frame_is_one_slice(write_frames, read_series):
    write_frames("a", [{"z": 3.0, "value": 40}], {"RescaleSlope": 2, "RescaleIntercept": -10})
    volume, properties = read_series()
    assert volume.shape == (1, 16, 16) and np.unique(volume).tolist() == [70]
    assert properties["z_mm"] == [3.0]


def test_frames_in_any_order_become_a_volume_in_the_order_of_their_places(write_frames, read_series):
    """Frame k of a shuffled file has its own slope and intercept: HU = (k + 1) * 100 k - k, by hand."""
    places = [20.0, 0.0, 15.0, 5.0, 10.0]
    frames = [{"z": z, "value": 100 * k, "RescaleSlope": k + 1, "RescaleIntercept": -k} for k, z in enumerate(places)]
    write_frames("a", frames, dict.fromkeys(RESCALE))
    volume, properties = read_series()
    assert volume[:, 3, 5].tolist() == [199, 1197, 1996, 598, 0]
    assert properties["z_mm"] == [0, 5, 10, 15, 20]
    assert properties["instance_number"] == [2, 4, 5, 3, 1]
    assert (properties["qc"]["n_files"], properties["qc"]["n_read"]) == (1, 5)


def test_highdicom_reads_the_same_volume_from_frames(write_frames, read_series):
    frames = [{"z": z, "value": int(10 * z), "RescaleSlope": 1, "RescaleIntercept": -z} for z in (7.5, 0.0, 2.5, 5.0)]
    path = write_frames(
        "a", frames, dict.fromkeys(RESCALE), StudyInstanceUID="1.2.9", FrameOfReferenceUID="1.2.8", StudyDate=""
    )
    volume, properties = read_series()
    oracle = highdicom.imread(path).get_volume(
        apply_presentation_lut=False, apply_voi_transform=False, apply_modality_transform=True
    )
    oracle = oracle.flip_spatial(0)  # its slices go down
    assert np.array_equal(np.rint(oracle.array), volume) and volume[:, 0, 0].tolist() == [0, 22, 45, 68]
    assert np.allclose(np.array(properties["affine"])[:3, [2, 1, 0, 3]], oracle.affine[:3])


def test_legacy_converted_frames_are_their_single_files(shared_data, tmp_path, write_slice, read_series):
    for source, folder in [("multiframe/mf.dcm", "many"), *((f"image/IMG000{n}.dcm", "single") for n in (1, 2, 3))]:
        target = tmp_path / folder / source.rpartition("/")[2]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((shared_data / MF / source).read_bytes())
    many, of_many = read_series(folder="many")
    single, of_single = read_series(folder="single")
    assert many.shape == (3, 38, 23) and many.any() and np.array_equal(many, single)
    for name in ("z_mm", "spacing", "affine", "thicknesses"):
        assert of_many[name] == of_single[name]
    assert of_many["z_mm"] == [-177.75, -175.25, -172.75]


def test_an_enhanced_perfusion_map_is_placed_frame_by_frame(shared_data, tmp_path, read_series):
    """Row directions that point left make a normal that points to the feet; its value 0 means -1024 units, not HU."""
    (tmp_path / "series").mkdir()
    (tmp_path / "series/a").write_bytes((shared_data / SUPPLEMENTAL).read_bytes())
    volume, properties = read_series()
    dataset = dcmread(shared_data / SUPPLEMENTAL)
    places = [
        float(g.PlanePositionSequence[0].ImagePositionPatient[2]) for g in dataset.PerFrameFunctionalGroupsSequence
    ]
    order = np.argsort([-z for z in places])
    assert properties["z_mm"] == [-places[frame] for frame in order]
    assert np.array_equal(volume, np.clip(dataset.pixel_array[order].astype(int) - 1024, -1024, 3071))


def test_a_perfusion_map_is_refused_unless_values_need_not_be_hounsfield_units(shared_data, tmp_path, refusal):
    (tmp_path / "series").mkdir()
    (tmp_path / "series/a").write_bytes((shared_data / SUPPLEMENTAL).read_bytes())
    assert refusal(min_slices=1, hu_check="refuse").startswith("2 of 2 slices are a perfusion map, whose values are")


def test_class_of_legacy_converted_files_is_ct(write_frames):
    path = write_frames("a", [{"z": 0, "value": 0}], SOPClassUID=LEGACY_CT, meta_class=LEGACY_CT, Modality=None)
    assert len(read_file(path)) == 1
