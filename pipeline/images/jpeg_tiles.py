"""JPEG tiles of a TIFF file, read by offset and decoded by libjpeg-turbo: OpenSlide's pixels at five times its pace.

OpenSlide decodes into a picture of its own, with alpha, and copies twice; here a tile is decoded where it is wanted,
and by 2, 4 or 8 smaller inside the decoder when that is all that is wanted. Only for files of which that is known to be
exact; a tile that is missing or unusual is left to OpenSlide.
"""

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.images.pyramid import Pyramid

Pixels = NDArray[np.uint8]

FACTORS = (1, 2, 4, 8)
"""By which libjpeg-turbo shrinks while it decodes, at the cost of a part of the coefficients."""

CACHE = 128 << 20
"""Bytes of decoded tiles that are kept: two rows of 240-pixel tiles across 90,000 pixels."""

RGB, YCBCR, GRAY = 2, 6, 1
"""Photometric interpretations."""

START, END, ADOBE = b"\xff\xd8", b"\xff\xd9", b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
"""A JPEG stream's first and last marker, and an APP14 marker up to its last byte, the colour transform: 0 for RGB, 1
for YCbCr. libjpeg guesses without it, and takes the RGB tiles of Aperio for YCbCr."""

SURPLUS = "extraneous bytes"
"""A warning of libjpeg about bytes before a marker: the padding of some writers, and then in most tiles; or damage that
ended the pixels of one tile too early."""

Loss = Literal["missing", "unusual", "damaged"]


