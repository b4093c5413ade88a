"""Head CT series with planted haemorrhages, as arrays of Hounsfield units.

ASSUME: a haemorrhage is a bright blob (70 to 78 HU) with a darker rim of oedema, on few neighbouring slices. Small
calcifications, bright sinuses and blurred bone occur in every series, so that "something bright" is no sign of disease.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float32]

SIDE = 128
FIELD_OF_VIEW = 230.0
"""Millimetres along both axes."""
AIR, FAT, SCALP, BONE, FLUID, WHITE, GREY = -1000, -90, 40, 1000, 6, 30, 38
"""Hounsfield units."""


def render_series(rng: np.random.Generator, lesion_share: float) -> tuple[NDArray[np.int16], list[int]]:
    """One head and the slices that show a haemorrhage.

    Args:
        rng: source of all randomness.
        lesion_share: lesion slices as a share of all, rounded down, and at least one; 0: a normal head.

    Returns:
        HU (slice, row, column) from the base of the skull to its top, and the indices of the lesion slices.
    """
    slices = int(rng.integers(28, 33))
    build = _Build(rng)
    heights = (np.arange(slices) + 0.5) / slices
    volume = np.stack([build.slice(rng, height) for height in heights])
    lesion: list[int] = []
    if lesion_share > 0:
        count = max(1, int(lesion_share * slices))
        first = int(rng.integers(round(0.35 * slices), round(0.75 * slices) - count + 1))
        lesion = list(range(first, first + count))
        _bleed(rng, build, volume, heights, lesion)
    return _scanned(rng, volume), lesion


class _Build:
    """What is constant within one head: sizes, position, brightness. Drawn whatever the label.

    ASSUME: heads are alike in size and place, as if registered. A ResNet with random weights looks at 16 small places
    of a slice of 128 x 128; a few millimetres between heads would outweigh every lesion in the mean of a bag.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw a head."""
        self.half = np.array([rng.uniform(72.6, 73.4), rng.uniform(89.5, 90.5)])  # mm, left to right and front to back
        self.centre = rng.normal(0, 0.25, size=2)
        self.turn = rng.normal(0, 0.01)
        self.skull = rng.uniform(5.5, 7)  # mm
        self.atrophy = rng.uniform(0.8, 1.3)
        self.brightness = rng.normal(0, 0.5)
        self.calcified = rng.random() < 0.6
        axis = (np.arange(SIDE) + 0.5) * FIELD_OF_VIEW / SIDE - FIELD_OF_VIEW / 2
        y, x = np.meshgrid(axis - self.centre[1], axis - self.centre[0], indexing="ij")
        self.x = x * np.cos(self.turn) + y * np.sin(self.turn)
        self.y = y * np.cos(self.turn) - x * np.sin(self.turn)

    def scale(self, height: float) -> float:
        """Size of the head at a height between 0 (base) and 1 (top), as a share of its largest."""
        above = max(0.0, height - 0.4) / 0.64
        return float(np.sqrt(1 - above**2)) * (1 - 0.35 * max(0.0, 0.3 - height))

    def depth(self, height: float) -> NDArray[np.float64]:
        """Millimetres below the skin (row, column), negative outside of the head."""
        half = self.half * self.scale(height)
        return np.asarray((1 - np.hypot(self.x / half[0], self.y / half[1])) * half.mean())

    def slice(self, rng: np.random.Generator, height: float) -> Plane:
        """HU of one slice (row, column), free of noise."""
        depth = self.depth(height) + 0.8 * _noise(rng, 10)
        scalp, brain = 4.0, 4.0 + self.skull
        folds = np.abs(_noise(rng, 16)) < 0.16 * self.atrophy  # sulci, near the surface only
        plane = np.full((SIDE, SIDE), AIR, dtype=np.float32)
        plane[depth > 0] = FAT
        plane[depth > 1.5] = SCALP
        plane[depth > scalp] = BONE
        inside = depth > brain
        plane[inside] = FLUID
        cortex = inside & (depth > brain + 1.2 * self.atrophy) & ~(folds & (depth < brain + 10))
        plane[cortex] = GREY + self.brightness
        white = cortex & (depth + 2 * _noise(rng, 14) > brain + 9)
        plane[white] = WHITE + self.brightness
        self._ventricles(plane, inside, height)
        self._midline(plane, inside, height)
        if height < 0.2:
            self._base(rng, plane, inside, height)
        return plane

    def _ventricles(self, plane: Plane, inside: NDArray[np.bool_], height: float) -> None:
        size = np.sqrt(max(0.0, 1 - ((height - 0.55) / 0.16) ** 2)) * self.atrophy
        if size <= 0:
            return
        for side in (-1, 1):
            for y, slope in ((-18, 0.35), (20, -0.45)):  # frontal and occipital horn
                x = side * (8 + 3 * size) + side * slope * -(self.y - y) * 0.6
                across, along = 4.5 * size + 0.1, 17 * size**0.5 + 0.1
                horn = np.hypot((self.x - x) / across, (self.y - y) / along) < 1
                plane[horn & inside] = FLUID
            if self.calcified and 0.48 < height < 0.62:
                plane[np.hypot(self.x - side * 16, self.y - 26) < 2.2] = 140
        ganglia = np.hypot((np.abs(self.x) - 22) / 8, (self.y + 2) / 14) < 1
        plane[ganglia & inside & (plane == np.float32(WHITE + self.brightness))] = GREY - 1 + self.brightness

    def _midline(self, plane: Plane, inside: NDArray[np.bool_], height: float) -> None:
        if height > 0.45:
            far = np.abs(self.y) > 45 * self.scale(height) * (1 - max(0.0, height - 0.7) * 3)
            plane[(np.abs(self.x) < 1.1) & far & inside] = 48  # falx
        sinus = np.hypot(self.x, self.y - self.half[1] * self.scale(height) + self.skull + 8) < 4
        plane[sinus & inside] = 55

    def _base(
        self,
        rng: np.random.Generator,
        plane: Plane,
        inside: NDArray[np.bool_],
        height: float,
    ) -> None:
        """Petrous bones, the front of the skull base, and air cells."""
        thick = 9 * (1 - height / 0.25)
        for side in (-1, 1):
            ridge = np.abs(self.y - 8 + side * 0.5 * self.x) < thick
            plane[ridge & (side * self.x > 14) & inside] = 700
            cells = np.hypot(self.x - side * 50, self.y - 26) < thick
            plane[cells & (_noise(rng, 50) > 0) & (plane > 0)] = -700
        plane[inside & (self.y < -38) & (np.abs(_noise(rng, 18)) < 0.5)] = 600
        plane[inside & (np.hypot(self.x / 1.6, self.y + 62) < 9)] = -900


def _noise(rng: np.random.Generator, cells: int) -> Plane:
    """Smooth noise (SIDE, SIDE), about standard normal, with so many independent cells along each axis."""
    values = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(
        Image.fromarray(values).resize((SIDE, SIDE), Image.Resampling.BICUBIC),
        dtype=np.float32,
    )


def _bleed(
    rng: np.random.Generator,
    build: _Build,
    volume: NDArray[np.float32],
    heights: NDArray[np.float64],
    lesion: list[int],
) -> None:
    """Put one haemorrhage into the brain on the given slices, in place."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(27, 33)  # mm
    room = build.half * build.scale(heights[lesion[-1]]) - build.skull - 6 - radius
    place = room * np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.3, 0.8)
    value, ragged = rng.uniform(70, 78), _noise(rng, 14)
    stretch = rng.uniform(0.75, 1.3)
    distance = np.hypot((build.x - place[0]) * stretch, (build.y - place[1]) / stretch) + 2.5 * ragged
    for index in lesion:
        off_middle = abs(index - (lesion[0] + lesion[-1]) / 2) / max(1, len(lesion))
        size = radius * (1 - 0.6 * off_middle)
        brain = build.depth(heights[index]) > 4.0 + build.skull + 1
        volume[index][brain & (distance < size + 3)] = 22
        volume[index][brain & (distance < size)] = value


def _scanned(rng: np.random.Generator, volume: NDArray[np.float32]) -> NDArray[np.int16]:
    """The volume as a scanner gives it: blurred, with correlated noise of a strength of its own, as whole HU."""
    blur, grain = rng.uniform(0.52, 0.68), rng.uniform(3.5, 4.1)
    scanned = np.empty(volume.shape, dtype=np.float32)
    for index, plane in enumerate(volume):
        scanned[index] = _smoothed(plane, blur) + grain * _smoothed(rng.standard_normal(plane.shape), 0.5) / 0.6
    return scanned.clip(-1000, 3000).round().astype(np.int16)


def _smoothed(plane: NDArray[np.floating], radius: float) -> Plane:
    """A Gaussian blur, radius in pixels, by separable convolution: Pillow has none for floats."""
    taps = np.exp(-0.5 * (np.arange(-2, 3) / radius) ** 2)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.pad(plane, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        views = [np.take(padded, range(k, k + plane.shape[axis]), axis=axis) for k in range(5)]
        plane = sum(tap * view for tap, view in zip(taps, views, strict=True))
    return plane.astype(np.float32)
