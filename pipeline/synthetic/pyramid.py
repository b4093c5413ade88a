"""A pyramidal TIFF of JPEG tiles, as slide scanners write it, from pixels or from JPEG streams.

Written by hand because TIFF libraries for Python encode JPEG only with a further codec package, and Pillow, which has
the encoder, writes no tiles.
"""

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7
RGB, YCBCR, GRAY = 2, 6, 1
Entry = tuple[int, int, list[int] | bytes]
"""One entry of a TIFF directory: tag, type, values (a rational is numerator, denominator)."""


@dataclass(frozen=True)
class StoredLevel:
    """One level as it will stand in the file."""

    extent: tuple[int, int]
    """Pixels, (x, y)."""
    mpp: float
    tile: int
    """Side of its tiles in pixels, a multiple of 16."""
    streams: Iterable[bytes]
    """A JPEG stream per tile, row by row; empty: missing. The same object again is stored once."""
    reduced: bool = False
    """Whether it calls itself a smaller version of another image, as generic TIFF wants of all levels but one."""
    photometric: int = YCBCR
    subsampling: tuple[int, int] = (2, 2)
    tables: bytes = b""
    """A JPEG stream that holds only tables, which all its tiles share."""
    description: bytes = b""


def write_pyramid(path: Path, pixels: NDArray[np.uint8], mpp: float, levels: int = 3, tile: int = 256) -> None:
    """Write RGB pixels (height, width, 3) as a tiled pyramid; each level halves the one before.

    Args:
        path: the file to write; its folder is made.
        pixels: the finest level.
        mpp: µm per pixel of the finest level.
        levels: number of levels.
        tile: side of the file's tiles, in pixels, a multiple of 16.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    def halved(image: Image.Image) -> Iterator[StoredLevel]:
        for level in range(levels):
            yield StoredLevel(image.size, mpp * 2**level, tile, _encoded_tiles(image, tile), level > 0)
            image = image.reduce(2)

    write_levels(path, halved(Image.fromarray(pixels)))


def write_levels(path: Path, levels: Iterable[StoredLevel]) -> None:
    """Write a TIFF file from levels whose tiles are encoded already, the finest first."""
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        link = 4  # where the offset of the next directory belongs
        for level in levels:
            offsets, sizes = [], []
            places: dict[int, tuple[int, bytes]] = {}  # by id, with the object itself so that the id stays its own
            for stream in level.streams:
                if id(stream) not in places:
                    places[id(stream)] = (file.tell(), stream)
                    file.write(stream)
                offsets.append(places[id(stream)][0])
                sizes.append(len(stream))
            start = file.tell() + file.tell() % 2
            directory, next_link = _directory(_entries(level, offsets, sizes), start)
            file.seek(start)
            file.write(directory)
            file.seek(link)
            file.write(struct.pack("<I", start))
            file.seek(0, io.SEEK_END)
            link = next_link


def _encoded_tiles(image: Image.Image, tile: int) -> list[bytes]:
    """JPEG tiles row by row; those at the far edges go on with the last pixel, as black would bleed into the image."""
    height, width = -image.height % tile, -image.width % tile
    pixels = np.pad(np.asarray(image), [(0, height), (0, width), (0, 0)], mode="edge")
    tiles = []
    for y in range(0, len(pixels), tile):
        for x in range(0, pixels.shape[1], tile):
            encoded = io.BytesIO()
            part = Image.fromarray(pixels[y : y + tile, x : x + tile])
            part.save(encoded, "JPEG", quality=75, subsampling="4:2:0")
            tiles.append(encoded.getvalue())
    return tiles


def _entries(level: StoredLevel, offsets: list[int], sizes: list[int]) -> list[Entry]:
    """The entries of one level, sorted by tag as TIFF wants them."""
    resolution = [round(1e7 / level.mpp), 1000]  # pixels per centimetre
    samples = 1 if level.photometric == GRAY else 3
    entries: list[Entry] = [
        (254, LONG, [int(level.reduced)]),  # a reduced-resolution version of another image
        (256, LONG, [level.extent[0]]),
        (257, LONG, [level.extent[1]]),
        (258, SHORT, [8] * samples),  # bits per sample
        (259, SHORT, [7]),  # compression: JPEG
        (262, SHORT, [level.photometric]),
        (270, ASCII, level.description + b"\0" if level.description else b""),
        (277, SHORT, [samples]),
        (282, RATIONAL, resolution),
        (283, RATIONAL, resolution),
        (284, SHORT, [1]),  # planar configuration: the samples of a pixel lie together
        (296, SHORT, [3]),  # unit of the resolution: centimetre
        (322, LONG, [level.tile]),
        (323, LONG, [level.tile]),
        (324, LONG, offsets),
        (325, LONG, sizes),
        (347, UNDEFINED, level.tables),
        (530, SHORT, list(level.subsampling) if level.photometric == YCBCR else []),
    ]
    return [entry for entry in entries if entry[2]]


def _directory(entries: list[Entry], start: int) -> tuple[bytes, int]:
    """The bytes of a directory that begins at file offset `start`, and the offset of its link to the next one."""
    link = start + 2 + 12 * len(entries)
    head, tail = struct.pack("<H", len(entries)), b""
    for tag, kind, values in entries:
        if isinstance(values, bytes):
            packed = values
        else:
            packed = struct.pack(f"<{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        count = len(values) // 2 if kind == RATIONAL else len(values)
        if len(packed) <= 4:
            field = packed.ljust(4, b"\0")
        else:
            field = struct.pack("<I", link + 4 + len(tail))
            tail += packed + b"\0" * (len(packed) % 2)
        head += struct.pack("<HHI", tag, kind, count) + field
    return head + struct.pack("<I", 0) + tail, link
