"""Tissue that looks like haematoxylin and eosin, with planted lesions.

ASSUME: colour follows Beer and Lambert: each stain absorbs in proportion to its amount, and amounts add.
ASSUME: a lesion is a patch of crowded, large, dark nuclei. Clusters of small round nuclei (lymphocytes) occur in every
slide, so that "many nuclei" alone is no sign of disease.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.float32]
Rectangle = dict[str, int]
"""x, y, width, height in level-0 pixels."""

MPP = 0.5
SIDE = 2048
COARSE = SIDE // 2
"""Side of the planes on which everything but nuclei is drawn: a quarter of the time, and as sharp as tissue is."""
HAEMATOXYLIN = (0.56, 0.72, 0.41)
EOSIN = (0.22, 0.80, 0.50)


def render_slide(rng: np.random.Generator, lesion_share: float) -> tuple[NDArray[np.uint8], list[Rectangle]]:
    """One slide and where its lesions are.

    Args:
        rng: source of all randomness.
        lesion_share: area of the lesions as a share of the tissue; 0: a normal slide.

    Returns:
        Pixels (height, width, 3) RGB at 0.5 µm per pixel, and the rectangles that enclose the lesions.
    """
    tissue = _tissue(rng)
    rectangles = _place_lesions(rng, tissue, lesion_share * float(tissue.mean()) * SIDE**2)
    lesion = _lesion_shape(rng, rectangles) * tissue
    eosin = tissue * _stroma(rng) * (1 - 0.3 * lesion)
    haematoxylin = _resized(tissue * (0.08 + 0.20 * lesion), SIDE)
    _plant_nuclei(rng, haematoxylin, tissue > 0.9, lesion > 0.5)
    return _stain(rng, haematoxylin, _resized(eosin, SIDE)), rectangles


def lesion_tiles(origins: NDArray[np.int32], size: int, rectangles: list[Rectangle]) -> NDArray[np.bool_]:
    """Which tiles show a lesion: at least a quarter of the tile lies in one rectangle.

    Args:
        origins: upper left corners of tiles (tile, 2), x first, in level-0 pixels.
        size: side of a tile, in level-0 pixels.
        rectangles: the slide's lesions.
    """
    covered = np.zeros(len(origins))
    for box in rectangles:
        start = np.array([box["x"], box["y"]])
        end = start + np.array([box["width"], box["height"]])
        sides = np.minimum(origins + size, end) - np.maximum(origins, start)
        covered = np.maximum(covered, sides.clip(0).prod(axis=1) / size**2)
    return covered >= 0.25


def _resized(plane: Plane, side: int) -> Plane:
    """A plane enlarged to (side, side)."""
    return np.array(Image.fromarray(plane).resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)


def _noise(rng: np.random.Generator, cells: int) -> Plane:
    """Smooth noise (COARSE, COARSE), about standard normal, with so many independent cells along each axis."""
    return _resized(rng.standard_normal((cells, cells), dtype=np.float32), COARSE)


def _blurred(mask: NDArray[np.bool_], radius: float) -> Plane:
    picture = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(np.asarray(picture) / 255, dtype=np.float32)


def _tissue(rng: np.random.Generator) -> Plane:
    """Where tissue is, between 0 and 1 (COARSE, COARSE): one irregular piece with small clefts and vacuoles."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, COARSE, dtype=np.float32)] * 2, indexing="ij")
    stretch = np.float32(rng.uniform(0.8, 1.25))
    radius = np.hypot(x * stretch - rng.uniform(-0.1, 0.1), y / stretch - rng.uniform(-0.1, 0.1))
    edge = rng.uniform(0.62, 0.68) + 0.10 * _noise(rng, 6) + 0.02 * _noise(rng, 40)
    clefts = (np.abs(_noise(rng, 12) + 0.1 * _noise(rng, 60)) < 0.02) & (_noise(rng, 8) > 0.6)
    vacuoles = _noise(rng, 90) > rng.uniform(2.0, 2.6)
    return _blurred((radius < edge) & ~clefts & ~vacuoles, 1.0)


def _stroma(rng: np.random.Generator) -> Plane:
    """Amount of eosin in tissue (COARSE, COARSE): wavy fibres, pale and dense areas."""
    y, x = np.meshgrid(*[np.arange(COARSE, dtype=np.float32)] * 2, indexing="ij")
    angle = rng.uniform(0, np.pi)
    along = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) / np.float32(rng.uniform(4, 6))
    fibres = np.sin(along + 9 * _noise(rng, 10) + 1.2 * _noise(rng, 100)) * np.clip(0.6 + _noise(rng, 14), 0.1, 1.2)
    eosin = 0.55 + 0.10 * _noise(rng, 8) + 0.13 * fibres + 0.04 * _noise(rng, 400)
    return np.asarray(eosin.clip(0.15, 1.2), dtype=np.float32)