@dataclass
class JpegLevel:
    """One level whose tiles are JPEG streams. Positions are in pixels of the level divided by a factor; see `read`."""

    file: int
    extent: tuple[int, int]
    tile: tuple[int, int]
    """Pixels of one tile, (x, y)."""
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    """Bytes of each tile, row by row."""
    head: bytes
    """What is put before each stream in place of its first marker: colour transform and shared tables."""
    photometric: int
    """RGB, YCBCR or GRAY."""
    read_seconds: float = 0.0
    """Of all threads, that bytes took to come. ASSUME: threads that add at the same moment may lose one another's."""

    @property
    def columns(self) -> int:
        """Tiles in one row."""
        return -(-self.extent[0] // self.tile[0])

    def decode(self, column: int, row: int, factor: int, out: Pixels | None = None) -> Pixels | Loss:
        """One tile, (height / factor, width / factor, 3), or why it cannot be had here.

        Args:
            column: of the tile.
            row: of the tile.
            factor: one of FACTORS.
            out: contiguous array of that shape, to be filled and returned.
        """
        number = row * self.columns + column
        length = self.lengths[number]
        if not length:
            return "missing"
        began = time.perf_counter()
        stream = os.pread(self.file, length, self.offsets[number])
        self.read_seconds += time.perf_counter() - began
        if len(stream) != length or stream[:2] != START:
            return "damaged"
        if not self._usual(stream):
            return "unusual"
        width, height = self.tile[0] // factor, self.tile[1] // factor
        if out is None:
            out = np.empty((height, width, 3), np.uint8)
        try:
            simplejpeg.decode_jpeg(
                self.head + stream[2:],
                colorspace="RGB",
                min_height=height,
                min_width=width,
                min_factor=factor,
                buffer=out,
                strict=True,
            )
        except ValueError as error:
            return "unusual" if SURPLUS in str(error) and self._is_padded else "damaged"
        return out

    @cached_property
    def _is_padded(self) -> bool:
        """Whether it is this writer's way to put bytes between the pixels of a tile and its end."""
        padded = whole = 0
        for number in range(0, len(self.offsets), max(1, len(self.offsets) // 16)):
            stream = os.pread(self.file, self.lengths[number], self.offsets[number])
            try:
                simplejpeg.decode_jpeg(self.head + stream[2:], min_factor=8, strict=True)
                whole += 1
            except ValueError as error:
                padded += SURPLUS in str(error)
        return padded > whole

    def _usual(self, stream: bytes) -> bool:
        """Whether a stream has 8 bits, the tile's size, the level's components, and nothing that says other colours.

        libjpeg takes a stream with a JFIF marker for YCbCr, whatever an Adobe marker says, and the last Adobe marker
        for true; its own look at the header tells neither of these markers nor of the bits.
        """
        at, end = 2, len(stream) - 11
        while at < end and stream[at] == 0xFF:
            marker, length = stream[at + 1], stream[at + 2] << 8 | stream[at + 3]
            if 0xC0 <= marker <= 0xC2:
                height, width = stream[at + 5] << 8 | stream[at + 6], stream[at + 7] << 8 | stream[at + 8]
                components = stream[at + 9]
                wanted = 1 if self.photometric == GRAY else 3
                return stream[at + 4] == 8 and (width, height) == self.tile and components == wanted
            other_process = 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xCC)
            other_colours = marker == 0xEE or (marker == 0xE0 and self.photometric == RGB)
            if other_process or other_colours or marker == 0xFF:
                return False
            at += 2 + length
        return False


@dataclass
class JpegReader:
    """Regions of levels that are made of JPEG tiles. Safe for many threads.

    Args:
        levels: as pipeline/images/jpeg_levels.py finds them, by number.
        pyramid: reads the tiles that are missing or unusual.
    """

    levels: dict[int, JpegLevel]
    pyramid: Pyramid
    others: int = 0
    """Tiles that went through OpenSlide so far."""
    _cache: "OrderedDict[tuple[int, ...], Pixels | None]" = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, level: int, factor: int, origin: tuple[int, int], out: Pixels) -> bool:
        """Fill an array (height, width, 3) with a region of a level shrunk by a factor; white beyond the level.

        Args:
            level: its number.
            factor: one of FACTORS.
            origin: of the region, (x, y), in pixels of the level divided by the factor.
            out: a contiguous array.

        Returns:
            Whether all of it could be decoded; what could not is then undefined.
        """
        source = self.levels[level]
        (x, y), (height, width) = origin, out.shape[:2]
        tile_width, tile_height = source.tile[0] // factor, source.tile[1] // factor
        right, bottom = source.extent[0] // factor, source.extent[1] // factor
        inside = x >= 0 and x + width <= right and y >= 0 and y + height <= bottom
        if inside and (width, height) == (tile_width, tile_height) and x % width == 0 and y % height == 0:
            found = self._decode(level, x // width, y // height, factor, out)  # straight to where it is wanted
            if found is not None and found is not out:
                out[:] = found
            return found is not None
        if not inside:
            out[:] = 255
        first_x, last_x = max(x, 0), min(x + width, right)
        first_y, last_y = max(y, 0), min(y + height, bottom)
        for row in range(first_y // tile_height, -(-last_y // tile_height)):
            top, low = max(first_y, row * tile_height), min(last_y, (row + 1) * tile_height)
            for column in range(first_x // tile_width, -(-last_x // tile_width)):
                left, far = max(first_x, column * tile_width), min(last_x, (column + 1) * tile_width)
                pixels = self._tile(level, column, row, factor)
                if pixels is None:
                    return False
                from_y, from_x = top - row * tile_height, left - column * tile_width
                part = pixels[from_y : from_y + low - top, from_x : from_x + far - left]
                out[top - y : low - y, left - x : far - x] = part
        return True

    def _tile(self, level: int, column: int, row: int, factor: int) -> Pixels | None:
        """A whole tile, which neighbouring regions share; None when it cannot be decoded.

        Two threads may both decode a tile that neither found: cheaper than one waiting for the other.
        """
        key = (level, column, row, factor)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        pixels = self._decode(level, column, row, factor)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = pixels
                self._bytes += 0 if pixels is None else pixels.nbytes
            while self._bytes > CACHE:
                _, gone = self._cache.popitem(last=False)
                self._bytes -= 0 if gone is None else gone.nbytes
        return pixels

    def _decode(self, level: int, column: int, row: int, factor: int, out: Pixels | None = None) -> Pixels | None:
        """A tile, in `out` where that can be; None when it cannot be decoded.

        What is missing or unusual comes from OpenSlide, averaged over squares where the factor is above 1. What is
        damaged does not: OpenSlide gives some of it as pixels, grey from the damage on, and no error.
        """
        source = self.levels[level]
        found = source.decode(column, row, factor, out)
        if not isinstance(found, str):
            return found
        if found == "damaged":
            return None
        with self._lock:
            self.others += 1
        width, height = source.tile
        region = self.pyramid.region(level, (column * width, row * height), (width, height))
        if region is None or factor == 1:
            return region
        size = (width // factor, height // factor)
        return np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), np.uint8)
