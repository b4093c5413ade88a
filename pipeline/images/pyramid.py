"""The levels of a slide as OpenSlide reads them, or of a plain image, on white. No resolution, no tiles.

Frames: `origin` and `size` are in pixels of the level that is read, x first; arrays are (height, width, 3).
"""

import re
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from openslide import OpenSlide, OpenSlideCache, OpenSlideError, OpenSlideUnsupportedFormatError

from pipeline.companions import PICTURE_HEADS, TIFF_HEADS
from pipeline.errors import CONTENT_ERRORS, ImageError, one_line
from pipeline.images.content import first_directory

# Pillow raises SyntaxError for a page whose pixels it does not know.
SLIDE_ERRORS: tuple[type[Exception], ...] = (*CONTENT_ERRORS, OpenSlideError, SyntaxError)

PIL.Image.MAX_IMAGE_PIXELS = None
"""Pillow's own limit; ours comes before anything is decoded, and says what to do."""

CACHE = 64 << 20
"""Bytes of decoded tiles that OpenSlide keeps for one slide."""

MOST_TILE_PIXELS = 1 << 26
"""Pixels of one stored tile. OpenSlide ends the whole process on a tile that it finds no memory for."""

PLAIN_PIXELS = 64_000_000
"""A plain image is decoded whole, by Pillow into 4 bytes a pixel: at its peak this many take 0.6 GB, or 0.9 GB with
transparency."""

PLAIN_FORMATS = {"PNG", "JPEG", "BMP", "TIFF"}
PLAIN_MODES = {"L", "LA", "P", "RGB", "RGBA"}

FOREIGN = {
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip-compressed data",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file",
}