def _place_lesions(rng: np.random.Generator, tissue: Plane, area: float) -> list[Rectangle]:
    """One rectangle of about the wanted area (level-0 pixels), inside the tissue; none when the area is 0."""
    if area <= 0:
        return []
    height = round(np.sqrt(area * rng.uniform(0.7, 1.4)))
    width = round(area / height)
    # The first of many random places that lies in tissue nearly as fully as the best of them.
    places = rng.integers([0, 0], [SIDE - width, SIDE - height], size=(200, 2))
    shares = [tissue[y // 2 : (y + height) // 2 : 4, x // 2 : (x + width) // 2 : 4].mean() for x, y in places]
    x, y = places[int(np.argmax(np.array(shares) > 0.97 * max(shares)))]
    return [{"x": int(x), "y": int(y), "width": width, "height": height}]


def _lesion_shape(rng: np.random.Generator, rectangles: list[Rectangle]) -> Plane:
    """Where lesions are, between 0 and 1 (COARSE, COARSE): rounded, ragged, inside their rectangles."""
    shape = np.zeros((COARSE, COARSE), dtype=np.bool_)
    ragged = _noise(rng, 40)
    for box in rectangles:
        rows = slice(box["y"] // 2, (box["y"] + box["height"]) // 2)
        columns = slice(box["x"] // 2, (box["x"] + box["width"]) // 2)
        y, x = np.mgrid[
            -1 : 1 : (rows.stop - rows.start) * 1j,
            -1 : 1 : (columns.stop - columns.start) * 1j,
        ]
        shape[rows, columns] = (np.abs(x) ** 3 + np.abs(y) ** 3) ** (1 / 3) + 0.12 * ragged[rows, columns] < 0.9
    return _blurred(shape, 3.0)


def _nucleus(rng: np.random.Generator, radius: float, elongation: float, darkness: float) -> Plane:
    """Amount of haematoxylin in one nucleus: an ellipse with a dark rim and grainy chromatin, on a square patch."""
    half = int(np.ceil(radius * elongation)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(along / (radius * elongation), across / radius * np.sqrt(elongation))
    chromatin = 0.8 + 0.2 * distance + 0.12 * rng.standard_normal(distance.shape)
    inside = 1 / (1 + np.exp((distance - 1) * radius))
    return np.asarray(darkness * chromatin * inside, dtype=np.float32)


def _stamp(
    rng: np.random.Generator,
    plane: Plane,
    places: NDArray[np.float64],
    stamps: list[Plane],
) -> None:
    """Put a random one of the stamps at every place (place, 2), x first; the darker of old and new stays."""
    choices = rng.integers(len(stamps), size=len(places))
    for (x, y), choice in zip(places.astype(int).tolist(), choices.tolist(), strict=True):
        stamp = stamps[choice]
        half = len(stamp) // 2
        if half <= x < SIDE - half and half <= y < SIDE - half:
            patch = plane[y - half : y + half + 1, x - half : x + half + 1]
            np.maximum(patch, stamp, out=patch)


def _plant_nuclei(
    rng: np.random.Generator,
    haematoxylin: Plane,
    tissue: NDArray[np.bool_],
    lesion: NDArray[np.bool_],
) -> None:
    """Add the nuclei of stroma, of lymphocyte clusters and of lesions to the haematoxylin, in place."""
    stromal = [_nucleus(rng, rng.uniform(4.5, 6), rng.uniform(1.2, 2.2), rng.uniform(0.7, 1.0)) for _ in range(40)]
    lymphocytes = [_nucleus(rng, rng.uniform(4.5, 5.5), 1.0, rng.uniform(1.0, 1.3)) for _ in range(20)]
    tumour = [_nucleus(rng, rng.uniform(6, 11), rng.uniform(1, 1.5), rng.uniform(0.8, 1.5)) for _ in range(40)]
    everywhere = rng.uniform(0, SIDE, size=(int(rng.uniform(10000, 15000)), 2))
    thinned = everywhere[_at(_noise(rng, 24), everywhere) > rng.normal(size=len(everywhere))]
    clusters = [
        rng.normal(centre, rng.uniform(25, 60), size=(rng.integers(40, 160), 2))
        for centre in rng.uniform(0, SIDE, size=(rng.integers(10, 22), 2))
    ]
    clustered = np.concatenate(clusters).clip(0, SIDE - 1)
    step = 19  # pixels between neighbours in a lesion: nearly touching
    crowded = np.mgrid[0:SIDE:step, 0:SIDE:step].reshape(2, -1).T
    crowded = (crowded + rng.normal(0, step / 4, size=crowded.shape)).clip(0, SIDE - 1)
    _stamp(rng, haematoxylin, thinned[_at(tissue & ~lesion, thinned)], stromal)
    _stamp(rng, haematoxylin, clustered[_at(tissue, clustered)], lymphocytes)
    _stamp(rng, haematoxylin, crowded[_at(tissue & lesion, crowded)], tumour)


def _at(plane: NDArray[Any], places: NDArray[np.float64]) -> NDArray[Any]:
    """Values of a coarse plane at level-0 places (place, 2), x first."""
    x, y = places.astype(np.int64).T // 2
    return np.asarray(plane[y, x])


def _stain(rng: np.random.Generator, haematoxylin: Plane, eosin: Plane) -> NDArray[np.uint8]:
    """RGB pixels of two stains. Hue, strength and lamp differ from slide to slide, whatever their label."""
    vectors = np.array([HAEMATOXYLIN, EOSIN]) * rng.uniform([[0.94], [0.91]], [[1.06], [1.10]])
    vectors = vectors + rng.normal(0, 0.012, size=(2, 3))
    lamp = rng.uniform(241, 247) + rng.normal(0, 1.5, size=3)
    pixels = np.empty((*eosin.shape, 3), dtype=np.uint8)
    for channel in range(3):
        absorbed = haematoxylin * np.float32(vectors[0, channel]) + eosin * np.float32(vectors[1, channel])
        pixels[..., channel] = (np.float32(lamp[channel]) * np.exp(-absorbed)).clip(0, 255)
    return pixels
