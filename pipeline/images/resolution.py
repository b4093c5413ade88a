"""The µm per pixel of a slide's finest level: who says so, and whether it can be true.

Nothing is guessed silently: a value comes from the file, from the user, or, where the user allows it, from the power of
the objective, and the result says from where.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

from pipeline.errors import ImageError
from pipeline.image_settings import SlideSettings

Source = Literal["property", "tiff", "ome", "objective", "labels", "config"]

PLAUSIBLE_MPP = (0.05, 10.0)
"""ASSUME: µm per pixel that a scanner can have."""

COMMON_MPP = (0.2, 0.6)
"""ASSUME: µm per pixel that most slides have; a slip of a power of ten is recognised by it."""

SAME = 0.05
"""Relative difference up to which two values are one: between the axes, and between the file and the user."""

NOTED_RATIO, IMPLAUSIBLE_RATIO = 1.5, 4.0
"""ASSUME: an objective of power 10 gives 1 µm per pixel, and others in proportion; adaptors between objective and
camera change that by up to four, and by more than one and a half seldom enough to be worth a note."""

SCREENS = {25400 / number: number for number in (72, 96, 300)}
"""µm per pixel of what programs write that know pictures and not slides, and the pixels per inch that it is."""

UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
"""µm of OME's units of length; it writes µ as the micro sign, others as the Greek letter."""

MAX_XML = 1 << 20
"""Characters of OME-XML that are looked at: the sizes stand near its beginning."""

REMEDY = "state the true one in the `mpp` column of labels.csv, or set slide.mpp_policy"


@dataclass(frozen=True)
class Resolution:
    """µm per pixel at a slide's finest level, with its origin."""

    mpp: float
    source: Source
    notes: tuple[str, ...]
    """What a careful reader should know, one line each; without any path."""


def find_resolution(
    facts: Mapping[str, str], settings: SlideSettings, stated: float | None, policy: str = ""
) -> Resolution:
    """The µm per pixel of a slide, as its file, its row of the labels and the settings together say it.

    Args:
        facts: OpenSlide's properties of the file; empty for a plain image.
        settings: `mpp_policy` and `native_mpp` of the cohort.
        stated: `mpp` of the image's row of the labels; comes before the cohort's.
        policy: `mpp_policy` of that row; empty: override where the row states an mpp, else the cohort's.

    Raises:
        ImageError: no value that can be true.
    """
    found, problem = _in_the_file(facts)
    power = _number(facts.get("openslide.objective-power", ""))
    chosen = policy or ("override" if stated is not None else settings.mpp_policy)
    if chosen == "require" or (found and chosen == "assume"):
        if found is None:
            raise ImageError(f"{problem}: {REMEDY}")
        return found

    source: Source = "config" if stated is None else "labels"
    mpp = stated or settings.native_mpp
    if not mpp:
        if chosen == "assume" and power and not _implausible(10 / power, None):
            return Resolution(10 / power, "objective", (f"{problem}: {10 / power:g} by objective power {power:g}",))
        raise ImageError(f"{problem}: {REMEDY}")
    if wrong := _implausible(mpp, None):
        raise ImageError(f"{wrong}: {REMEDY}")
    notes = _beside_the_objective(mpp, power)
    if chosen == "assume":
        notes = (f"{problem}: assumed", *notes)
    elif found and not _same(mpp, found.mpp):
        notes = (f"mpp {mpp:g} is stated where the file says {found.mpp:g}", *notes)
    return Resolution(mpp, source, notes)


