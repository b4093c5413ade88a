"""A whole-slide image, read with OpenSlide at one resolution and composited on white.

Frames: `l0_` marks pixels of level 0, which OpenSlide counts positions in; pixels of a level are those of the level
that is read; all else is pixels at the resolution asked for. Tuples are (x, y), arrays (height, width, channel).
"""

import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from openslide import PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y, PROPERTY_NAME_VENDOR, OpenSlide, OpenSlideError

from pipeline.config import SlideSettings
from pipeline.errors import CONTENT_ERRORS, ImageError, one_line
from pipeline.images import READ_FAILED, READ_OK

SLIDE_ERRORS: tuple[type[Exception], ...] = (*CONTENT_ERRORS, OpenSlideError)

PLAUSIBLE_MPP = (0.05, 10.0)
"""ASSUME: µm per pixel that a scanner can have. Files made from screen pictures often say 264.583 (96 per inch)."""

RESAMPLING = PIL.Image.Resampling.BICUBIC
"""Pillow widens its filters by the factor it shrinks by, so this one is antialiased."""

RESAMPLING_SUPPORT = 2
"""Pixels that the filter reaches beyond a tile, times the factor it shrinks by."""

MIN_SATURATION = 0.05 * 255
"""ASSUME: what is less saturated than 5 % is glass, whatever Otsu's threshold says; a slide that is all white, or white
with compression noise, then has no tissue."""

PIECE = 2048
"""Side, in pixels of a level, of the largest region decoded at once for a picture of the whole slide: 16 MB."""

PROPERTIES = (PROPERTY_NAME_MPP_X, PROPERTY_NAME_MPP_Y, PROPERTY_NAME_VENDOR)

REMEDY = "state the true one in the `mpp` column of labels.csv"


THUMBNAIL = 768
"""Longest side in pixels of the thumbnail that is kept with the tiles: about 1.3 MB a slide."""


@dataclass(frozen=True)
class View:
    """The slide at one resolution, made from the pixels of one level."""

    level: int
    level_extent: tuple[int, int]
    downsample: float
    """Level 0 pixels per pixel of the level."""
    scale: tuple[float, float]
    """Pixels of the level per pixel of the view, along x and y; (1, 1): the level's own pixels."""


