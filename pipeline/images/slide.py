"""A whole-slide image at one resolution, composited on white.

Frames: `l0_` marks pixels of level 0; pixels of a size are those that are decoded (pipeline/images/view.py); all else
is pixels at the resolution asked for. Tuples are (x, y), arrays (height, width, channel).
"""

import io
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
from numpy.typing import NDArray

from pipeline.companions import missing_parts
from pipeline.config import QualitySettings, SlideSettings
from pipeline.errors import ImageError
from pipeline.images import READ_FAILED, READ_OK
from pipeline.images.annotation import annotation_of, rasterise, read_geojson
from pipeline.images.jpeg_tiles import FACTORS, JpegReader, jpeg_levels
from pipeline.images.pyramid import SLIDE_ERRORS, Pyramid, open_pyramid
from pipeline.images.resolution import find_resolution
from pipeline.images.tissue import Tissue, keeps, segment
from pipeline.images.view import View, choose_view, decodable_sizes, extent_of, picture_view

RESAMPLING = PIL.Image.Resampling.BICUBIC
"""Pillow widens its filters by the factor it shrinks by, so this one is antialiased."""

RESAMPLING_SUPPORT = 2
"""Pixels that the filter reaches beyond a tile, times the factor it shrinks by."""

PIECE = 2048
"""Side, in pixels of a size, of the largest region decoded at once for a picture of the whole slide: 12 MB."""

SMALLEST_PIECE = 8
"""Side, in pixels of a size, below which a piece that cannot be decoded is not divided further."""

MOST_FAILURES = 200
"""Pieces of one picture that cannot be decoded and are divided; each may cost OpenSlide a new handle."""

PICTURE_PIXELS = 100_000_000
"""Of a picture that tissue is looked for in: 80 mm square at 8 µm."""

LONGEST_MM = 300
"""ASSUME: no slide is longer. Damaged files claim any size."""

THUMBNAIL = 768
"""Longest side in pixels of the thumbnail that is kept with the tiles: about 1.3 MB a slide."""

PROFILE_ERRORS: tuple[type[Exception], ...] = (*SLIDE_ERRORS, PIL.ImageCms.PyCMSError)

NO_CACHE = 0x0040
"""Of lcms: without it, a transform may not be used by two threads."""


