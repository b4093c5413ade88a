"""What opens as a slide, by content; and what does not, in one line."""

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tifffile

from pipeline.errors import ImageError
from pipeline.images.pyramid import OpenSlidePyramid, PlainPyramid, on_white, open_pyramid, what_it_is
from support.jpeg_slide import textured, write_jpeg_slide


def encoded(image: PIL.Image.Image, kind: str) -> bytes:
    held = io.BytesIO()
    image.save(held, kind)
    return held.getvalue()


@pytest.mark.parametrize("name", ["a.svs", "a.jpg", "a", "Ä ö.bin"])
def test_a_slide_is_one_under_any_name(tmp_path, name):
    assert isinstance(open_pyramid(write_jpeg_slide(tmp_path / name, textured(64, 64))), OpenSlidePyramid)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("name", ["a.png", "a.svs", "a"])
def test_a_plain_image_is_one_level(tmp_path, kind, name):
    pixels = textured(50, 70)
    (tmp_path / name).write_bytes(encoded(PIL.Image.fromarray(pixels), kind))
    pyramid = open_pyramid(tmp_path / name)
    assert (pyramid.extents, pyramid.downsamples, dict(pyramid.facts)) == (((70, 50),), (1.0,), {})
    assert np.array_equal(pyramid.region(0, (0, 0), (70, 50)), pixels)
    beyond = pyramid.region(0, (60, 40), (20, 20))
    assert np.array_equal(beyond[:10, :10], pixels[40:, 60:]) and (beyond[10:] == 255).all()


@pytest.mark.parametrize(("mode", "value", "seen"), [
    ("L", 80, (80, 80, 80)), ("RGBA", (10, 20, 30, 0), (255, 255, 255)), ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
    ("LA", (80, 0), (255, 255, 255)), ("P", 3, (1, 2, 3)),
])  # fmt: skip
def test_plain_images_are_shown_as_rgb_on_white(tmp_path, mode, value, seen):
    image = PIL.Image.new(mode, (8, 8), value)
    if mode == "P":
        image.putpalette([1, 2, 3] * 256)
    image.save(tmp_path / "a.png")
    assert np.unique(open_pyramid(tmp_path / "a.png").region(0, (0, 0), (8, 8)).reshape(-1, 3), axis=0).tolist() == [
        list(seen)
    ]


def test_a_colour_that_stands_for_transparent_is_white(tmp_path):
    image = PIL.Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (9, 9, 9))
    image.save(tmp_path / "a.png", transparency=(0, 0, 0))
    assert open_pyramid(tmp_path / "a.png").region(0, (0, 0), (2, 1))[0].tolist() == [[255] * 3, [9] * 3]


def test_a_plain_image_that_is_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.images.pyramid.PLAIN_PIXELS", 1000)
    PIL.Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="^is a plain image of 40 by 30 pixels, which would be decoded whole: convert"):
        PlainPyramid(tmp_path / "a.png")


def plain_16_bit(path):
    tifffile.imwrite(path, np.zeros((32, 32), np.uint16))


def plain_cmyk(path):
    path.write_bytes(encoded(PIL.Image.new("CMYK", (32, 32)), "JPEG"))


def two_pages(path):
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(np.zeros((32, 32), np.uint8), metadata=None)


def two_odd_pages(path):
    with tifffile.TiffWriter(path) as file:
        for kind in (np.uint8, np.float32):
            file.write(np.zeros((32, 32, 3), kind), photometric="rgb", metadata=None)


def deep_png(path):
    """Pillow writes no RGB of 16 bits: the header of one, and nothing else that would be read."""
    path.write_bytes(png(32, 32, 16, 2))


def huge_png(path):
    path.write_bytes(png(20_000, 20_000, 8, 2))


def png(width: int, height: int, bits: int, colour: int) -> bytes:
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)), (b"IEND", b""))
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def half_a_png(path):
    content = encoded(PIL.Image.fromarray(textured(200, 200)), "PNG")
    path.write_bytes(content[: len(content) // 2])


def half_a_slide(path):
    write_jpeg_slide(path, textured(300, 300))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("make", "line"), [
    (lambda path: path.write_bytes(b""), "is an empty file: bring it again"),
    (lambda path: path.write_text("<!DOCTYPE html><p>404"),
     "is no slide but an HTML page, as servers send in place of a file: bring the slide itself"),
    (lambda path: path.write_text("notes about a slide"), "is no slide but text: bring the slide itself"),
    (lambda path: path.write_bytes(b"%PDF-1.7\n\0"), "is no slide but a PDF document: bring the slide itself"),
    (lambda path: path.write_bytes(b"PK\x03\x04\0\0"), "is no slide but a ZIP archive: bring the slide itself"),
    (lambda path: path.write_bytes(b"\1\2\3\0" * 9), "cannot be opened as a slide: Unsupported or missing image file"),
    (plain_16_bit, "its pixels are 16-bit, not 8-bit grey or RGB: convert it"),
    (plain_cmyk, "its pixels are CMYK, not 8-bit grey or RGB: convert it"),
    (two_pages, "is an image of 2 pages and no slide that OpenSlide knows: rewrite it as a pyramidal TIFF"),
    (two_odd_pages, "is a TIFF file that is cut short, or of a kind that is not known: "),
    (deep_png, "its pixels are 16-bit, not 8-bit grey or RGB: convert it"),
    (huge_png, "is a plain image of 20000 by 20000 pixels, which would be decoded whole: convert it"),
    (os.mkfifo, "is no ordinary file: bring the slide itself"),
    (half_a_png, "is a damaged plain image: image file is truncated"),
    (half_a_slide, "is a TIFF file that is cut short, its directory lies beyond its end: bring it again"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["Doe Jane.svs", "Doe Jane"])
def test_what_is_no_slide_is_refused_in_one_line(tmp_path, make, line, name):
    make(tmp_path / name)
    with pytest.raises(ImageError) as caught:
        open_pyramid(tmp_path / name)
    assert str(caught.value).startswith(line)
    assert "Doe" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_mirax_slide_without_its_folder_is_not_taken_for_its_picture(tmp_path):
    """Its first file is a JPEG picture of the slide."""
    (tmp_path / "a.mrxs").write_bytes(encoded(PIL.Image.new("RGB", (64, 64)), "JPEG"))
    with pytest.raises(
        ImageError, match="^is the first file of a MIRAX slide without its folder of data files: bring both"
    ):
        open_pyramid(tmp_path / "a.mrxs")


def test_a_missing_file_names_no_path(tmp_path):
    with pytest.raises(ImageError, match="^cannot be opened as a slide: No such file or directory$"):
        open_pyramid(tmp_path / "Doe.svs")


def test_tiles_that_no_memory_holds_are_refused_before_openslide_meets_them(tmp_path):
    """OpenSlide ends the process when it finds no memory for a tile."""
    path = write_jpeg_slide(tmp_path / "a.tif", textured(64, 64), aperio=False)
    content = bytearray(path.read_bytes())
    for tag in (b"\x42\x01\x04\x00", b"\x43\x01\x04\x00"):  # TileWidth and TileLength
        at = content.index(tag) + 8
        content[at : at + 4] = (1 << 20).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ImageError, match="its tiles are 1048576 by 1048576 pixels"):
        open_pyramid(path)


def test_transparent_pixels_are_white_and_half_transparent_ones_lie_between():
    image = PIL.Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 128)])
    assert np.asarray(on_white(image))[0, :, 0].tolist() == [255, 0, 127]


def test_bytes_that_say_nothing_are_not_given_a_name():
    assert what_it_is(b"\x00\x01\x02 binary") == ""