class Pyramid(Protocol):
    """The levels of an image, finest first."""

    extents: tuple[tuple[int, int], ...]
    """Pixels of each level, (x, y)."""
    downsamples: tuple[float, ...]
    """Level 0 pixels per pixel of each level."""
    facts: Mapping[str, str]
    """What the file says of itself, by OpenSlide's property names. Holds whatever the scanner wrote: never exported."""

    @property
    def icc(self) -> bytes:
        """Its colour profile; empty when it has none."""
        ...

    def region(self, level: int, origin: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """A region of a level on white, (height, width, 3); None when it cannot be decoded."""
        ...


def open_pyramid(path: Path) -> Pyramid:
    """Open a slide or a plain image, told apart by their first bytes and never by their names.

    Raises:
        ImageError: it is neither, or damaged; the message names no path.
    """
    with content_errors(path, "cannot be opened as a slide"):
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise ImageError("is no ordinary file: bring the slide itself")
        with path.open("rb") as file:
            head = file.read(512)
        if not head:
            raise ImageError("is an empty file: bring it again")
        if (vendor := OpenSlide.detect_format(path)) is not None:
            try:
                return OpenSlidePyramid(path)
            except OpenSlideUnsupportedFormatError:  # known and refused all the same
                raise ImageError(
                    f"is a slide of the kind {vendor} that OpenSlide refuses, perhaps because its levels do not "
                    "shrink one after the other: rewrite it as a pyramidal TIFF"
                ) from None
        if path.suffix.lower() == ".mrxs" and head.startswith(b"\xff\xd8"):  # it begins with a picture of the slide
            raise ImageError("is the first file of a MIRAX slide without its folder of data files: bring both")
        if head.startswith((*PICTURE_HEADS, *TIFF_HEADS)):
            if first_directory(head) >= path.stat().st_size:
                raise ImageError("is a TIFF file that is cut short, its directory lies beyond its end: bring it again")
            return PlainPyramid(path)
        if found := what_it_is(head):
            raise ImageError(f"is no slide but {found}: bring the slide itself")
        return OpenSlidePyramid(path)  # says what it misses


def what_it_is(head: bytes) -> str:
    """What a file is, by its first bytes, where that explains why it is no slide; empty when it does not."""
    for signature, name in FOREIGN.items():
        if head.startswith(signature):
            return name
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, as servers send in place of a file"
    with_text = sum(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
    return "text" if with_text == len(head) else ""


@contextmanager
def content_errors(path: Path, problem: str) -> Iterator[None]:
    """Turns what a library raises into one line without any path: file names can name patients."""
    try:
        yield
    except ImageError:
        raise
    except SLIDE_ERRORS as error:
        text = str(error.strerror) if isinstance(error, OSError) and error.strerror else one_line(error)
        text = text.replace(str(path), "the file")
        text = re.sub(re.escape(f"{path.parent}/") + "[^:]*", "a file", text)
        raise ImageError(f"{problem}: {text.replace(path.name, 'the file')}") from None


class OpenSlidePyramid:
    """What OpenSlide reads. Safe for many threads; see `Pyramid`.

    Raises:
        OpenSlideError: it cannot be opened.
        ImageError: a tile of it has a size that no scanner writes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cache = OpenSlideCache(CACHE)
        self._replacing = threading.Lock()
        self._handle = self._open()
        self.extents: tuple[tuple[int, int], ...] = self._handle.level_dimensions
        self.downsamples: tuple[float, ...] = self._handle.level_downsamples
        self.facts: Mapping[str, str] = dict(self._handle.properties)
        for name, value in self.facts.items():
            if re.fullmatch(r"openslide\.level\[\d+\]\.tile-width", name):
                height = self.facts.get(name.replace("width", "height"), "1")
                if int(value) * int(height) > MOST_TILE_PIXELS:
                    raise ImageError(f"its tiles are {value} by {height} pixels, which no scanner writes: is it whole?")

    @property
    def icc(self) -> bytes:
        """See `Pyramid`."""
        profile = self._handle.color_profile
        return b"" if profile is None else bytes(profile.tobytes())

    def region(self, level: int, origin: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """See `Pyramid`.

        An OpenSlide handle that has failed once fails for ever, whichever thread made it fail. So a failure is believed
        only from a fresh handle, and a fresh handle that succeeds takes the place of the failed one, which closes
        itself when its last reader lets go of it.
        """
        downsample = self.downsamples[level]
        l0_origin = (round(origin[0] * downsample), round(origin[1] * downsample))
        try:
            found = self._handle.read_region(l0_origin, level, size)
        except SLIDE_ERRORS:
            with self._replacing:
                fresh = self._open()
            try:
                found = fresh.read_region(l0_origin, level, size)
            except SLIDE_ERRORS:
                return None
            self._handle = fresh
        return np.asarray(on_white(found))

    def _open(self) -> OpenSlide:
        handle = OpenSlide(self._path)
        handle.set_cache(self._cache)
        return handle


class PlainPyramid:
    """One plain image, decoded whole: one level, and no resolution of its own. See `Pyramid`.

    Raises:
        ImageError: it is damaged, too large to be decoded whole, or its pixels are no 8-bit grey or RGB.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(32)
        is_tiff = first_directory(head) > 0
        kind = "a TIFF file that is cut short, or of a kind that is not known" if is_tiff else "a damaged plain image"
        with content_errors(path, f"is {kind}"), PIL.Image.open(path) as image:
            width, height = image.size
            if image.format not in PLAIN_FORMATS:
                raise ImageError(f"is a {image.format} image: convert it to a pyramidal TIFF")
            if width * height > PLAIN_PIXELS:
                raise ImageError(
                    f"is a plain image of {width} by {height} pixels, which would be decoded whole: convert it to a "
                    "pyramidal TIFF"
                )
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise ImageError(
                    f"is an image of {pages} pages and no slide that OpenSlide knows: rewrite it as a pyramidal TIFF, "
                    "or keep the page that is meant"
                )
            bits = max(getattr(image, "tag_v2", {}).get(258, (8,)))
            if image.format == "PNG":  # of a deeper one Pillow shows the upper 8 bits, and says nothing
                bits = max(head[24], 8)
            if image.mode not in PLAIN_MODES or bits != 8:
                mode = f"{bits}-bit" if bits != 8 else image.mode
                raise ImageError(f"its pixels are {mode}, not 8-bit grey or RGB: convert it")
            self.icc: bytes = bytes(image.info.get("icc_profile") or b"")
            if image.mode in ("LA", "P", "RGBA") or "transparency" in image.info:
                self._pixels = np.asarray(on_white(image.convert("RGBA")))
            else:
                self._pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        self.extents: tuple[tuple[int, int], ...] = ((width, height),)
        self.downsamples: tuple[float, ...] = (1.0,)
        self.facts: Mapping[str, str] = {}

    def region(self, level: int, origin: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8] | None:
        """See `Pyramid`."""
        (x, y), (width, height) = origin, size
        found = self._pixels[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        if found.shape[:2] == (height, width):
            return found
        whole = np.full((height, width, 3), 255, np.uint8)
        top, left = max(-y, 0), max(-x, 0)
        whole[top : top + found.shape[0], left : left + found.shape[1]] = found
        return whole


def on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """An RGBA image as RGB, what is transparent being white."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    white = PIL.Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=alpha)
    return white