class Slide:
    """A slide at the resolution of its settings; satisfies `pipeline.images.Image`.

    Args:
        path: the slide's first file.
        settings: the slide section of the config.
        mpp: the user's own µm per pixel at level 0, in place of what the file says.

    Raises:
        ImageError: OpenSlide cannot open it, its mpp is missing or implausible, or it is coarser than asked for.
    """

    def __init__(self, path: Path, settings: SlideSettings, mpp: float | None = None) -> None:
        self._path = path
        self._settings = settings
        self._handle = self._open()
        with self._content("cannot be opened as a slide"):
            stated = self._handle.properties
            facts = {name: stated.get(name, "") for name in PROPERTIES}
            self._level_extents = self._handle.level_dimensions
            self._downsamples = self._handle.level_downsamples
        self._levels = same_shape(self._level_extents)
        self._l0_mpp = native_mpp(facts) if mpp is None else plausible_mpp(mpp)
        self._view = self._tile_view()
        level_mpp = self._l0_mpp * self._view.downsample
        effective = level_mpp if self._view.scale == (1.0, 1.0) else settings.mpp
        self.extent: tuple[int, ...] = tuple(
            math.floor(length / scale + 1e-6)
            for length, scale in zip(self._view.level_extent, self._view.scale, strict=True)
        )
        self.tile_size: tuple[int, ...] = (settings.tile, settings.tile)
        self.tile_stride: tuple[int, ...] = (settings.stride, settings.stride)
        self.min_foreground = settings.min_tissue
        self.properties: dict[str, object] = {
            "mpp": effective,
            "mpp_source": "openslide" if mpp is None else "labels",
            "mpp_native": self._l0_mpp,  # of level 0
            "level": self._view.level,
            "downsample": effective / self._l0_mpp,  # level 0 pixels per pixel of this image
            "vendor": facts[PROPERTY_NAME_VENDOR],
        }

    def foreground(self, origins: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.float32]:
        """Share of each tile that is tissue: (tile,) between 0 and 1. Parts that cannot be decoded count as tissue."""
        rows, columns = (length - 1 for length in self._tissue.shape)
        mask_per_pixel = np.array([columns, rows]) * self._view.scale / self._view.level_extent
        near = np.minimum(origins * mask_per_pixel, (columns, rows))
        far = np.minimum((origins + size) * mask_per_pixel, (columns, rows))
        tissue = (
            interpolate(self._tissue, far[:, 0], far[:, 1])
            - interpolate(self._tissue, near[:, 0], far[:, 1])
            - interpolate(self._tissue, far[:, 0], near[:, 1])
            + interpolate(self._tissue, near[:, 0], near[:, 1])
        )
        share: NDArray[np.float32] = np.clip(tissue / np.prod(far - near, axis=1), 0, 1).astype(np.float32)
        return share

    def read(
        self, origins: NDArray[np.int32], size: tuple[int, ...], threads: int = 1
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pixels (tile, height, width, 3) and a status (tile,); undecodable tiles are READ_FAILED and white."""
        width, height = size
        pixels = np.full((len(origins), height, width, 3), 255, dtype=np.uint8)
        status = np.full(len(origins), READ_OK, dtype=np.uint8)

        def read_one(index: int) -> None:
            x, y = origins[index].tolist()
            tile = self._read_view(self._view, (x, y), (width, height))
            if tile is None:
                status[index] = READ_FAILED
            else:
                pixels[index] = tile

        with ThreadPoolExecutor(threads) as pool:  # OpenSlide decodes outside Python's lock
            list(pool.map(read_one, range(len(origins))))
        return pixels, status

    def thumbnail(self, longest: int = 1024) -> NDArray[np.uint8]:
        """The whole slide, (height, width, 3), longest side as asked; parts that cannot be decoded are white."""
        l0_extent = self._level_extents[0]
        width, height = (max(1, round(length * longest / max(l0_extent))) for length in l0_extent)
        return self._picture(width, height)[0]

    def arrays(self) -> dict[str, NDArray[np.uint8]]:
        """A thumbnail (height, width, 3) to be shown; its tiles are read again from its file."""
        return {"thumbnail": self.thumbnail(THUMBNAIL)}

    def _tile_view(self) -> View:
        """The level within the tolerance, or else the coarsest finer level with the factor to shrink it by."""
        wanted = self._settings.mpp
        ratios = {level: wanted / (self._l0_mpp * self._downsamples[level]) for level in self._levels}
        level = min(ratios, key=lambda level: abs(1 / ratios[level] - 1))
        if abs(1 / ratios[level] - 1) <= self._settings.mpp_tolerance:
            return View(level, self._level_extents[level], self._downsamples[level], (1.0, 1.0))
        if ratios[0] < 1:
            raise ImageError(
                f"its finest resolution is {self._l0_mpp:g} µm per pixel, coarser than slide.mpp {wanted:g}: "
                f"set slide.mpp to {self._l0_mpp:g} or more, or leave this slide out"
            )
        level = max(level for level, ratio in ratios.items() if ratio > 1)
        return View(level, self._level_extents[level], self._downsamples[level], (ratios[level], ratios[level]))

    @cached_property
    def _tissue(self) -> NDArray[np.float64]:
        """Integral image of the tissue mask, (row + 1, column + 1); the mask covers the slide from edge to edge."""
        factor = max(1.0, self._settings.tissue_mpp / self._l0_mpp)
        width, height = (max(1, round(length / factor)) for length in self._level_extents[0])
        picture, readable = self._picture(width, height)
        saturation = np.asarray(PIL.Image.fromarray(picture).convert("HSV"))[..., 1]
        mask = saturation > max(otsu(saturation[readable]), MIN_SATURATION)
        # What cannot be decoded here is offered as tissue, so that its tiles are read and their failures counted.
        mask |= ~readable
        return np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0))).astype(np.float64)

    def _picture(self, width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The whole slide in so many pixels, (height, width, 3), and which of them could be decoded, (height, width).

        Read piece by piece from the coarsest level that is fine enough.
        """
        l0_width, l0_height = self._level_extents[0]
        l0_per_pixel = min(l0_width / width, l0_height / height)
        level = max((level for level in self._levels if self._downsamples[level] <= l0_per_pixel * 1.01), default=0)
        level_width, level_height = self._level_extents[level]
        scale = (level_width / width, level_height / height)
        view = View(level, (level_width, level_height), self._downsamples[level], scale)
        side = max(1, math.floor(PIECE / max(scale)))
        picture = np.full((height, width, 3), 255, dtype=np.uint8)
        readable = np.zeros((height, width), dtype=np.bool_)
        for y in range(0, height, side):
            for x in range(0, width, side):
                piece = self._read_view(view, (x, y), (min(side, width - x), min(side, height - y)))
                if piece is not None:
                    picture[y : y + side, x : x + side] = piece
                    readable[y : y + side, x : x + side] = True
        return picture, readable

    def _read_view(self, view: View, origin: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """Pixels (height, width, 3) of a region of a view; None when they cannot be decoded."""
        if view.scale == (1.0, 1.0):
            region = self._read_level(view, origin, size)
            return None if region is None else np.asarray(region)
        start, stop, first, last = [], [], [], []  # along x and y, in pixels of the level
        for at, pixels, scale, length in zip(origin, size, view.scale, view.level_extent, strict=True):
            reach = RESAMPLING_SUPPORT * max(scale, 1.0) + 1  # what the filter sees beyond the region: no seams
            start.append(at * scale)
            stop.append(min((at + pixels) * scale, length))
            first.append(max(0, math.floor(start[-1] - reach)))
            last.append(min(length, math.ceil(stop[-1] + reach)))
        region = self._read_level(view, (first[0], first[1]), (last[0] - first[0], last[1] - first[1]))
        if region is None:
            return None
        box = (start[0] - first[0], start[1] - first[1], stop[0] - first[0], stop[1] - first[1])
        return np.asarray(region.resize(size, RESAMPLING, box=box))

    def _read_level(self, view: View, origin: tuple[int, int], size: tuple[int, int]) -> PIL.Image.Image | None:
        """A region of a level on white; None when it cannot be decoded.

        An OpenSlide handle that has failed once fails for ever, whichever thread made it fail. So a failure is believed
        only from a fresh handle, and a fresh handle that succeeds takes the place of the failed one, which closes
        itself when its last reader lets go of it.
        """
        l0_origin = (round(origin[0] * view.downsample), round(origin[1] * view.downsample))
        try:
            region = self._handle.read_region(l0_origin, view.level, size)
        except SLIDE_ERRORS:
            fresh = self._open()
            try:
                region = fresh.read_region(l0_origin, view.level, size)
            except SLIDE_ERRORS:
                return None
            self._handle = fresh
        white = PIL.Image.new("RGB", size, (255, 255, 255))
        white.paste(region, mask=region.getchannel("A"))
        return white

    def _open(self) -> OpenSlide:
        with self._content("cannot be opened as a slide"):
            return OpenSlide(self._path)

    @contextmanager
    def _content(self, problem: str) -> Iterator[None]:
        """Turns what the library raises into one line without any path: file names can name patients."""
        try:
            yield
        except SLIDE_ERRORS as error:
            text = str(error.strerror) if isinstance(error, OSError) and error.strerror else one_line(error)
            text = text.replace(str(self._path), "the file")
            text = re.sub(re.escape(f"{self._path.parent}/") + "[^:]*", "a file", text)
            raise ImageError(f"{problem}: {text.replace(self._path.name, 'the file')}") from None


def same_shape(extents: tuple[tuple[int, int], ...]) -> list[int]:
    """The numbers of the levels that have about the shape of level 0.

    ASSUME: a level whose sides differ in downsample by more than two is damaged, or shows something else.
    """
    l0_width, l0_height = extents[0]
    return [n for n, (width, height) in enumerate(extents) if 0.5 <= l0_width * height / (l0_height * width) <= 2]


def plausible_mpp(mpp: float) -> float:
    """The µm per pixel as given.

    Raises:
        ImageError: no scanner has such a resolution.
    """
    lowest, highest = PLAUSIBLE_MPP
    if not lowest <= mpp <= highest:
        raise ImageError(f"mpp {mpp:g} is implausible ({lowest:g} to {highest:g} µm per pixel is plausible): {REMEDY}")
    return mpp


def native_mpp(facts: dict[str, str]) -> float:
    """The µm per pixel at level 0 that the file states, the mean of both axes.

    Raises:
        ImageError: it is missing, implausible, or differs by more than 5 % between the axes.
    """
    try:
        x, y = float(facts[PROPERTY_NAME_MPP_X]), float(facts[PROPERTY_NAME_MPP_Y])
    except ValueError:
        raise ImageError(f"the file states no mpp: {REMEDY}") from None
    plausible_mpp(x)
    plausible_mpp(y)
    if abs(x - y) > 0.05 * min(x, y):
        raise ImageError(f"mpp {x:g} along x and {y:g} along y differ by more than 5 %: {REMEDY}")
    return (x + y) / 2


def otsu(values: NDArray[np.uint8]) -> int:
    """Otsu's threshold of 8-bit values: above it lies the brighter class. 0 when there are not two different values."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    sum_below = (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sum_below / below - (sum_below[-1] - sum_below) / above
    return int(np.nan_to_num(below * above * gap**2, posinf=0.0).argmax())


def interpolate(table: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a table (row, column) between its entries; on an integral image exact for parts of pixels too."""
    column = np.clip(x.astype(np.int64), 0, table.shape[1] - 2)
    row = np.clip(y.astype(np.int64), 0, table.shape[0] - 2)
    dx, dy = x - column, y - row
    upper = table[row, column] * (1 - dx) + table[row, column + 1] * dx
    lower = table[row + 1, column] * (1 - dx) + table[row + 1, column + 1] * dx
    value: NDArray[np.float64] = upper * (1 - dy) + lower * dy
    return value
