"""Slides of JPEG tiles, as Aperio's scanners and others write them; also faulty ones."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import simplejpeg
from numpy.typing import NDArray

from pipeline.synthetic.pyramid import GRAY, RGB, YCBCR, StoredLevel, write_levels

Pixels = NDArray[np.uint8]
PHOTOMETRIC = {"rgb": RGB, "ycbcr": YCBCR, "gray": GRAY}
APERIO = (
    "Aperio Image Library v11.2.1\n{width}x{height} [0,0 {width}x{height}] ({tile}x{tile}) JPEG"
    "|AppMag = {power}|MPP = {mpp}"
)


def textured(height: int, width: int, seed: int = 0, sigma: float = 2.0) -> Pixels:
    """Smooth structure in the colours of tissue (height, width, 3): what a JPEG encoder meets in a slide."""
    rng = np.random.default_rng(seed)
    small = rng.normal(size=(height // 8 + 2, width // 8 + 2, 2)).astype(np.float32)
    picture = PIL.Image
    fields = [
        np.asarray(picture.fromarray(small[..., k]).resize((width, height), PIL.Image.Resampling.BICUBIC))
        for k in (0, 1)
    ]
    eosin, haematoxylin = np.array([225, 160, 190.0]), np.array([95, 65, 145.0])
    share = 1 / (1 + np.exp(-2 * fields[0]))[..., None]
    pixels = (
        eosin * share
        + haematoxylin * (1 - share)
        + 12 * fields[1][..., None]
        + rng.normal(0, sigma, (height, width, 1))
    )
    return np.clip(pixels, 0, 255).astype(np.uint8)


def split_stream(stream: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG stream (DQT, DHT) and the stream without them and without APP markers."""
    tables, rest, at = b"", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = stream[at : at + 2 + length]
        if marker in (0xDB, 0xC4):
            tables += segment
        elif not 0xE0 <= marker <= 0xEF:
            rest += segment
        at += 2 + length
    return tables, rest + stream[at:]


def encode(pixels: Pixels, model: str, subsampling: str, quality: int) -> bytes:
    """A JPEG stream: model `rgb` (no transform, as Aperio), `ycbcr` or `gray`."""
    if model == "rgb":
        held = io.BytesIO()
        PIL.Image.fromarray(pixels).save(held, "JPEG", quality=quality, keep_rgb=True, subsampling=0)
        return held.getvalue()
    colours = (
        {"colorspace": "GRAY", "colorsubsampling": "gray"} if model == "gray" else {"colorsubsampling": subsampling}
    )
    data = np.ascontiguousarray(pixels[..., :1]) if model == "gray" else np.ascontiguousarray(pixels)
    return bytes(simplejpeg.encode_jpeg(data, quality=quality, **colours))


def write_jpeg_slide(
    path: Path,
    pixels: Pixels,
    mpp: float = 0.5,
    tile: int = 64,
    model: str = "rgb",
    subsampling: str = "420",
    quality: int = 80,
    shared_tables: bool = True,
    aperio: bool = True,
    levels: int = 1,
    spoil: dict[int, bytes] | None = None,
    power: float = 20,
) -> Path:
    """Write a pyramid whose levels halve the one before.

    Args:
        path: of the file.
        pixels: level 0, (height, width, 3).
        mpp: µm per pixel of level 0.
        tile: side of a stored tile.
        model: `rgb`, `ycbcr` or `gray`: of the JPEG streams and of the photometric tag.
        subsampling: of ycbcr: 420, 422, 444.
        quality: of the encoder.
        shared_tables: whether the tables stand in the JPEGTables tag, once.
        aperio: whether the description is Aperio's; else a generic TIFF.
        levels: how many.
        spoil: tiles of level 0 by number: other bytes for them; empty: missing in the file.
        power: of the objective, in Aperio's description.
    """

    def made(pixels: Pixels) -> Iterator[StoredLevel]:
        for level in range(levels):
            height, width = pixels.shape[:2]
            padded = np.pad(pixels, [(0, -height % tile), (0, -width % tile), (0, 0)], mode="edge")
            parts = [padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]
            streams = [split_stream(encode(part, model, subsampling, quality)) for part in parts]
            tables = streams[0][0]
            assert all(found == tables for found, _ in streams)
            whole = [rest if shared_tables else b"\xff\xd8" + tables + rest[2:] for _, rest in streams]
            if level == 0:
                for number, other in (spoil or {}).items():
                    whole[number] = other
            description = APERIO.format(width=width, height=height, tile=tile, mpp=mpp, power=power) if aperio else ""
            yield StoredLevel(
                extent=(width, height),
                mpp=mpp * 2**level,
                tile=tile,
                streams=whole,
                reduced=level > 0 and not aperio,
                photometric=PHOTOMETRIC[model],
                subsampling={"420": (2, 2), "422": (2, 1), "444": (1, 1)}[subsampling],
                tables=b"\xff\xd8" + tables + b"\xff\xd9" if shared_tables else b"",
                description=description.encode(),
            )
            pixels = halved(pixels)

    write_levels(path, made(pixels))
    return path


def halved(pixels: Pixels) -> Pixels:
    """Pixels averaged over squares of two."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    squares = pixels[: height * 2, : width * 2].reshape(height, 2, width, 2, 3)
    return np.asarray(squares.mean((1, 3)).round(), np.uint8)
