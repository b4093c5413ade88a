"""A pyramidal TIFF of JPEG tiles, as slide scanners write it, from pixels in memory.

Written by hand because TIFF libraries for Python encode JPEG only with a further codec package, and Pillow, which has
the encoder, writes no tiles.
"""

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHORT, LONG, RATIONAL = 3, 4, 5
Entry = tuple[int, int, list[int]]
"""One entry of a TIFF directory: tag, type, values (a rational is numerator, denominator)."""


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
    image = Image.fromarray(pixels)
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        link = 4  # where the offset of the next directory belongs
        for level in range(levels):
            offsets, sizes = [], []
            for encoded in _encoded_tiles(image, tile):
                offsets.append(file.tell())
                sizes.append(len(encoded))
                file.write(encoded)
            entries = _entries(image.size, mpp * 2**level, tile, offsets, sizes, reduced=level > 0)
            start = file.tell() + file.tell() % 2
            directory, next_link = _directory(entries, start)
            file.seek(start)
            file.write(directory)
            file.seek(link)
            file.write(struct.pack("<I", start))
            file.seek(0, io.SEEK_END)
            link = next_link
            image = image.reduce(2)


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


def _entries(
    size: tuple[int, int],
    mpp: float,
    tile: int,
    offsets: list[int],
    sizes: list[int],
    reduced: bool,
) -> list[Entry]:
    """The entries of one level, sorted by tag as TIFF wants them."""
    resolution = [round(1e7 / mpp), 1000]  # pixels per centimetre
    return [
        (254, LONG, [int(reduced)]),  # a reduced-resolution version of another image
        (256, LONG, [size[0]]),
        (257, LONG, [size[1]]),
        (258, SHORT, [8, 8, 8]),  # bits per sample
        (259, SHORT, [7]),  # compression: JPEG
        (262, SHORT, [6]),  # photometric interpretation: YCbCr
        (277, SHORT, [3]),  # samples per pixel
        (282, RATIONAL, resolution),
        (283, RATIONAL, resolution),
        (284, SHORT, [1]),  # planar configuration: the samples of a pixel lie together
        (296, SHORT, [3]),  # unit of the resolution: centimetre
        (322, LONG, [tile]),
        (323, LONG, [tile]),
        (324, LONG, offsets),
        (325, LONG, sizes),
        (530, SHORT, [2, 2]),  # YCbCr subsampling, as the encoder does it
    ]


def _directory(entries: list[Entry], start: int) -> tuple[bytes, int]:
    """The bytes of a directory that begins at file offset `start`, and the offset of its link to the next one."""
    link = start + 2 + 12 * len(entries)
    head, tail = struct.pack("<H", len(entries)), b""
    for tag, kind, values in entries:
        packed = struct.pack(f"<{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        count = len(values) // 2 if kind == RATIONAL else len(values)
        if len(packed) <= 4:
            field = packed.ljust(4, b"\0")
        else:
            field = struct.pack("<I", link + 4 + len(tail))
            tail += packed + b"\0" * (len(packed) % 2)
        head += struct.pack("<HHI", tag, kind, count) + field
    return head + struct.pack("<I", 0) + tail, link
