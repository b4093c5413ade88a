"""Makers of small slides and series, all in code."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images.volume import read_volume

WriteSlide = Callable[..., Path]
WriteSlice = Callable[..., Path]
ReadSeries = Callable[..., tuple[NDArray[np.int16], dict[str, Any]]]

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
}
"""In which functional group of a multi-frame file an element of a slice stands."""

WHITE, PINK = (255, 255, 255), (200, 80, 140)


@pytest.fixture
def tissue_pixels() -> NDArray[np.uint8]:
    """White, 512 x 512, with a pink square from 128 to 384 along both axes; noise in the tissue only."""
    pixels = np.full((512, 512, 3), WHITE, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(-15, 16, (256, 256, 3))
    pixels[128:384, 128:384] = PINK + noise
    return pixels


@pytest.fixture
def write_slide(tmp_path: Path) -> WriteSlide:
    """Writes an uncompressed pyramidal TIFF: level k has every pixel averaged over `shrink` ** k pixels of level 0."""

    def write(
        pixels: NDArray[np.uint8],
        mpp: tuple[float, float] | None = (0.5, 0.5),
        levels: int = 1,
        shrink: int = 4,
        name: str = "slide.tif",
    ) -> Path:
        resolution = {} if mpp is None else {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
        path = tmp_path / name
        with tifffile.TiffWriter(path) as file:
            for level in range(levels):
                file.write(
                    pixels, tile=(128, 128), photometric="rgb", subfiletype=int(level > 0), metadata=None, **resolution
                )
                height, width = pixels.shape[0] // shrink, pixels.shape[1] // shrink
                blocks = pixels[: height * shrink, : width * shrink].reshape(height, shrink, width, shrink, 3)
                pixels = blocks.mean(axis=(1, 3)).astype(np.uint8)
        return path

    return write


@pytest.fixture
def write_slice(tmp_path: Path) -> WriteSlice:
    """Writes one 16 x 16 CT slice of constant stored value, at z mm, with any element replaced (None: left out)."""

    def write(
        name: str,
        z: float = 0.0,
        value: int | NDArray[np.integer] = 0,
        folder: str = "series",
        meta_class: str = "1.2.840.10008.5.1.4.1.1.2",
        syntax: UID = ExplicitVRLittleEndian,
        **elements: object,
    ) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = UID(meta_class)
        dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
        signed = elements.get("PixelRepresentation", 1) == 1
        stored = np.broadcast_to(np.asarray(value), (16, 16)).astype("<i2" if signed else "<u2")
        values: dict[str, object] = {
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            "SOPInstanceUID": "1.2.3.4",
            "Modality": "CT",
            "PatientName": "Doe^Jane",
            "PatientID": "MRN0815",
            "SeriesInstanceUID": "1.2.3",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "ImagePositionPatient": [-4.0, -4.0, z],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [0.5, 0.75],
            "SliceThickness": 5,
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "Rows": 16,
            "Columns": 16,
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
            "PixelData": stored.tobytes(),
        } | elements
        for element, content in values.items():
            if isinstance(content, DataElement):
                dataset.add(content)
            elif content is not None:
                setattr(dataset, element, content)
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_frames(write_slice: WriteSlice) -> WriteSlice:
    """Writes an enhanced CT of 16 x 16 frames of constant stored value.

    A frame is its `z` in mm, its `value`, and the elements of GROUPS that are its own; `shared` has those of all.
    """

    def write(
        name: str, frames: Sequence[Mapping[str, Any]], shared: Mapping[str, Any] | None = None, **elements: object
    ) -> Path:
        of_all = {
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [0.5, 0.75],
            "SliceThickness": 5,
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
        } | dict(shared or {})
        own = [
            {"ImagePositionPatient": [-4.0, -4.0, frame["z"]]}
            | {key: value for key, value in frame.items() if key in GROUPS}
            for frame in frames
        ]
        values: dict[str, object] = {
            "SOPClassUID": ENHANCED_CT,
            "meta_class": ENHANCED_CT,
            "NumberOfFrames": len(frames),
            **dict.fromkeys(("ImagePositionPatient", *of_all)),
            "SharedFunctionalGroupsSequence": [functional_groups(of_all)],
            "PerFrameFunctionalGroupsSequence": [functional_groups(elements_of_one) for elements_of_one in own],
            "PixelData": b"".join(np.full((16, 16), frame["value"], "<i2").tobytes() for frame in frames),
        }
        return write_slice(name, **(values | elements))

    return write


def functional_groups(elements: Mapping[str, Any]) -> Dataset:
    groups = Dataset()
    for keyword, value in elements.items():
        if value is not None:
            if GROUPS[keyword] not in groups:
                setattr(groups, GROUPS[keyword], [Dataset()])
            setattr(groups[GROUPS[keyword]].value[0], keyword, value)
    return groups


@pytest.fixture
def read_series(tmp_path: Path) -> ReadSeries:
    """Reads what `write_slice` has written: HU (z, y, x), and properties.

    Takes settings by name; where it is not told otherwise, one slice is enough and values need not look like HU.
    """

    def read(wanted: str = "", folder: str = "series", **settings: Any) -> tuple[NDArray[np.int16], dict[str, Any]]:
        files = sorted(path for path in (tmp_path / folder).iterdir() if path.is_file())
        return read_volume(files, SeriesSettings(**({"min_slices": 1, "hu_check": "note"} | settings)), wanted)

    return read


@pytest.fixture
def refusal(read_series: ReadSeries, tmp_path: Path) -> Callable[..., str]:
    """Why `read_series` refuses what `write_slice` has written: one line, without anything that names a patient."""

    def refuse(**asked: Any) -> str:
        with pytest.raises(ImageError) as caught:
            read_series(**asked)
        message = str(caught.value)
        names = [path.name for path in (tmp_path / asked.get("folder", "series")).iterdir() if len(path.name) > 5]
        assert message and "\n" not in message and ": " in message
        assert not [private for private in ("Doe", "MRN0815", "ZZTEST", str(tmp_path), *names) if private in message]
        return message

    return refuse
