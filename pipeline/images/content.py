"""What an image is made of, as one hash: the same content has the same hash under any name and any date."""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pipeline.companions import TIFF_HEADS
from pipeline.errors import ImageError

MIB = 1 << 20
WHOLE = 8 * MIB
"""Files up to this size are hashed whole."""

BLOCKS, BLOCK = 64, 1 << 16
"""Blocks spread over a larger file, and their size in bytes."""

MAX_DIRECTORIES, MAX_ENTRIES, MAX_VALUE, MAX_VALUES = 4096, 4096, MIB, 256 * MIB
"""Bounds on what is followed in a TIFF file, so that a damaged one ends too: its directories, entries of each, bytes of
each value, and bytes of all values."""

SUB_DIRECTORIES = 330
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def content_hash(path: Path, files: list[Path], kind: Literal["slide", "series"], full: bool) -> str:
    """The sha256 of an image's content, in hexadecimal; independent of the names and the order of its files.

    Every byte counts for a series, for files up to 8 MiB, and when `full` is set. Of a larger file of a slide these
    count: its size, its first and last MiB, 64 blocks of 64 KiB spread evenly over it, and, where it is a TIFF file,
    all its directories with their values (so that a resolution corrected in place is seen).

    What it cannot see unless `full` is set: an edit of a large slide that keeps the file's size and touches only bytes
    between the blocks, such as pixels painted over in place; values of a directory beyond their first MiB; and
    directories other than the main chain and SubIFDs. It never sees names, dates and permissions.

    Args:
        path: the slide's first file, or the folder of the series.
        files: all files of the image, ready to open; empty: `path` alone of a slide, all files in it of a series.
        kind: what the image is.
        full: read every byte of a slide too.

    Raises:
        ImageError: a file cannot be read.
    """
    try:
        if not files:
            files = [path] if kind == "slide" else [file for file in path.iterdir() if file.is_file()]
        digests = sorted(hash_file(file, full or kind == "series") for file in files)
    except OSError as error:
        raise ImageError(f"a file cannot be read: {error.strerror or type(error).__name__}") from None
    return hashlib.sha256(b"".join(digests)).hexdigest()


def hash_file(path: Path, whole: bool) -> bytes:
    """The sha256 digest of one file, of all its bytes or of those that `content_hash` lists."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if whole or size <= WHOLE:
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(f"spread {size}".encode())
        step = (size - BLOCK) / (BLOCKS - 1)
        regions = [(0, MIB), (size - MIB, MIB), *((int(number * step), BLOCK) for number in range(BLOCKS))]
        for offset, length in regions:
            file.seek(offset)
            digest.update(file.read(length))
        for part in tiff_directories(file):
            digest.update(part)
        return digest.digest()


def tiff_directories(file: BinaryIO) -> Iterator[bytes]:
    """The directories of a TIFF file and the values that stand outside of them; nothing when it is none.

    Classic and BigTIFF in both byte orders, main chain and SubIFDs.
    """
    file.seek(0)
    head = file.read(16)
    if len(head) < 16 or not head.startswith(TIFF_HEADS):
        return
    order, version = tiff_kind(head)
    # Classic files count and point with 2 and 4 bytes, BigTIFF files with 8 and 8.
    count_code, offset_code = ("H", "I") if version == 42 else ("Q", "Q")
    pointer = struct.calcsize("=" + offset_code)
    waiting = [first_directory(head)]
    seen: set[int] = set()
    budget = MAX_VALUES
    while waiting and len(seen) < MAX_DIRECTORIES:
        offset = waiting.pop()
        if offset in seen or offset == 0:
            continue
        seen.add(offset)
        count_bytes = read_at(file, offset, struct.calcsize("=" + count_code))
        if not count_bytes:
            continue
        entry_bytes = 4 + 2 * pointer
        entries = min(struct.unpack(order + count_code, count_bytes)[0], MAX_ENTRIES)
        directory = read_at(file, offset + len(count_bytes), entries * entry_bytes + pointer)
        yield count_bytes + directory
        if not directory:
            continue
        for start in range(0, entries * entry_bytes, entry_bytes):
            tag, type_code, count, at = struct.unpack_from(f"{order}HH{offset_code}{offset_code}", directory, start)
            length = count * TYPE_BYTES.get(type_code, 1)
            value = directory[start + entry_bytes - pointer : start + entry_bytes]
            if length > pointer:
                value = read_at(file, at, min(length, MAX_VALUE, budget), partly=True)
                budget -= len(value)
                yield value
            if tag == SUB_DIRECTORIES:
                code = "Q" if TYPE_BYTES.get(type_code) == 8 else "I"
                children = min(count, len(value) // struct.calcsize("=" + code), MAX_DIRECTORIES)
                waiting.extend(struct.unpack_from(f"{order}{children}{code}", value))
        waiting.append(struct.unpack_from(order + offset_code, directory, entries * entry_bytes)[0])


def tiff_kind(head: bytes) -> tuple[str, int]:
    """Byte order, as `struct` writes it, and version (42, or 43: BigTIFF) of a TIFF file, from its first bytes."""
    order = "<" if head.startswith(b"II") else ">"
    return order, int(struct.unpack(order + "H", head[2:4])[0])


def first_directory(head: bytes) -> int:
    """Where the first directory of a TIFF file lies, in bytes from its start, by its first 16; 0 when it is none."""
    if not head.startswith(TIFF_HEADS):
        return 0
    order, version = tiff_kind(head)
    pointer = head[4:8] if version == 42 else head[8:16]
    return int.from_bytes(pointer, "little" if order == "<" else "big")


def read_at(file: BinaryIO, offset: int, length: int, partly: bool = False) -> bytes:
    """So many bytes from a place in a file; nothing when the file ends before, or what there is of them if `partly`."""
    try:
        file.seek(offset)
    except (OverflowError, ValueError, OSError):  # an offset no file can have
        return b""
    found = file.read(length)
    return found if partly or len(found) == length else b""