def _in_the_file(facts: Mapping[str, str]) -> tuple[Resolution | None, str]:
    """The first plausible value that the file states; or else none, and what is wrong with the first that it states."""
    comment = facts.get("openslide.comment") or facts.get("tiff.ImageDescription", "")
    notes: list[str] = []
    candidates: list[tuple[Source, float | None, float | None]] = []
    try:
        candidates.append(("ome", *_ome_sizes(comment)))
    except ValueError as error:
        notes.append(str(error))
    # OpenSlide makes the one of a generic TIFF file from the tags XResolution and YResolution.
    second: Source = "tiff" if facts.get("openslide.vendor") == "generic-tiff" else "property"
    candidates.append((second, _number(facts.get("openslide.mpp-x", "")), _number(facts.get("openslide.mpp-y", ""))))
    power = _number(facts.get("openslide.objective-power", ""))
    found: Resolution | None = None
    for source, x, y in candidates:
        if x is None or y is None:
            continue
        if problem := _implausible(x, power) or _implausible(y, power) or _uneven(x, y):
            if found is None:
                notes.append(problem)
        elif found is None:
            mpp = (x + y) / 2
            found = Resolution(mpp, source, (*notes, *_beside_the_objective(mpp, power)))
        elif not _same((x + y) / 2, found.mpp):
            found = Resolution(found.mpp, found.source, (*found.notes, f"the file also says mpp {(x + y) / 2:g}"))
    return found, notes[0] if notes else "the file states no mpp"


def _ome_sizes(comment: str) -> tuple[float | None, float | None]:
    """PhysicalSizeX and PhysicalSizeY in µm of the first image of an OME-XML comment; None where it states none.

    Raises:
        ValueError: it declares a document type; what follows could define entities that grow without end.
    """
    text = comment[:MAX_XML].strip("\ufeff\0 \r\n\t")
    if not text.startswith("<"):
        return None, None
    if "<!DOCTYPE" in text:
        raise ValueError("the OME-XML has a DOCTYPE, which is not read")
    parser: ElementTree.XMLPullParser[ElementTree.Element] = ElementTree.XMLPullParser(["start"])
    parser.feed(text.encode("utf-8", "replace").decode())
    with suppress(ElementTree.ParseError):  # cut off or damaged: what stands before the damage counts
        for number, event in enumerate(parser.read_events()):
            element: Any = event[-1]
            name = element.tag.rpartition("}")[2]
            if number == 0 and name != "OME":
                break
            if name == "Pixels":
                return _length(element.attrib, "PhysicalSizeX"), _length(element.attrib, "PhysicalSizeY")
    return None, None


def _length(attributes: Mapping[str, str], name: str) -> float | None:
    number, unit = _number(attributes.get(name, "")), UNITS.get(attributes.get(f"{name}Unit", "µm"))
    return None if number is None or unit is None else number * unit


def _number(text: str) -> float | None:
    """A finite number above zero."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def _implausible(mpp: float, power: float | None) -> str:
    """Why no scanner, or not one with this objective, has such a resolution; empty when one may have."""
    lowest, highest = PLAUSIBLE_MPP
    if not lowest <= mpp <= highest:
        why = f"{lowest:g} to {highest:g} µm per pixel is plausible"
    elif power and not 1 / IMPLAUSIBLE_RATIO <= mpp * power / 10 <= IMPLAUSIBLE_RATIO:
        why = f"objective power {power:g} suggests {10 / power:g}"
    else:
        return ""
    for screen, number in SCREENS.items():
        if abs(mpp / screen - 1) < 0.001:
            return f"mpp {mpp:g} is implausible ({number} pixels per inch: a screen's, not a scanner's)"
    low, high = (7 / power, 13 / power) if power else COMMON_MPP
    for shift in (-4, -3, -2, -1, 1, 2, 3, 4):
        if low <= mpp * 10.0**shift <= high:
            why += f"; {mpp * 10.0**shift:g} would be: a slip of a power of ten?"
    return f"mpp {mpp:g} is implausible ({why})"


def _uneven(x: float, y: float) -> str:
    return "" if _same(x, y) else f"mpp {x:g} along x and {y:g} along y differ by more than {SAME * 100:g} %"


def _same(first: float, second: float) -> bool:
    return abs(first - second) <= SAME * min(first, second)


def _beside_the_objective(mpp: float, power: float | None) -> tuple[str, ...]:
    """A note where the resolution is unusual for the objective."""
    ratio = mpp * power / 10 if power else 1.0
    if 1 / NOTED_RATIO <= ratio <= NOTED_RATIO:
        return ()
    return (f"mpp {mpp:g} is {ratio:.2g} of what objective power {power:g} suggests",)
