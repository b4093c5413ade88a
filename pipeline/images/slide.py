"""A whole-slide image at one resolution, composited on white.

Frames: `l0_` marks pixels of level 0; pixels of a size are those that are decoded (pipeline/images/view.py); all else
is pixels at the resolution asked for. Tuples are (x, y), arrays (height, width, channel).
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.companions import missing_parts
from pipeline.errors import ImageError, one_line
from pipeline.image_settings import QualitySettings, SlideSettings
from pipeline.images import READ_FAILED, READ_OK
from pipeline.images.annotation import annotation_of, rasterise, read_geojson
from pipeline.images.colour import PROFILE_ERRORS, ToSrgb
from pipeline.images.jpeg_levels import jpeg_levels
from pipeline.images.jpeg_tiles import FACTORS, JpegReader
from pipeline.images.pyramid import Pyramid, open_pyramid
from pipeline.images.resolution import find_resolution
from pipeline.images.sampling import overview, resample
from pipeline.images.tissue import Tissue, keeps, segment
from pipeline.images.view import View, choose_view, decodable_sizes, extent_of, picture_view

PICTURE_PIXELS = 100_000_000
"""Of a picture that tissue is looked for in: 80 mm square at 8 µm."""

LONGEST_MM = 300
"""ASSUME: no slide is longer. Damaged files claim any size."""

THUMBNAIL = 768
"""Longest side in pixels of the thumbnail that is kept with the tiles: about 1.3 MB a slide."""


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
        per_pixel = max(1.0, settings.tissue.mpp / self._l0_mpp)
        self._mask_extent = tuple(max(1, round(length / per_pixel)) for length in self._pyramid.extents[0])
        self._annotation = annotation_of(path)
        self.tile_size: tuple[int, ...] = (settings.tile, settings.tile)
        self.tile_stride: tuple[int, ...] = (settings.stride, settings.stride)
        self.pads: bool = settings.edge == "pad"
        self.channels: tuple[str, ...] = ("red", "green", "blue")
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
            "tissue": "geojson" if self._annotation else settings.tissue.method,
            "outline_extent": list(self._mask_extent),
            "l0_extent": list(self._pyramid.extents[0]),
            "l0_origin": list(qupath_origin(self._pyramid)),
        }

    def foreground(self, origins: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.float32]:
        """How well each tile shows tissue: (tile,) its share, or 0 and 1 by `tissue.keep`.

        Parts that cannot be decoded count as tissue, so that their tiles are read and their failures counted.
        """
        mask_per_pixel = np.array(self._mask_extent) * self._view.scale / self._view.extent
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
        list(map(read_some, parts) if threads == 1 else self._readers(threads).map(read_some, parts))
        return pixels, status

    def reading(self) -> dict[str, object]:
        """Which way the tiles that were read so far took, and seconds, of all threads, that their bytes took."""
        return {
            "reader": self.properties["reader"],
            "tiles_left_to_openslide": self._jpeg.others,
            "read_seconds": round(sum(level.read_seconds for level in self._jpeg.levels.values()), 3),
        }

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
        return {"thumbnail": self.thumbnail(THUMBNAIL), "outline": self._tissue.outline()}

    @cached_property
    def _tissue(self) -> Tissue:
        """What of the slide is tissue: the user's own mask, or what the settings make of a picture of it."""
        settings = self._settings.tissue
        (l0_width, l0_height), (width, height) = self._pyramid.extents[0], self._mask_extent
        if width * height > PICTURE_PIXELS:
            raise ImageError(
                f"its picture at slide.tissue.mpp {settings.mpp:g} would have {width} by {height} pixels: is its mpp "
                f"{self._l0_mpp:g} true? Else raise slide.tissue.mpp"
            )
        if self._annotation:
            polygons, per_pixel = read_geojson(self._annotation), (l0_width / width, l0_height / height)
            return Tissue(rasterise(polygons, (height, width), per_pixel, qupath_origin(self._pyramid)))
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
        """The whole slide in so many pixels, and which could be decoded; from the coarsest size that will do."""
        view = picture_view(self._sizes, width, height)
        return overview(width, height, max(view.scale), lambda origin, out: self._read_view(view, origin, out))

    def _read_view(self, view: View, origin: tuple[int, int], out: NDArray[np.uint8]) -> bool:
        """Fill an array (height, width, 3) with a region of a view; whether it could be decoded."""
        if view.is_own:
            done = self._read_size(view, origin, out)
        else:
            done = resample(view, origin, out, lambda at, region: self._read_size(view, at, region))
        if done and self._to_srgb is not None:
            self._to_srgb.apply(out)
        return done

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
    def _to_srgb(self) -> ToSrgb | None:
        """What turns colours into sRGB, when it is wanted and the slide holds a profile."""
        if not self._settings.icc:
            return None
        try:
            return ToSrgb(self._pyramid.icc)
        except PROFILE_ERRORS as error:
            self.properties["notes"].append(f"its colours stay as they are: {one_line(error)}")
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
