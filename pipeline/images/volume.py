"""One CT series of a folder as a volume in Hounsfield units (HU), and a record of how it was read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ImageError
from pipeline.image_settings import SeriesSettings
from pipeline.images.decoding import MOST_PIXELS, read_stored
from pipeline.images.dicom import SliceHeader, read_headers
from pipeline.images.elements import quiet_pydicom
from pipeline.images.hounsfield import (
    AIR,
    WRAP_CUT,
    Shares,
    border_evidence,
    is_wrapped,
    may_be_wrapped,
    to_hounsfield,
    wrap_evidence,
)
from pipeline.images.record import geometry_record, header_record, notes_on_record
from pipeline.images.repeats import one_at_each
from pipeline.images.selection import choose, too_few
from pipeline.images.stacking import Geometry, measure, notes, stack

MOST_VOXELS = 1 << 31
"""ASSUME: of a series: 8,192 slices of 512 x 512, 4 GB."""

UNITS = ("HU", "US")
"""ASSUME: US, which is DICOM's word for "unspecified", means what an absent RescaleType means: HU. A note says so."""

PERFUSION = frozenset(("CBF", "CBV", "MTT", "RCBF", "RCBV", "RMTT", "TMAX", "TTP"))
"""Words of ImageType of an image of blood flow, volume or time."""

OTHER_UNITS = ("OD", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "MGML", "table")
"""Other units that are named when they are met; no other text of a header is."""


def read_volume(
    files: Sequence[Path], settings: SeriesSettings, wanted: str = ""
) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """The HU (z, y, x) of a series, between -1024 and 3071, and its properties: geometry, notes and `qc`, the record.

    Args:
        files: of one folder.
        settings: how to choose and what to refuse.
        wanted: digest of the SeriesNumber or SeriesInstanceUID to read; empty: the settings choose.

    Raises:
        ImageError: there is no series that can be read; the message says what was found and which setting overrides.
    """
    with quiet_pydicom() as caught:
        headers, excluded = read_headers(files)
        choice = choose(headers, excluded, settings, wanted)
        check_headers(choice.headers, settings)
        stacked, duplicates, others = one_at_each(stack(choice.headers, settings.order != "position"), settings)
        slices = [at_position[0] for at_position in stacked.slices]
        if len(slices) < settings.min_slices:
            raise ImageError(too_few(f"{len(slices)} slices", settings))
        geometry = measure(stacked)
        said = notes(geometry)
        if geometry.n_missing and settings.missing_slices == "refuse":
            raise ImageError(f"{said[0]}: export this series again, or set series.missing_slices to note")
        volume, record = read_pixels(slices)
    shares: Shares = record.pop("shares")
    if not shares.looks_like_hu:
        found = f"{shares.air:.1%} of its pixels are air and {shares.tissue:.1%} are tissue"
        if settings.hu_check == "refuse":
            raise ImageError(
                f"values do not look like Hounsfield units ({found}; usual are more than 5 % and 1.5 %): check its "
                "rescaling, or set series.hu_check to note"
            )
        said.append(f"does not look like Hounsfield units: {found}")
    qc = {
        "n_files": len(files),
        "n_read": len(slices),
        "excluded": dict(sorted(excluded.items())),
        "other_series": list(choice.rejected),
        "duplicates": duplicates,
        "other_volumes": others,
        **geometry_record(geometry),
        **header_record(slices),
        **record,
        "warnings": len(caught),
    }
    said += notes_on_record(slices, qc)
    if settings.field_mm:
        volume, geometry = fit_field(volume, geometry, settings.field_mm)
    properties = {
        **geometry.properties(),
        "instance_number": [header.instance for header in slices],
        "sop_hash": [header.sop for header in slices],
        "qc": qc,
        "notes": said,
    }
    return volume, properties


def check_headers(headers: Sequence[SliceHeader], settings: SeriesSettings) -> None:
    """Refuse a series whose headers say that its values are no HU, or that a name is written into its pixels.

    Raises:
        ImageError: they do.
    """
    total = len(headers)
    strange = [header.unit for header in headers if header.unit not in UNITS]
    if strange:
        unit = f"rescale type {strange[0]}" if strange[0] in OTHER_UNITS else "another rescale type"
        raise ImageError(
            f"values of {len(strange)} of {total} slices are not in Hounsfield units ({unit}): use the original CT, or "
            "leave this series out"
        )
    maps = sum(not PERFUSION.isdisjoint(header.words) for header in headers)
    if maps and settings.hu_check == "refuse":
        raise ImageError(
            f"{maps} of {total} slices are a perfusion map, whose values are not Hounsfield units: use the original "
            "CT, or set series.hu_check to note"
        )
    unscaled = sum(header.coding is None for header in headers)
    if unscaled:
        raise ImageError(
            f"{unscaled} of {total} slices state no RescaleSlope and RescaleIntercept, so their values are not in "
            "Hounsfield units: use the original CT, or leave this series out"
        )
    burned = sum(header.burned_in for header in headers)
    if burned and settings.burned_in == "refuse":
        raise ImageError(
            f"{burned} of {total} slices have text burned into their pixels, which may name a patient: use the "
            "original CT, or set series.burned_in to allow"
        )


