"""Content hashes: the same content under any name, and any change that should be seen."""

import os
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile

from pipeline.errors import ImageError
from pipeline.images.content import content_hash

MIB = 1 << 20


@pytest.fixture
def big_slide(tmp_path):
    """A classic TIFF file of 20 MB whose directory and resolution stand in the middle, between the blocks."""
    path = tmp_path / "slide.tif"
    path.write_bytes(tiff(b"II"))
    return path


DIRECTORY, RESOLUTION = 10 * MIB + 77_777, 10 * MIB + 80_000


def tiff(order: bytes) -> bytes:
    """20 MB with one directory at DIRECTORY, which holds a width and points to an XResolution at RESOLUTION."""
    code = "<" if order == b"II" else ">"
    content = bytearray(20 * MIB)
    content[:8] = order + struct.pack(code + "HI", 42, DIRECTORY)
    width = struct.pack(code + "HHIHH", 256, 3, 1, 512, 0)
    resolution = struct.pack(code + "HHII", 282, 5, 1, RESOLUTION)
    content[DIRECTORY : DIRECTORY + 30] = struct.pack(code + "H", 2) + width + resolution + bytes(4)
    content[RESOLUTION : RESOLUTION + 8] = struct.pack(code + "II", 20_000, 1)
    return bytes(content)


def edit(path, offset: int, value: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value)


def spread(path) -> str:
    return content_hash(path, [path], "slide", full=False)


def test_the_hash_is_a_sha256_in_hexadecimal(big_slide):
    assert len(spread(big_slide)) == 64
    assert int(spread(big_slide), 16) > 0


def test_name_and_date_change_nothing(big_slide):
    before = spread(big_slide)
    os.utime(big_slide, (0, 0))
    assert spread(big_slide.rename(big_slide.with_name("other.tif"))) == before


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"X"),
        (200_000, b"X"),
        (20 * MIB - 200_000, b"X"),
        (20 * MIB, b"\0"),
        (20 * MIB - 1, b"X"),
        (RESOLUTION + 3, b"X"),
        (DIRECTORY + 10, b"\x77"),
    ],
    ids=["first byte", "first MiB", "last MiB", "appended byte", "last byte", "resolution", "width"],
)
def test_a_large_slide_edited_in_place_has_another_hash(big_slide, offset, value):
    before = spread(big_slide)
    edit(big_slide, offset, value)
    assert spread(big_slide) != before


@pytest.mark.parametrize("order", [b"II", b"MM"])
def test_both_byte_orders_are_understood(big_slide, order):
    big_slide.write_bytes(tiff(order))
    before = spread(big_slide)
    edit(big_slide, RESOLUTION, b"X")
    assert spread(big_slide) != before


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("levels", [0, 2])
def test_resolutions_of_directories_and_subdirectories_are_seen(tmp_path, bigtiff, levels):
    path = tmp_path / "slide.tif"
    image = np.zeros((1024, 1024, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for _ in range(2):
            file.write(image, tile=(256, 256), resolution=(20_000, 20_000), subifds=levels, metadata=None)
            for _ in range(levels):
                file.write(image, tile=(256, 256), resolution=(5_000, 5_000), subfiletype=1, metadata=None)
    with tifffile.TiffFile(path) as file:
        pages = [*file.pages, *(level for page in file.pages for level in page.pages or [])]
        places = [page.tags["XResolution"].valueoffset for page in pages]
    edit(path, path.stat().st_size, bytes(10 * MIB))
    assert len(places) == 2 + 2 * levels
    hashes = {spread(path)}
    for place in places:
        edit(path, place, b"\x07")
        hashes.add(spread(path))
    assert len(hashes) == 1 + len(places)


def test_full_sees_what_spread_cannot(big_slide):
    """The byte at RESOLUTION + 5000 lies in no block and in no value of a directory."""
    before = spread(big_slide), content_hash(big_slide, [big_slide], "slide", full=True)
    edit(big_slide, RESOLUTION + 5000, b"X")
    assert spread(big_slide) == before[0]
    assert content_hash(big_slide, [big_slide], "slide", full=True) != before[1]


def test_small_files_are_hashed_whole(tmp_path):
    path = tmp_path / "slide.svs"
    path.write_bytes(bytes(3 * MIB))
    before = spread(path)
    edit(path, 1_500_000, b"X")
    assert spread(path) != before


@pytest.mark.parametrize("version", [42, 43])
@pytest.mark.parametrize("seed", range(5))
def test_loops_and_garbage_come_to_an_end(tmp_path, version, seed):
    path = tmp_path / "slide.tif"
    garbage = np.random.default_rng(seed).integers(0, 256, 9 * MIB, dtype=np.uint8).tobytes()
    path.write_bytes(struct.pack("<2sHI", b"II", version, 16) + struct.pack("<Q", 16) + garbage)
    assert len(spread(path)) == 64
    # One directory without entries that names itself as the next one.
    edit(path, 16, struct.pack("<HI", 0, 16) if version == 42 else struct.pack("<QQ", 0, 16))
    assert len(spread(path)) == 64


def test_a_series_is_its_files_under_any_names(tmp_path):
    names = [tmp_path / name for name in ("a", "b", "c", "d")]
    for path, content in zip(names, (b"one", b"two", b"one", b"two"), strict=True):
        path.write_bytes(content)
    a, b, c, d = names
    before = content_hash(tmp_path, [a, b], "series", full=False)
    assert content_hash(tmp_path, [d, c], "series", full=False) == before
    assert content_hash(tmp_path, [a, b, c], "series", full=False) != before
    # sha256 of the sorted sha256 digests of b"one" and b"two", from coreutils
    assert before == "0c7c01f86ff8722e93c1b9e7437ec11de17d63304f8bb22eec9e50b077f4754c"


def test_every_byte_of_a_series_counts(tmp_path):
    path = tmp_path / "volume.dcm"
    path.write_bytes(bytes(9 * MIB))
    before = content_hash(tmp_path, [], "series", full=False)
    edit(path, 5_000_001, b"X")
    assert content_hash(tmp_path, [], "series", full=False) != before


def test_all_files_of_a_slide_count(tmp_path):
    first, second = tmp_path / "slide.mrxs", tmp_path / "Data0001.dat"
    first.write_bytes(b"index")
    second.write_bytes(b"tiles")
    before = content_hash(first, [first, second], "slide", full=False)
    assert before != content_hash(first, [], "slide", full=False)
    second.write_bytes(b"other")
    assert content_hash(first, [first, second], "slide", full=False) != before


def test_memory_stays_small(big_slide):
    tracemalloc.start()
    spread(big_slide)
    content_hash(big_slide, [big_slide], "slide", full=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_missing_file_is_named_by_no_path(tmp_path):
    with pytest.raises(ImageError, match=r"^a file cannot be read: No such file or directory$"):
        spread(tmp_path / "gone.svs")
