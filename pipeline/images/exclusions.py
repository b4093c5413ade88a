"""Which DICOM files are no slices of a CT series, and what they are called when they are counted."""

from pydicom import Dataset
from pydicom.uid import UID

from pipeline.images.dicom_file import Opened
from pipeline.images.elements import number, text

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
CT_CLASSES = (CT_IMAGE, CT_IMAGE + ".1", CT_IMAGE + ".2")
"""CT, enhanced CT, legacy converted enhanced CT."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
DICOMDIR = "1.2.840.10008.1.3.10"

NOT_A_SLICE = {
    "LOCALIZER": "localizer",
    "SCOUT": "localizer",
    "SCREEN SAVE": "screen save",
    "DOSE_INFO": "dose sheet",
    "PATIENT_INFO": "patient sheet",
    "REF_SURVIEW": "localizer",
    "RESULTS": "result sheet",
}
"""Words of ImageType, and what an image with one of them is called."""


def why_not(file: Opened) -> str:
    """Why a DICOM file is no slice of a CT series; empty when it is one, or many."""
    dataset = file.elements
    sop_class = text(dataset, "SOPClassUID") or file.sop_class
    modality = text(dataset, "Modality")
    if sop_class == DICOMDIR:
        return "a DICOMDIR"
    if modality != "CT" if modality else sop_class not in CT_CLASSES:
        return "modality is not CT"
    for word in image_type(dataset):
        if word in NOT_A_SLICE:
            return NOT_A_SLICE[word]
    if sop_class == SECONDARY_CAPTURE or sop_class.startswith(SECONDARY_CAPTURE + "."):
        return "secondary capture"
    # A class that is none, as some archives and anonymisers write, is no reason to lose a slice.
    if sop_class not in CT_CLASSES and UID(sop_class).name != sop_class:
        return "not of a class of CT images"
    if number(dataset, "SamplesPerPixel", 1) != 1 or text(dataset, "PhotometricInterpretation") == "PALETTE COLOR":
        return "colour"
    if not (file.pixels_at and number(dataset, "Rows") and number(dataset, "Columns")):
        return "no pixels"
    return ""


def image_type(dataset: Dataset) -> tuple[str, ...]:
    """The words of ImageType, in capitals."""
    return tuple(word.strip() for word in text(dataset, "ImageType").upper().split("\\"))