def read_pixels(slices: Sequence[SliceHeader]) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """HU (z, y, x) of slices of one size, and of the record: decoders, `twelve_bit_fix`, `constant_slices`, `shares`.

    Whether 12-bit values have wrapped is judged over all slices that may have, which wait for the verdict in memory.
    """
    columns, rows = slices[0].extent
    if len(slices) * rows * columns > MOST_VOXELS:
        raise ImageError(f"{len(slices)} slices of {columns} x {rows} pixels are no CT series: leave this folder out")
    volume = np.empty((0, rows, columns), dtype=np.int16)
    shares = Shares()
    decoders: set[str] = set()
    waiting: list[tuple[int, NDArray[Any]]] = []
    high = border = 0
    for index, header in enumerate(slices):
        assert header.coding is not None  # check_headers
        stored, decoder = read_stored(header, f"slice {index + 1} of {len(slices)}")
        decoders.add(decoder)
        if not index:  # not before: a damaged header asks for any size
            volume = np.empty((len(slices), rows, columns), dtype=np.int16)
        if may_be_wrapped(header.coding):
            found = border_evidence(stored, header.coding)
            high, border = high + found[0], border + found[1]
            waiting.append((index, stored))
            continue
        shares.add(stored, header.coding)
        to_hounsfield(stored, header.coding, out=volume[index])
    wrapped = WRAP_CUT if is_wrapped(high, border) else None
    for index, stored in waiting:
        coding = slices[index].coding
        assert coding is not None
        shares.add(stored, coding, wrapped)
        to_hounsfield(stored, coding, out=volume[index], wrapped_at=wrapped)
    return volume, {
        "decoder": ", ".join(sorted(decoders)),
        "twelve_bit_fix": wrapped is not None,
        "twelve_bit_evidence": wrap_evidence(high, border) if waiting else "",
        "constant_slices": sum(is_constant(plane) for plane in volume),
        "air_share": round(shares.air, 4),
        "tissue_share": round(shares.tissue, 4),
        "tissue_median_hu": shares.tissue_median,
        "shares": shares,
    }


def is_constant(plane: NDArray[np.int16]) -> bool:
    """Whether all pixels (y, x) have one value; most planes are told by two of them."""
    rows, columns = plane.shape
    first = plane[0, 0]
    return bool(plane[rows // 2, columns // 2] == first and (plane == first).all())


def fit_field(volume: NDArray[np.int16], geometry: Geometry, field_mm: float) -> tuple[NDArray[np.int16], Geometry]:
    """A volume (z, y, x) cropped, or padded with air, around its middle to a square of `field_mm`; and its geometry.

    Raises:
        ImageError: the series states no PixelSpacing, or one that makes a slice of more than MOST_PIXELS.
    """
    if not geometry.spacing:
        raise ImageError(
            "no PixelSpacing is stated, which series.field_mm needs: set it to 0, or leave this series out"
        )
    sides = [max(1, round(field_mm / between)) for between in geometry.spacing]
    if sides[0] * sides[1] > MOST_PIXELS:
        raise ImageError(
            f"a field of {field_mm:g} mm has {sides[1]} x {sides[0]} pixels: lower series.field_mm, or leave this "
            "series out"
        )
    fitted = np.full((len(volume), *sides), AIR, dtype=np.int16)
    source, target, moved = [], [], []
    for have, want in zip(volume.shape[1:], sides, strict=True):
        kept = min(have, want)
        source.append(slice((have - kept) // 2, (have - kept) // 2 + kept))
        target.append(slice((want - kept) // 2, (want - kept) // 2 + kept))
        moved.append(source[-1].start - target[-1].start)
    fitted[:, target[0], target[1]] = volume[:, source[0], source[1]]
    if geometry.affine:
        affine = np.array(geometry.affine)
        affine[:, 3] = affine @ (moved[1], moved[0], 0, 1)
        geometry = replace(geometry, affine=tuple(map(tuple, affine.tolist())))
    return fitted, geometry
