"""Outlines of tissue that people draw: polygons in GeoJSON files, as QuPath writes and reads them.

Points are (x, y) in level 0 pixels, where pixel (column, row) reaches from (column, row) to (column + 1, row + 1).

ASSUME: QuPath counts from the corner of the slide. It counts from the corner of the part that was scanned where
OpenSlide states one (`openslide.bounds-x`, `-y`: MIRAX above all): then that corner is the `l0_offset` asked for here.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.companions import annotation_names
from pipeline.errors import ImageError

MAX_BYTES = 50_000_000
"""About a million points; what is larger holds cells, not tissue."""

LARGEST = 1e9
"""Level 0 pixels; no slide has so many along a side."""

NOT_TISSUE = frozenset(("ignore*", "ignore", "exclude", "background", "other", "artifact", "artefact"))
"""Classes, in lower case, whose polygons are cut out of the others."""

WITHOUT_AREA = frozenset(("Point", "MultiPoint", "LineString", "MultiLineString"))

DECIMALS = 3
"""A centre within half a thousandth of a mask pixel of a polygon's border lies on the border."""

EDGES_AT_ONCE = 1000
"""Edges that are drawn at once: 16 MB for each 1000 rows that they cross."""

REMEDY = "export the annotation from QuPath again, as GeoJSON"


@dataclass(frozen=True, eq=False)
class Polygon:
    """An area that somebody drew."""

    rings: list[NDArray[np.float64]]
    """(point, 2), x first, in level 0 pixels: the outer ring, then the holes. Whether they are closed is all one."""
    is_tissue: bool = True
    """False: its class says that it is cut out of the others."""


def annotation_of(slide: Path) -> Path | None:
    """The annotation beside a slide's first file, if there is one."""
    # Not what the folder holds: that would be listed once for each of ten thousand slides in it.
    paths = [slide.parent / name for name in annotation_names(slide.name)]
    return next((path for path in paths if os.path.lexists(path)), None)


def read_geojson(path: Path) -> list[Polygon]:
    """The polygons of a GeoJSON file, in its order; points and lines are left out.

    Raises:
        ImageError: it cannot be read, is no GeoJSON, or holds no polygon of tissue.
    """
    polygons = []
    todo = [(_document(path), True)]  # no recursion: collections may be nested as deep as a file is long
    while todo:
        item, is_tissue = todo.pop()
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "FeatureCollection":
            todo += [(feature, is_tissue) for feature in reversed(_members(item, "features"))]
        elif kind == "Feature":
            if item.get("geometry") is not None:
                todo.append((item["geometry"], is_tissue and _class_of(item).lower() not in NOT_TISSUE))
        elif kind == "GeometryCollection":
            todo += [(geometry, is_tissue) for geometry in reversed(_members(item, "geometries"))]
        elif kind == "Polygon":
            polygons.append(Polygon(_rings(_members(item, "coordinates")), is_tissue))
        elif kind == "MultiPolygon":
            polygons += [Polygon(_rings(rings), is_tissue) for rings in _members(item, "coordinates")]
        elif not isinstance(kind, str) or kind not in WITHOUT_AREA:
            raise ImageError(f"the annotation is no GeoJSON: {REMEDY}")
    polygons = [polygon for polygon in polygons if polygon.rings]
    if not any(polygon.is_tissue for polygon in polygons):
        found = "only polygons of classes that are cut out" if polygons else "no polygon"
        raise ImageError(f"the annotation holds {found}: outline the tissue in it, or remove it")
    return polygons


def rasterise(
    polygons: Sequence[Polygon],
    shape: tuple[int, int],
    l0_per_pixel: tuple[float, float],
    l0_offset: tuple[float, float] = (0.0, 0.0),
) -> NDArray[np.bool_]:
    """A mask (row, column): True where a pixel's centre lies in a polygon of tissue and in none that is cut out.

    The border of a polygon belongs to it, that of its holes too.

    Args:
        polygons: in any order.
        shape: of the mask, (rows, columns).
        l0_per_pixel: level 0 pixels per pixel of the mask, along x and y.
        l0_offset: x and y of the polygons' origin, in level 0 pixels.
    """
    masks = {is_tissue: np.zeros(shape, dtype=np.bool_) for is_tissue in (True, False)}
    for polygon in polygons:
        rings = [np.round((ring + l0_offset) / l0_per_pixel, DECIMALS) for ring in polygon.rings]
        draw(masks[polygon.is_tissue], rings)
    return masks[True] & ~masks[False]


