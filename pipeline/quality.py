"""Which tiles of tissue are worth embedding, judged by their own pixels.

A tile is judged by the filters that are on, each a figure of its pixels against a limit, and keeps the code of the
first that removes it. All limits are the user's: what is sharp or pale depends on scanner, stain and resolution.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.image_settings import QualitySettings

KEPT, TISSUE, BLUR, PEN, BLACK, WHITE, EDGES = range(7)
"""What became of a tile. TISSUE is given by whoever looked for tissue; the others by `judge`."""

REASONS: dict[int, str] = {
    KEPT: "kept",
    TISSUE: "too little tissue",
    BLUR: "blurred",
    PEN: "pen or marker",
    BLACK: "near black",
    WHITE: "near white",
    EDGES: "too few edges",
}
"""The codes in words for a reader."""

PEN_COLOURS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "blue": ((90, 170, 70), (123, 255, 255)),
    "green": ((35, 90, 40), (89, 255, 255)),
    "red": ((173, 205, 120), (179, 255, 255)),
    "orange red": ((0, 205, 120), (5, 255, 255)),
    "black": ((0, 0, 0), (179, 110, 60)),
}
"""ASSUME: colours of markers, as the lowest and highest OpenCV hue (0 to 179, half degrees), saturation and brightness
(0 to 255). Eosin and haematoxylin have hues from 120 to 172, brown DAB from 6 to 25, and blood, which is red, and blue
counterstain are less saturated than ink. Blue and green special stains (trichrome, Alcian blue) do look like ink, and
carbon pigment and what the scanner has left black look like a black marker."""

BLACK_BELOW = 50
"""ASSUME: a pixel with all channels below this is no stained tissue."""

WHITE_ABOVE = 230
"""ASSUME: a pixel with all channels above this is glass."""
GLASS = ((0, 0, 201), (179, 4, 255))
"""ASSUME: so is a grey one (OpenCV saturation below 5) brighter than 200: glass under a dim lamp."""

CANNY = (40, 100)
"""Thresholds of the edge filter: those of STAMP, so that its limit of 0.02 means the same here."""


def is_on(settings: QualitySettings) -> bool:
    """Whether any filter is on, so that tiles have to be read to be judged."""
    return (
        settings.min_sharpness > 0
        or settings.max_pen < 1
        or settings.max_black < 1
        or settings.max_white < 1
        or settings.min_edges > 0
    )


def judge(tiles: NDArray[np.uint8], settings: QualitySettings) -> NDArray[np.uint8]:
    """What becomes of each tile: (tile,) codes, KEPT or the first filter that removes it.

    In the order BLACK, WHITE, PEN, BLUR, EDGES, from the reason that says most: glass, black borders and ink are smooth
    too, and called blurred they would send somebody to look for a fault of focus.

    Args:
        tiles: (tile, height, width, 3) RGB.
        settings: limits; a filter that is off costs nothing.
    """
    return np.array([_judge_one(np.ascontiguousarray(tile), settings) for tile in tiles], dtype=np.uint8)


def _judge_one(tile: NDArray[np.uint8], settings: QualitySettings) -> int:
    if settings.max_black < 1 and black_share(tile) > settings.max_black:
        return BLACK
    if settings.max_white < 1 and white_share(tile) > settings.max_white:
        return WHITE
    if settings.max_pen < 1 and pen_share(tile) > settings.max_pen:
        return PEN
    if settings.min_sharpness > 0 and sharpness(tile) < settings.min_sharpness:
        return BLUR
    if settings.min_edges > 0 and edge_share(tile) < settings.min_edges:
        return EDGES
    return KEPT


def sharpness(tile: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the grey levels of a tile (height, width, 3); small where nothing is in focus."""
    return float(cv2.Laplacian(_grey(tile), cv2.CV_64F, ksize=1).var())


def pen_share(tile: NDArray[np.uint8]) -> float:
    """Share of a tile (height, width, 3) that has a colour of PEN_COLOURS: between 0 and 1."""
    hsv = cv2.cvtColor(tile, cv2.COLOR_RGB2HSV)
    inked = np.logical_or.reduce([cv2.inRange(hsv, *limits) for limits in PEN_COLOURS.values()])
    return float(inked.mean())


def black_share(tile: NDArray[np.uint8]) -> float:
    """Share of a tile (height, width, 3) that is near black: between 0 and 1."""
    black = cv2.inRange(tile, (0, 0, 0), (BLACK_BELOW - 1,) * 3)
    return float(cv2.countNonZero(black)) / black.size


def white_share(tile: NDArray[np.uint8]) -> float:
    """Share of a tile (height, width, 3) that is near white or bright grey: between 0 and 1."""
    white = cv2.inRange(tile, (WHITE_ABOVE + 1,) * 3, (255, 255, 255))
    grey = cv2.inRange(cv2.cvtColor(tile, cv2.COLOR_RGB2HSV), *GLASS)
    return float(cv2.countNonZero(cv2.bitwise_or(white, grey))) / white.size


def edge_share(tile: NDArray[np.uint8]) -> float:
    """Share of a tile (height, width, 3) that Canny's filter calls an edge: between 0 and 1."""
    return float(cv2.Canny(_grey(tile), *CANNY).mean()) / 255


def _grey(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
