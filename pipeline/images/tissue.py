"""What of a slide is tissue, and how much of each tile.

A mask covers the slide from edge to edge. Places in it are (x, y) in mask pixels: pixel (column, row) reaches from
(column, row) to (column + 1, row + 1). Arrays are (row, column).

Tissue hangs together over corners too (8-connected), so what surrounds it does not (4-connected): then every hole lies
in one piece. Areas are counts of pixels. CLAM takes the areas of polygons through the centres of the border pixels,
which are smaller by about half the border's length, and those of holes larger by as much.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.image_settings import TissueSettings

MIN_SATURATION, MAX_SATURATION = 0.05 * 255, 0.2 * 255
"""ASSUME: what is less saturated than 5 % is glass, and more than 20 % tissue, whatever Otsu's threshold says. So a
slide that is all white, or white with compression noise, has no tissue; and in a picture without any glass, which the
threshold divides into nuclei and stroma, both are tissue."""

PATCH512 = 512 * 512
"""Level 0 pixels in CLAM's unit of area."""

DECIMALS = 6
"""Of an area in mask pixels: sums of millions are only so exact, and where any tissue is enough, a billionth counts."""


@dataclass(frozen=True, eq=False)
class Tissue:
    """The tissue of one slide."""

    mask: NDArray[np.bool_]
    """(row, column); holes are False."""

    @cached_property
    def outer(self) -> NDArray[np.bool_]:
        """The mask with all that its pieces enclose, (row, column)."""
        glass = np.pad(self.mask, 1).astype(np.uint8)
        cv2.floodFill(glass, None, (0, 0), 2, flags=4)
        return np.asarray(glass[1:-1, 1:-1] != 2)

    @cached_property
    def _integral(self) -> NDArray[np.int32]:
        return np.asarray(cv2.integral(self.mask.astype(np.uint8)), dtype=np.int32)

    def share(self, near: NDArray[np.float64], far: NDArray[np.float64]) -> NDArray[np.float32]:
        """Share of each rectangle that is tissue, (tile,) between 0 and 1, exact for parts of pixels.

        Beyond the mask there is no tissue.

        Args:
            near: (tile, 2), x first: the corners nearest to the origin, in mask pixels.
            far: (tile, 2): the corners opposite to them.
        """
        extent, table = self.mask.shape[::-1], self._integral
        (left, top), (right, bottom) = np.clip(near, 0, extent).T, np.clip(far, 0, extent).T
        lower = interpolate(table, right, bottom) - interpolate(table, left, bottom)
        tissue = lower - interpolate(table, right, top) + interpolate(table, left, top)
        share = tissue.round(DECIMALS) / np.prod(np.subtract(far, near), axis=1)
        return np.asarray(np.clip(share, 0, 1), dtype=np.float32)

    def points(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether tissue is at each of these places, (point,). Places (point, 2), x first, in mask pixels."""
        return values_at(self.mask, points)

    def outline(self) -> NDArray[np.int32]:
        """The border pixels of the tissue as rings, (point, 3): number of the ring, x, y; (0, 3) without any.

        In mask pixels; their centres lie half a pixel further. Each piece is followed by its holes, which turn the
        other way and run through the pixels of tissue around them. Corners only: lines between them are straight.
        """
        tissue = self.mask.astype(np.uint8)
        # RETR_CCOMP would tell which hole is whose, in a time that grows with the square of their number.
        rings, _ = cv2.findContours(tissue, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        if not rings:
            return np.zeros((0, 3), dtype=np.int32)
        pieces, _ = _components(tissue, 8)
        piece = [pieces[ring[0, 0, 1], ring[0, 0, 0]] for ring in rings]
        is_hole = [cv2.contourArea(ring, oriented=True) > 0 for ring in rings]  # by the way it turns
        number = np.empty(len(rings), dtype=np.int64)
        number[np.lexsort((is_hole, piece))] = np.arange(len(rings))
        points = np.column_stack([number.repeat([len(ring) for ring in rings]), np.concatenate(rings).reshape(-1, 2)])
        return points[points[:, 0].argsort(kind="stable")].astype(np.int32)


def segment(
    picture: NDArray[np.uint8],
    readable: NDArray[np.bool_],
    settings: TissueSettings,
    pixel_area_mm2: float,
    l0_pixels_per_pixel: float,
) -> Tissue:
    """The tissue of a slide.

    Args:
        picture: (row, column, 3), RGB, of the whole slide.
        readable: (row, column); False where the slide could not be decoded. That takes no part in thresholds, and is
            offered as tissue, so that its tiles are read and their failures counted.
        settings: the section `slide.tissue` of the config.
        pixel_area_mm2: area of a pixel of the picture.
        l0_pixels_per_pixel: level 0 pixels, an area, that a pixel of the picture stands for.

    Raises:
        ConfigError: `settings.model` cannot be used.
    """
    mask = _mask(picture, readable, settings) | ~readable
    if settings.min_area or settings.min_hole or settings.max_holes >= 0:
        unit = PATCH512 / l0_pixels_per_pixel if settings.area_unit == "patch512" else 1 / pixel_area_mm2
        mask = large_pieces(mask, settings.min_area * unit, settings.min_hole * unit, settings.max_holes)
    return Tissue(mask | ~readable)


def keeps(
    tissue: Tissue, near: NDArray[np.float64], far: NDArray[np.float64], settings: TissueSettings
) -> NDArray[np.float32]:
    """How much speaks for each tile, (tile,) between 0 and 1.

    By share: the share of it that is tissue. By four points, halfway between its centre and its corners: 1 when any, or
    all, of them lie in a piece of tissue, its holes included, while the centre lies in no hole; else 0.

    Pieces that lie in a hole of another are no hole. CLAM looks at each piece alone: it also keeps a tile whose centre
    is in the hole around such a piece when a point of it is in the piece, and drops one that has only its centre there.

    Args:
        tissue: of the slide.
        near: (tile, 2), corners as for `Tissue.share`.
        far: (tile, 2).
        settings: the section `slide.tissue` of the config.
    """
    if settings.keep == "share":
        return tissue.share(near, far)
    centre, quarter = np.add(near, far) / 2, np.subtract(far, near) / 4
    signs = ((-1, -1), (1, -1), (-1, 1), (1, 1))
    inside = np.stack([values_at(tissue.outer, centre + quarter * sign) for sign in signs])
    enough = inside.any(axis=0) if settings.keep == "four_points_any" else inside.all(axis=0)
    return np.asarray(enough & ~values_at(tissue.outer & ~tissue.mask, centre), dtype=np.float32)


def large_pieces(mask: NDArray[np.bool_], min_area: float, min_hole: float, max_holes: int) -> NDArray[np.bool_]:
    """The mask without small pieces and small holes, (row, column).

    Args:
        mask: (row, column).
        min_area: pieces stay whose pixels, without those of their holes, are more than this.
        min_hole: holes of more pixels than this stay, the islands in them counted with them; others become tissue with
            all that is in them.
        max_holes: so many holes stay in a piece, its largest; -1: all.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    # Pieces and holes have numbers from 1; 0 stands for the pixels of the other kind. What is around all pieces has a
    # number among the holes, and no piece around it.
    pieces, piece_stats = _components(padded, 8)
    holes, hole_stats = _components(1 - padded, 4)
    hole_of, piece_of = _surrounding(pieces, piece_stats, holes), _surrounding(holes, hole_stats, pieces)
    net, own = (stats[:, cv2.CC_STAT_AREA].astype(np.float64) for stats in (piece_stats, hole_stats))
    net[0] = own[0] = 0

    areas, previous = own, np.zeros_like(own)
    while not np.array_equal(areas, previous):  # once per level of islands in holes
        previous = areas
        islands = net + np.bincount(piece_of, previous, minlength=len(net))
        islands[0] = 0
        areas = own + np.bincount(hole_of, islands, minlength=len(own))
        areas[0] = 0

    order = np.lexsort((-areas, piece_of))  # piece by piece, the largest hole first
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(piece_of[order], piece_of[order])
    small = (areas <= min_hole) | ((rank >= max_holes) & (max_holes >= 0))

    large = net > min_area
    filled, previous_filled = large[piece_of] & small, np.zeros(len(own), dtype=np.bool_)
    while not np.array_equal(filled, previous_filled):  # what lies in something filled is filled too
        previous_filled = filled
        filled = filled | filled[hole_of][piece_of]
    return np.asarray(((large | filled[hole_of])[pieces] | filled[holes])[1:-1, 1:-1])


def otsu(values: NDArray[np.uint8]) -> int:
    """Otsu's threshold of 8-bit values: above it lies the brighter class. 0 when there are not two different values."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    sum_below = (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sum_below / below - (sum_below[-1] - sum_below) / above
    return int(np.nan_to_num(below * above * gap**2, posinf=0.0).argmax())


def interpolate(table: NDArray[Any], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a table (row, column) between its entries; on an integral image exact for parts of pixels too."""
    column = np.clip(x.astype(np.int64), 0, table.shape[1] - 2)
    row = np.clip(y.astype(np.int64), 0, table.shape[0] - 2)
    dx, dy = x - column, y - row
    upper = table[row, column] * (1 - dx) + table[row, column + 1] * dx
    lower = table[row + 1, column] * (1 - dx) + table[row + 1, column + 1] * dx
    return np.asarray(upper * (1 - dy) + lower * dy)


def values_at(mask: NDArray[np.bool_], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Values of a mask (row, column) at places (point, 2), x first, in its pixels: (point,); False outside."""
    last = np.subtract(mask.shape[::-1], 1)
    places = np.floor(points).astype(np.int64)
    x, y = np.clip(places, 0, last).T
    return np.asarray(mask[y, x] & ((places >= 0) & (places <= last)).all(axis=1))


def _mask(picture: NDArray[np.uint8], readable: NDArray[np.bool_], settings: TissueSettings) -> NDArray[np.bool_]:
    """Tissue by the method of the settings, pixel by pixel, (row, column)."""
    match settings.method:
        case "otsu":
            saturation = np.asarray(PIL.Image.fromarray(picture).convert("HSV"))[..., 1]
            return np.asarray(saturation > np.clip(otsu(saturation[readable]), MIN_SATURATION, MAX_SATURATION))
        case "clam":
            hsv = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV), dtype=np.uint8)
            saturation = np.asarray(cv2.medianBlur(hsv[..., 1], settings.median), dtype=np.uint8)
            mask = saturation > (settings.threshold or max(otsu(saturation[readable]), MIN_SATURATION))
            if settings.close:
                # As in CLAM, where a kernel of even side moves what it closes by one pixel, right and down.
                kernel = np.ones((settings.close, settings.close), dtype=np.uint8)
                mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0
            return np.asarray(mask)
        case "brightness":
            return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) < settings.brightness)
        case "model":
            from pipeline.images import segmenter  # torch, or onnxruntime: seconds to load

            return np.asarray(segmenter.predict(picture, Path(settings.model)) >= settings.probability)
        case "none":
            return np.ones(picture.shape[:2], dtype=np.bool_)


def _components(mask: NDArray[np.uint8], connectivity: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The number of the component at each pixel, (row, column), and OpenCV's statistics (number, 5)."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity, ltype=cv2.CV_32S)
    return np.asarray(labels, dtype=np.int32), np.asarray(stats, dtype=np.int32)


def _surrounding(labels: NDArray[np.int32], stats: NDArray[np.int32], others: NDArray[np.int32]) -> NDArray[np.int64]:
    """For each label, the other one that lies around it: the one above its topmost pixels. 0 where nothing is."""
    row, column = np.nonzero((labels[1:] > 0) & (others[:-1] > 0))
    label = labels[row + 1, column]
    topmost = stats[label, cv2.CC_STAT_TOP] == row + 1
    found = np.zeros(len(stats), dtype=np.int64)
    found[label[topmost]] = others[row[topmost], column[topmost]]
    return found