class Slide:
    """A slide at the resolution of its settings; satisfies `pipeline.images.Image`.

    Args:
        path: the slide's first file.
        settings: the slide section of the config.
        mpp: the user's own µm per pixel at level 0.
        mpp_policy: what that is for: `override` what the file says, or `assume` it where the file says nothing.

    Raises:
        ImageError: it cannot be opened, its mpp is missing or implausible, or it is coarser than asked for.
    """

    def __init__(self, path: Path, settings: SlideSettings, mpp: float | None = None, mpp_policy: str = "") -> None:
        self._path = path
        self._settings = settings
        self._pyramid = open_pyramid(path)
        levels, why_not = jpeg_levels(path, self._pyramid)
        self._jpeg = JpegReader(levels, self._pyramid)
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        factors = dict.fromkeys(levels, FACTORS if settings.reduced_decoding else FACTORS[:1])
        self._sizes = decodable_sizes(self._pyramid.extents, self._pyramid.downsamples, factors)
        resolution = find_resolution(self._pyramid.facts, settings, mpp, mpp_policy)
        self._l0_mpp = resolution.mpp
        length = max(self._pyramid.extents[0]) * self._l0_mpp / 1000
        if length > LONGEST_MM:
            raise ImageError(f"it would be {length:.0f} mm long: is its mpp {self._l0_mpp:g} true, and the file whole?")
        self._view = view = choose_view(self._sizes, self._l0_mpp, settings.mpp, settings.mpp_tolerance)
        effective = self._l0_mpp * view.downsample if view.is_own else settings.mpp
        self.extent: tuple[int, ...] = extent_of(view)
        self.tile_size: tuple[int, ...] = (settings.tile, settings.tile)
        self.tile_stride: tuple[int, ...] = (settings.stride, settings.stride)
        self.pads: bool = settings.edge == "pad"
        self.min_foreground: float = settings.tissue.min_share if settings.tissue.keep == "share" else 1.0
        self.quality: QualitySettings = settings.quality
        notes = list(resolution.notes)
        if missing := missing_parts(path):
            notes.append(f"{len(missing)} of its files are not there")
        self.properties: dict[str, Any] = {
            "mpp": effective,
            "mpp_source": resolution.source,
            "mpp_native": self._l0_mpp,  # of level 0
            "level": view.level,
            "factor": view.factor,  # by which the decoder shrinks
            "downsample": effective / self._l0_mpp,  # level 0 pixels per pixel of this image
            "vendor": self._pyramid.facts.get("openslide.vendor", "plain image"),
            "reader": "libjpeg-turbo" if view.level in levels else f"openslide ({why_not or 'this level'})",
            "notes": notes,
            "l0_extent": list(self._pyramid.extents[0]),
            "l0_origin": list(qupath_origin(self._pyramid)),
        }

    def foreground(self, origins: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.float32]:
        """How well each tile shows tissue: (tile,) its share, or 0 and 1 by `tissue.keep`.

        Parts that cannot be decoded count as tissue, so that their tiles are read and their failures counted.
        """
        rows, columns = self._tissue.mask.shape
        mask_per_pixel = np.array([columns, rows]) * self._view.scale / self._view.extent
        return keeps(self._tissue, origins * mask_per_pixel, (origins + size) * mask_per_pixel, self._settings.tissue)

    def read(
        self,
        origins: NDArray[np.int32],
        size: tuple[int, ...],
        threads: int = 1,
        out: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pixels (tile, height, width, 3) and a status (tile,); undecodable tiles are READ_FAILED and white."""
        width, height = size
        pixels = np.empty((len(origins), height, width, 3), dtype=np.uint8) if out is None else out[: len(origins)]
        status = np.full(len(origins), READ_OK, dtype=np.uint8)
        places = origins.tolist()

        def read_some(indices: range) -> None:
            for index in indices:
                x, y = places[index]
                if not self._read_view(self._view, (x, y), pixels[index]):
                    status[index] = READ_FAILED
                    pixels[index] = 255

        # A thread takes tiles that lie together, so that it decodes once what they share; each takes two such parts, so
        # that none waits long for the other.
        share = max(1, -(-len(origins) // (threads * 2)))
        parts = [range(at, min(at + share, len(origins))) for at in range(0, len(origins), share)]
        if threads == 1:
            for part in parts:
                read_some(part)
        else:
            list(self._readers(threads).map(read_some, parts))
        return pixels, status

    def reading(self) -> dict[str, object]:
        """Which way the tiles that were read so far took."""
        return {"reader": self.properties["reader"], "tiles_left_to_openslide": self._jpeg.others}

    def thumbnail(self, longest: int = 1024) -> NDArray[np.uint8]:
        """The whole slide, (height, width, 3), longest side as asked; parts that cannot be decoded are white."""
        l0_extent = self._pyramid.extents[0]
        width, height = (max(1, round(length * longest / max(l0_extent))) for length in l0_extent)
        return self._picture(width, height)[0]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is shown of it: its tiles are read again from its file.

        `thumbnail` (height, width, 3) uint8; `outline` of the tissue (point, 3) int32: number of the ring, x, y in
        pixels of a picture of `properties["outline_extent"]`.
        """
        rows, columns = self._tissue.mask.shape
        self.properties["outline_extent"] = [columns, rows]
        return {"thumbnail": self.thumbnail(THUMBNAIL), "outline": self._tissue.outline()}

    @cached_property
    def _tissue(self) -> Tissue:
        """What of the slide is tissue: the user's own mask, or what the settings make of a picture of it."""
        settings = self._settings.tissue
        l0_width, l0_height = self._pyramid.extents[0]
        factor = max(1.0, settings.mpp / self._l0_mpp)
        width, height = (max(1, round(length / factor)) for length in (l0_width, l0_height))
        if width * height > PICTURE_PIXELS:
            raise ImageError(
                f"its picture at slide.tissue.mpp {settings.mpp:g} would have {width} by {height} pixels: is its mpp "
                f"{self._l0_mpp:g} true? Else raise slide.tissue.mpp"
            )
        if own := annotation_of(self._path):
            self.properties["tissue"] = "geojson"
            l0_per_pixel = (l0_width / width, l0_height / height)
            return Tissue(rasterise(read_geojson(own), (height, width), l0_per_pixel, qupath_origin(self._pyramid)))
        self.properties["tissue"] = settings.method
        picture, readable = self._picture(width, height)
        if not readable.any():
            raise ImageError("no part of it can be decoded: is the file whole?")
        l0_pixels = l0_width * l0_height / (width * height)
        return segment(picture, readable, settings, l0_pixels * (self._l0_mpp / 1000) ** 2, l0_pixels)

    def _readers(self, threads: int) -> ThreadPoolExecutor:
        """Threads that stay from batch to batch: new ones begin with cold memory, which costs a third of the pace."""
        if self._pool is None or self._pool[0] != threads:
            self._pool = threads, ThreadPoolExecutor(threads)  # decoders and resampling run outside Python's lock
        return self._pool[1]

    def _picture(self, width: int, height: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The whole slide in so many pixels, (height, width, 3), and which of them could be decoded, (height, width).

        Read piece by piece from the coarsest size that is fine enough.
        """
        view = picture_view(self._sizes, width, height)
        largest, smallest = (max(1, math.floor(side / max(view.scale))) for side in (PIECE, SMALLEST_PIECE))
        picture = np.full((height, width, 3), 255, dtype=np.uint8)
        readable = np.zeros((height, width), dtype=np.bool_)
        pieces = [(x, y, largest) for y in range(0, height, largest) for x in range(0, width, largest)]
        failures = 0
        while pieces:
            x, y, side = pieces.pop()
            piece = np.empty((min(side, height - y), min(side, width - x), 3), np.uint8)
            if self._read_view(view, (x, y), piece):
                picture[y : y + side, x : x + side] = piece
                readable[y : y + side, x : x + side] = True
                continue
            failures += 1
            half = -(-side // 2)
            if side > smallest and failures < MOST_FAILURES:  # what can be read around the damage
                pieces += [
                    (x + dx, y + dy, half) for dx in (0, half) for dy in (0, half) if x + dx < width and y + dy < height
                ]
        return picture, readable

    def _read_view(self, view: View, origin: tuple[int, int], out: NDArray[np.uint8]) -> bool:
        """Fill an array (height, width, 3) with a region of a view; whether it could be decoded."""
        done = self._read_size(view, origin, out) if view.is_own else self._resample(view, origin, out)
        if done and self._to_srgb is not None:
            white = (out == 255).all(axis=2)  # glass, or nothing: stays white
            out[:] = np.asarray(PIL.ImageCms.applyTransform(PIL.Image.fromarray(out), self._to_srgb))
            out[white] = 255
        return done

    def _resample(self, view: View, origin: tuple[int, int], out: NDArray[np.uint8]) -> bool:
        """Fill an array with a region of a view that is shrunk from a size; white beyond the size."""
        starts, ends, first, last = [], [], [], []  # along x and y, in pixels of the size
        for at, pixels, scale, length in zip(origin, out.shape[1::-1], view.scale, view.extent, strict=True):
            reach = RESAMPLING_SUPPORT * max(scale, 1.0) + 1  # what the filter sees beyond the region: no seams
            starts.append(at * scale)
            ends.append((at + pixels) * scale)
            first.append(max(0, math.floor(starts[-1] - reach)))
            last.append(max(first[-1] + 1, math.ceil(ends[-1] + reach)))
            if ends[-1] <= length + 1e-6 * scale:
                last[-1] = max(first[-1] + 1, min(length, last[-1]))  # at the edge the filter uses what there is
        region = np.empty((last[1] - first[1], last[0] - first[0], 3), np.uint8)
        if not self._read_size(view, (first[0], first[1]), region):
            return False
        box = (
            starts[0] - first[0],
            starts[1] - first[1],
            min(ends[0] - first[0], region.shape[1]),
            min(ends[1] - first[1], region.shape[0]),
        )
        out[:] = np.asarray(PIL.Image.fromarray(region).resize(out.shape[1::-1], RESAMPLING, box=box))
        return True

    def _read_size(self, view: View, origin: tuple[int, int], out: NDArray[np.uint8]) -> bool:
        """Fill an array with a region of a decodable size; whether it could be decoded."""
        if view.level in self._jpeg.levels:
            return self._jpeg.read(view.level, view.factor, origin, out)
        region = self._pyramid.region(view.level, origin, (out.shape[1], out.shape[0]))
        if region is None:
            return False
        out[:] = region
        return True

    @cached_property
    def _to_srgb(self) -> PIL.ImageCms.ImageCmsTransform | None:
        """The transform of colours, when it is wanted and the slide holds a profile."""
        if not self._settings.icc:
            return None
        try:
            profile = self._pyramid.icc
            if not profile:
                self.properties["notes"].append("it holds no colour profile")
                return None
            own, srgb = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)), PIL.ImageCms.createProfile("sRGB")
            return PIL.ImageCms.buildTransform(own, srgb, "RGB", "RGB", flags=PIL.ImageCms.Flags(NO_CACHE))
        except PROFILE_ERRORS:
            self.properties["notes"].append("its colour profile cannot be used")
            return None


def qupath_origin(pyramid: Pyramid) -> tuple[float, float]:
    """Level 0 position, (x, y), of what QuPath shows as the origin of a slide, and counts its annotations from.

    QuPath crops to the bounds that the file states (MIRAX does) when they are smaller than it along both axes.
    """
    names = ("bounds-x", "bounds-y", "bounds-width", "bounds-height")
    try:
        x, y, width, height = (float(pyramid.facts[f"openslide.{name}"]) for name in names)
    except (KeyError, ValueError):
        return 0.0, 0.0
    extent = pyramid.extents[0]
    return (x, y) if width != extent[0] and height != extent[1] else (0.0, 0.0)
