"""A CT series as DICOM files, from Hounsfield units in memory."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from pipeline.synthetic.series import FIELD_OF_VIEW

THICKNESS = 5.0
"""Millimetres from slice to slice."""
INTERCEPT = -1024


def write_series(folder: Path, volume: NDArray[np.int16], patient: str, rng: np.random.Generator) -> None:
    """Write one DICOM file per slice, with names in no order of position.

    Args:
        folder: where the files go; made if missing.
        volume: HU (slice, row, column), from the base of the skull up.
        patient: the made-up PatientID.
        rng: source of the unique identifiers, of the order of names and of the direction of the scan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = rng.bytes(16).hex()
    names = rng.permutation(len(volume)) + 1
    upwards = bool(rng.integers(2))
    for index, plane in enumerate(volume):
        number = index + 1 if upwards else len(volume) - index
        data = _dataset(plane, patient, name, index, number, THICKNESS * (index - len(volume) / 2))
        data.save_as(folder / f"IM{names[index]:04d}.dcm", enforce_file_format=True)


def _dataset(plane: NDArray[np.int16], patient: str, name: str, index: int, number: int, z: float) -> Dataset:
    """One slice as a CT Image Storage object; z in mm."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, str(index)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = generate_uid(entropy_srcs=[name, "study"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=[name, "series"])
    data.FrameOfReferenceUID = generate_uid(entropy_srcs=[name, "frame"])
    data.Modality, data.BodyPartExamined, data.KVP = "CT", "HEAD", 120
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.PatientID, data.PatientName = patient, ""
    data.SeriesNumber, data.InstanceNumber = 1, number
    spacing = FIELD_OF_VIEW / len(plane)
    corner = (spacing - FIELD_OF_VIEW) / 2  # the centre of the first pixel, with the scanner's axis at 0
    data.ImagePositionPatient = [corner, corner, z]
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [spacing, spacing], THICKNESS
    data.Rows, data.Columns = plane.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = INTERCEPT, 1, "HU"
    data.PixelData = (plane - INTERCEPT).astype("<u2").tobytes()
    return data