def draw(mask: NDArray[np.bool_], rings: Sequence[NDArray[np.float64]]) -> None:
    """Add a polygon to a mask (row, column): the pixels whose centres lie in or on it.

    Along each row of centres, every edge that is crossed leads into the polygon or out of it.

    Args:
        mask: is changed.
        rings: (point, 2), x first, in mask pixels; what lies in an even number of them lies in none.
    """
    points = np.concatenate(rings)
    # Centres have whole numbers from here on. Only the part of the mask around the polygon is looked at.
    low = np.clip(np.ceil(points.min(axis=0) - 0.5), 0, mask.shape[::-1]).astype(np.int64)
    high = np.clip(np.floor(points.max(axis=0) - 0.5) + 1, low, mask.shape[::-1]).astype(np.int64)
    columns, rows = (high - low).tolist()
    if not rows or not columns:
        return
    start = points - 0.5 - low
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]) - 0.5 - low
    flips = np.zeros((rows, columns + 1), dtype=np.uint8)  # may overflow: only odd or even matters
    border = np.zeros((rows, columns), dtype=np.bool_)
    _mark(border, start[:, 0], start[:, 1])
    for at in range(0, len(start), EDGES_AT_ONCE):
        (x0, y0), (x1, y1) = start[at : at + EDGES_AT_ONCE].T, end[at : at + EDGES_AT_ONCE].T
        # An edge crosses the rows from its upper end on and before its lower end: a corner is never counted twice.
        first = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(np.int64)
        count = np.clip(np.ceil(np.maximum(y0, y1)), first, rows).astype(np.int64) - first
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(len(edge)) - np.repeat(count.cumsum() - count, count) + first[edge]
        slope = (x1 - x0)[edge] / (y1 - y0)[edge]
        x = np.round(x0[edge] + (row - y0[edge]) * slope, DECIMALS)
        np.add.at(flips, (row, np.clip(np.ceil(x), 0, columns).astype(np.int64)), 1)
        _mark(border, x, row)
        for x_from, x_to, y in zip(*(end[(y0 == y1) & (y0 % 1 == 0)] for end in (x0, x1, y0)), strict=True):
            if 0 <= y < rows:
                left, right = min(x_from, x_to), max(x_from, x_to)
                border[int(y), max(0, math.ceil(left)) : max(0, math.floor(right) + 1)] = True
    inside = flips.cumsum(axis=1, dtype=np.uint8)[:, :columns] % 2 == 1
    mask[low[1] : high[1], low[0] : high[0]] |= inside | border


def write_geojson(
    outline: NDArray[np.int32], l0_per_pixel: tuple[float, float], l0_offset: tuple[float, float] = (0.0, 0.0)
) -> str:
    """A GeoJSON file of an outline, that QuPath opens and `read_geojson` reads: a feature for each piece of tissue.

    Polygons run through the centres of border pixels. What is nowhere more than one pixel wide has no area and is
    left out; rasterised at the same resolution, all else is again the mask that the outline is of.

    Args:
        outline: (point, 3): number of the ring, x, y in mask pixels; a piece, then its holes, as
            `pipeline.images.tissue.Tissue.outline` gives them.
        l0_per_pixel: level 0 pixels per pixel of the mask, along x and y.
        l0_offset: x and y of the origin that is wanted, in level 0 pixels.
    """
    pieces: list[list[list[list[float]]]] = []
    for ring in np.split(outline[:, 1:], np.flatnonzero(np.diff(outline[:, 0])) + 1):
        x, y = ring.T.astype(np.float64)
        turn = float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
        if turn <= 0:
            pieces.append([])
        if turn:
            l0 = np.round((ring + 0.5) * l0_per_pixel - l0_offset, 4).tolist()
            pieces[-1].append([*l0, l0[0]])
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"objectType": "annotation", "classification": {"name": "Tissue", "color": [200, 0, 0]}},
        }
        for rings in pieces
        if rings
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def _mark(border: NDArray[np.bool_], x: NDArray[np.float64], y: NDArray[Any]) -> None:
    """Set those places that are the centre of a pixel."""
    rows, columns = border.shape
    hit = (x % 1 == 0) & (y % 1 == 0) & (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    border[y[hit].astype(np.int64), x[hit].astype(np.int64)] = True


def _document(path: Path) -> Any:
    """What the file holds; a bare list of features as a collection of them."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"the annotation has more than {MAX_BYTES // 10**6} MB: export annotations, not cells")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ImageError(f"the annotation cannot be read: {error.strerror or type(error).__name__}") from None
    except (ValueError, RecursionError):
        raise ImageError(f"the annotation is no JSON: {REMEDY}") from None
    return {"type": "FeatureCollection", "features": document} if isinstance(document, list) else document


def _members(item: dict[str, Any], name: str) -> list[Any]:
    members = item.get(name)
    if not isinstance(members, list):
        raise ImageError(f"the annotation is no GeoJSON, a {item['type']} has no {name}: {REMEDY}")
    return members


def _class_of(feature: dict[str, Any]) -> str:
    """The name of a feature's class, as QuPath has it; empty without one."""
    properties = feature.get("properties")
    found = properties.get("classification") if isinstance(properties, dict) else None
    name = found.get("name") if isinstance(found, dict) else found
    return name if isinstance(name, str) else ""


def _rings(coordinates: Any) -> list[NDArray[np.float64]]:
    """The rings of a polygon, (point, 2); a third coordinate is left out."""
    if not isinstance(coordinates, list):
        raise ImageError(f"the annotation is no GeoJSON, a polygon has no rings: {REMEDY}")
    rings = []
    for ring in coordinates:
        try:
            points = np.asarray(ring)
        except ValueError:
            points = np.empty(0)  # some points have more coordinates than others
        if points.ndim != 2 or points.shape[1] < 2 or points.dtype.kind not in "iuf":
            raise ImageError(f"the annotation is no GeoJSON, a ring is no list of points: {REMEDY}")
        points = points[:, :2].astype(np.float64)
        if not (np.abs(points) < LARGEST).all():
            raise ImageError(f"the annotation has a coordinate that is no finite number below {LARGEST:g}: {REMEDY}")
        rings.append(points)
    return rings
