"""Free texts of headers, understood: everybody writes them as they like, and none of them reaches any output."""

import re

REFORMATS = frozenset(("REFORMATTED", "MPR", "MIP", "MINIP", "PROJECTION IMAGE", "VRT", "3D", "CSA RESAMPLED"))
"""Words of ImageType of an image computed from slices."""

MAKERS = ("GE", "SIEMENS", "PHILIPS", "TOSHIBA", "CANON", "HITACHI", "NEUSOFT", "UIH", "UNITED IMAGING", "SAMSUNG")
"""Makers of scanners that are told; no other text of a header is."""

NO_CONTRAST = frozenset(("", "0", "N", "NATIVE", "NIL", "NO", "NONE", "UNENHANCED", "W/O", "WITHOUT"))
"""First words of ContrastBolusAgent, which is free text, that say that there was none."""

UNIT_NAMES = {"HOUNSFIELD": "HU", "HOUNSFIELD UNIT": "HU", "HOUNSFIELD UNITS": "HU", "UNSPECIFIED": "US"}
"""What RescaleType is called by those who write it out."""

SHARP_WORDS = ("BONE", "EDGE", "LUNG", "SHARP", "ULTRA", "HRES", "DETAIL")
"""ASSUME: what kernels for bone and lung are called, where their names are words (GE)."""


def has_contrast(agent: str) -> bool:
    """Whether ContrastBolusAgent, in capitals, names one: `NON-IONIC` does, `NON-CONTRAST` does not."""
    first = next(iter(agent.split()), "").rstrip(".,;:")
    return first not in NO_CONTRAST and not agent.startswith(("NON-CONTRAST", "NON CONTRAST", "NONCONTRAST"))


def known_maker(manufacturer: str) -> str:
    """Which of MAKERS made the scanner; empty: none of them."""
    return next((name for name in MAKERS if f" {name}" in f" {manufacturer.upper()}"), "")


def known_unit(rescale_type: str) -> str:
    """RescaleType as the standard writes it; HU when it is empty."""
    unit = rescale_type.upper()
    return UNIT_NAMES.get(unit, unit) or "HU"


def is_sharp(kernel: str) -> bool:
    """Whether a kernel is one for bone or lung; names that say nothing are taken for soft.

    ASSUME: Siemens' and Philips' newer names end in a number of 55 and more (B60f, Hr64, H70h); Canon's and Toshiba's
    FC30 to FC59 and FC80 up are for bone and lung; Philips' YA to YE and L are for lung and bone.
    """
    name = kernel.partition("\\")[0].strip().upper()
    if any(word in name for word in SHARP_WORDS) or name in ("L", "YA", "YB", "YC", "YD", "YE"):
        return True
    canon = re.match(r"FC(\d+)", name)
    if canon:
        return 30 <= int(canon[1]) < 60 or int(canon[1]) >= 80
    strength = re.match(r"[A-Z]{1,2}(\d\d)", name)
    return strength is not None and int(strength[1]) >= 55
