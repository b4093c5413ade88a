"""Slide settings under the names of the tools they come from, so that a study can be compared with theirs.

The numbers are those of CLAM's preset tables, of TRIDENT 0.3 and of STAMP 2.5. What differs from these tools:

* The grid is anchored at the slide's origin. CLAM starts a grid at the bounding box of each piece of tissue, so that
  tiles of neighbouring pieces can overlap.
* CLAM segments at the level nearest to a downsample of 64, whatever that is in µm; here it is 16 µm per pixel, which
  is a downsample of 64 of a slide of 0.25 µm.
* TRIDENT tiles by buckets of magnification; here 0.5 µm is 0.5 µm. Its default segmenter is a network with weights of
  its own; here it is its Otsu alternative. Its smallest area is in pixels of a picture 2000 pixels high; here it is the
  0.1 mm² that this is on a slide 20 mm high.
* STAMP takes the brightness of squares of up to 1024 pixels of level 0, of one tile or several; here of each tile.
  ASSUME: its brightness is Pillow's, the luma, and not the mean of the channels.
"""

from typing import Any

CLAM: dict[str, Any] = {
    "mpp": 0,
    "tile": 256,
    "stride": 256,
    "edge": "pad",
    "tissue": {"method": "clam", "mpp": 16.0, "area_unit": "patch512", "keep": "four_points_any"},
}


def clam(threshold: int, median: int, close: int, min_area: float, min_hole: float, max_holes: int) -> dict[str, Any]:
    """One line of CLAM's preset tables."""
    own = {"threshold": threshold, "median": median, "close": close}
    areas = {"min_area": min_area, "min_hole": min_hole, "max_holes": max_holes}
    return {**CLAM, "tissue": {**CLAM["tissue"], **own, **areas}}


PRESETS: dict[str, dict[str, Any]] = {
    "clam-biopsy": clam(15, 11, 2, 1, 1, 2),
    "clam-resection": clam(15, 11, 4, 100, 16, 8),
    "clam-tcga": clam(8, 7, 4, 16, 4, 8),
    "trident-20x-256": {
        "mpp": 0.5,
        "tile": 256,
        "stride": 256,
        "edge": "inside",
        "tissue": {"method": "otsu", "mpp": 8.0, "min_area": 0.1, "max_holes": 0, "keep": "share", "min_share": 0.0},
    },
    "stamp-1.14": {
        "mpp": 256 / 224,
        "tile": 224,
        "stride": 224,
        "edge": "inside",
        "tissue": {"method": "brightness", "mpp": 256.0, "brightness": 240, "keep": "share", "min_share": 0.5},
        "quality": {"min_edges": 0.02},
    },
}


def with_preset(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a slide section, with those that its preset states.

    Raises:
        ValueError: a key says something else than the preset.
    """
    name = values.get("preset", "none")
    if name not in PRESETS:
        return values  # `none`, or a misspelt one, which the model refuses
    merged, conflicts = merge(values, PRESETS[name], "")
    if conflicts:
        raise ValueError(
            f"the preset {name} says otherwise about {', '.join(conflicts)}: remove these keys, or the preset"
        )
    return merged


def merge(values: dict[str, Any], preset: dict[str, Any], above: str) -> tuple[dict[str, Any], list[str]]:
    """Both together, and the keys about which they differ, as `tissue.method (clam, not otsu)`."""
    merged, conflicts = dict(values), []
    for key, wanted in preset.items():
        found = values.get(key)
        if isinstance(wanted, dict) and (found is None or isinstance(found, dict)):
            merged[key], below = merge(found or {}, wanted, f"{above}{key}.")
            conflicts += below
        elif found is None:
            merged[key] = wanted
        elif found != wanted:
            conflicts.append(f"{above}{key} ({wanted:g} and not {found})" if isinstance(wanted, float) else
                             f"{above}{key} ({wanted} and not {found})")  # fmt: skip
    return merged, conflicts
