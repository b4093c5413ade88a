"""What is recorded of a CT series beside its pixels, and what of it a reader should be told.

Numbers, and words from lists of our own: no text of a header.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from pipeline.images.decoding import syntax_name
from pipeline.images.dicom import SliceHeader
from pipeline.images.elements import PHASES
from pipeline.images.stacking import Geometry

LOST = (
    "unreadable header", "no position or orientation", "no pixels", "multi-frame without a place for each frame",
    "more frames than can be read",
)  # fmt: skip
"""Reasons of files that may have been slices of the series."""

GEOMETRY = (
    "n_missing", "gap_min_mm", "gap_median_mm", "gap_max_mm", "regular", "thicknesses", "tilt_deg", "tilt_tag_deg",
    "spacing", "order_source",
)  # fmt: skip
"""What the record has of the geometry."""

PADDING_HU = -900
"""Padding is air or less; what is above can be part of a patient."""

TISSUE_MEDIAN = (10, 60)
"""HU between which the median of the tissue of a head lies; phantoms and bodies have more."""


def geometry_record(geometry: Geometry) -> dict[str, Any]:
    """What the record has of the geometry."""
    return {name: value for name, value in geometry.properties().items() if name in GEOMETRY}


def header_record(slices: Sequence[SliceHeader]) -> dict[str, Any]:
    """What the headers say of the slices, for the record: numbers, and words of our own."""
    codings = [header.coding for header in slices if header.coding]
    paddings = sorted({coding.padding for coding in codings if coding.padding})
    rescales = sorted({(coding.slope, coding.intercept) for coding in codings})
    bits = {(c.bits_allocated, c.bits_stored, "signed" if c.signed else "unsigned") for c in codings}
    return {
        "transfer_syntax": ", ".join(sorted({syntax_name(header.syntax) for header in slices})),
        "lossy": any(header.lossy for header in slices),
        "bits": ", ".join(f"{stored} of {allocated} {sign}" for allocated, stored, sign in sorted(bits)),
        "rescale": few([f"slope {slope:g} intercept {intercept:g}" for slope, intercept in rescales]),
        "padding": few([f"{low}" if low == high else f"{low} to {high}" for low, high in paddings]),
        "padding_source": "header" if paddings else "below -1100 HU",
        "series_number": slices[0].number,
        "kvp": slices[0].kvp,
        "maker": slices[0].maker,
        "contrast": slices[0].contrast,
        "missing_attributes": sorted({name for header in slices for name in header.missing}),
    }


def interleaved(slices: Sequence[SliceHeader]) -> list[str]:
    """A note when slices of several acquisitions lie among one another: two phases that were not scanned in one place.

    Slices are in order. Within sound stacks acquisitions follow one another, one for each rotation or block.
    """
    for name in ("TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber"):
        places: dict[str, list[int]] = defaultdict(list)
        for index, header in enumerate(slices):
            places[header.phase[PHASES.index(name)]].append(index)
        wide = [found for found in places.values() if len(found) > 2 and 2 * (found[-1] - found[0]) > len(slices)]
        if len(wide) > 1:
            return [f"slices of {len(wide)} acquisitions lie among one another ({name}): are they phases?"]
    return []


def few(texts: list[str]) -> str:
    """The first three of some texts, and how many more there are."""
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def notes_on_record(slices: Sequence[SliceHeader], qc: dict[str, Any]) -> list[str]:
    """What a reader should know beside the geometry, a sentence each."""
    found = []
    lost = Counter({reason: count for reason, count in qc["excluded"].items() if reason in LOST})
    if lost:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items()))
        found.append(f"left out, though they may be slices: {reasons}")
    if qc["duplicates"]:
        found.append(f"equal duplicates left out: {qc['duplicates']}")
    if qc["other_volumes"]:
        found.append(f"other volumes of the same place left out: {qc['other_volumes']}")
    if qc["other_series"]:
        found.append(f"other CT series in the folder left out: {few(qc['other_series'])}")
    if any(header.unit == "US" for header in slices):
        found.append("rescale type US: the unit of its values is not stated, taken as HU")
    codings = {header.coding for header in slices if header.coding and header.coding.padding}
    if any(max(c.padding) * c.slope + c.intercept > PADDING_HU for c in codings if c.padding):
        found.append("the stated padding has values of tissue: pixels of these values were taken for air")
    found += interleaved(slices)
    if qc["twelve_bit_fix"]:
        found.append(f"12-bit values had wrapped and were put right ({qc['twelve_bit_evidence']})")
    if qc["lossy"]:
        found.append("its pixels have been compressed with loss")
    if qc["constant_slices"]:
        found.append(f"slices that have one value only: {qc['constant_slices']}")
    median = qc["tissue_median_hu"]
    if median is not None and not TISSUE_MEDIAN[0] <= median <= TISSUE_MEDIAN[1]:
        found.append(f"the median of its tissue is {median:g} HU; heads have 10 to 60")
    return found
