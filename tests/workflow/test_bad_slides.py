"""Slides that are not as they should be: one line each, and the others of the shard go on. The run's exit code is 0."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile

from pipeline.errors import ImageError
from pipeline.images.pyramid import open_pyramid
from support.jpeg_slide import encode, split_stream, textured, write_jpeg_slide
from support.workspace import Workspace, write_slide

Make = Callable[[Path], object]


def cut(share: float, make: Make) -> Make:
    def made(path: Path) -> None:
        make(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return made


def scanner(path: Path) -> None:
    """As Aperio writes it: its directories stand at the end."""
    write_jpeg_slide(path, textured(256, 256))


def directories_first(path: Path) -> None:
    write_slide(path, seed=3)


def one_corrupt_tile(path: Path) -> None:
    pixels = textured(256, 256)
    stream = split_stream(encode(pixels[:64, :64], "rgb", "444", 80))[1]
    write_jpeg_slide(path, pixels, spoil={5: stream[: len(stream) // 2]})


def all_tiles_corrupt_but_one(path: Path) -> None:
    pixels = textured(256, 256)
    stream = split_stream(encode(pixels[:64, :64], "rgb", "444", 80))[1]
    write_jpeg_slide(path, pixels, spoil={number: stream[: len(stream) // 2] for number in range(1, 16)})


def patched(path: Path, tag: bytes, value: int) -> None:
    """Another value for a SHORT or LONG of a TIFF directory."""
    directories_first(path)
    content = bytearray(path.read_bytes())
    at = content.index(tag) + 8
    content[at : at + 4] = value.to_bytes(4, "little")
    path.write_bytes(content)


def tiff(path: Path, pixels: np.ndarray, **options: object) -> None:
    tifffile.imwrite(path, pixels, tile=(64, 64), metadata=None, resolution=(2e4, 2e4), resolutionunit=3, **options)


def wrong_downsamples(path: Path, heights: tuple[tuple[int, int], ...] = ((5, 640), (7, 512))) -> None:
    """Ten levels, of which some are of another shape than the slide."""
    rng = np.random.default_rng(0)
    with tifffile.TiffWriter(path) as file:
        for level in range(10):
            width = 2048 >> level
            height = dict(heights).get(level, width)
            file.write(
                rng.integers(80, 200, (height, width, 3), dtype=np.uint8) * np.array([1, 0, 1], np.uint8),
                tile=(64, 64), photometric="rgb", subfiletype=int(level > 0), metadata=None,
                resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
            )  # fmt: skip


def mirax_without_folder(path: Path) -> None:
    PIL.Image.new("RGB", (64, 64), "pink").save(path, "JPEG")


def mirax_without_parts(path: Path) -> None:
    mirax_without_folder(path)
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "Slidedat.ini").write_text(
        "[HIERARCHICAL]\nINDEXFILE = Index.dat\n[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = a.dat\n"
    )


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def without_resolution(path: Path) -> None:
    tifffile.imwrite(path, textured(128, 128), tile=(64, 64), photometric="rgb", metadata=None)


ASK = "state the true one in the `mpp` column of labels.csv, or set slide.mpp_policy"
CUT = "is a TIFF file that is cut short, its directory lies beyond its end: bring it again"

UNKNOWN = "is a TIFF file that is cut short, or of a kind that is not known: .+"

CASES: dict[str, tuple[Make, str, str]] = {
    "whole.svs": (scanner, "done", ""),
    "zero.svs": (lambda path: path.write_bytes(b""), "failed", "is an empty file: bring it again"),
    "cut10.svs": (cut(0.1, scanner), "failed", CUT),
    "cut50.svs": (cut(0.5, scanner), "failed", CUT),
    "cut90.svs": (cut(0.9, scanner), "failed", CUT),
    "early10.tif": (cut(0.1, directories_first), "failed", UNKNOWN),
    "early50.tif": (cut(0.5, directories_first), "failed", UNKNOWN),
    "early90.tif": (cut(0.9, directories_first), "failed", UNKNOWN),
    "text.svs": (
        lambda path: path.write_text("notes about a slide"),
        "failed",
        "is no slide but text: bring the slide itself",
    ),
    "page.svs": (
        lambda path: path.write_text("<!DOCTYPE html><p>404"),
        "failed",
        "is no slide but an HTML page, as servers send in place of a file: bring the slide itself",
    ),
    "mirax.mrxs": (
        mirax_without_folder,
        "failed",
        "is the first file of a MIRAX slide without its folder of data files: bring both",
    ),
    "parts.mrxs": (mirax_without_parts, "failed", "cannot be opened as a slide: .+"),
    "tile.svs": (one_corrupt_tile, "done", ""),
    "tiles.svs": (
        all_tiles_corrupt_but_one,
        "failed",
        r"60 of 6\d tiles cannot be read \(max_unreadable 0.1\): is the file whole\?",
    ),
    "codec.tif": (
        lambda path: patched(path, b"\x03\x01\x03\x00", 52479),
        "failed",
        "cannot be opened as a slide: Unsupported TIFF compression: 52479",
    ),
    "deep.tif": (
        lambda path: tiff(path, np.zeros((128, 128), np.uint16)),
        "failed",
        "its pixels have 16 bits per channel, of which only 8 would be read: convert it to 8-bit RGB",
    ),
    "cmyk.tif": (lambda path: tiff(path, np.full((128, 128, 4), 90, np.uint8), photometric="separated"), "empty", ".*"),
    "pixel.tif": (
        lambda path: tifffile.imwrite(path, textured(8, 8)[:1, :1], tile=(16, 16), photometric="rgb", metadata=None,
                                      resolution=(2e4, 2e4), resolutionunit=3),
        "empty",
        "the image has 1x1 pixels at this resolution, fewer than one tile of 32x32",
    ),
    "white.svs": (
        lambda path: write_jpeg_slide(path, np.full((256, 256, 3), 255, np.uint8)),
        "empty",
        "none of 64 tiles shows 25% foreground",
    ),
    "levels.tif": (wrong_downsamples, "done", ""),
    "order.tif": (
        lambda path: wrong_downsamples(path, ((2, 16),)),
        "failed",
        "is a slide of the kind generic-tiff that OpenSlide refuses, perhaps because its levels do not shrink one "
        "after the other: rewrite it as a pyramidal TIFF",
    ),
    "loop.svs": (loop, "failed", "a file cannot be read: Too many levels of symbolic links"),
    "nompp.tif": (without_resolution, "failed", re.escape(f"the file states no mpp: {ASK}")),
    "screen.tif": (
        lambda path: write_jpeg_slide(path, textured(128, 128), mpp=264.583, aperio=False),
        "failed",
        r"mpp 264.58\d is implausible \(96 pixels per inch: a screen's, not a scanner's\): " + re.escape(ASK),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, dict[str, str]]]:
    """All of them in one shard, in one run that succeeds."""
    work = Workspace(tmp_path_factory.mktemp("bad") / "work", repository)
    raw = work.folder / "data" / "raw"
    raw.mkdir(parents=True)
    for name, (make, _, _) in CASES.items():
        make(raw / name)
    work.configure(slide__images_per_shard=64)
    work.run()
    return work, work.catalog()


@pytest.mark.parametrize("name", CASES)
def test_each_is_one_line_of_the_catalog(ran: tuple[Workspace, dict[str, dict[str, str]]], name: str) -> None:
    work, rows = ran
    _, status, reason = CASES[name]
    row = rows[name]
    assert (row["status"], bool(re.fullmatch(reason, row["reason"]))) == (status, True), row["reason"]
    if status != "done":
        assert f"{name}: {status}" in work.logs("tile") + work.logs("embed")


def test_nothing_is_lost(ran: tuple[Workspace, dict[str, dict[str, str]]]) -> None:
    assert set(ran[1]) == set(CASES)


def test_a_tile_that_cannot_be_read_is_counted_and_left_out(ran: tuple[Workspace, dict[str, dict[str, str]]]) -> None:
    """One stored tile of 64 pixels holds four tiles of 32."""
    rows = ran[1]
    assert rows["tile.svs"]["unreadable"] == "4" and int(rows["tile.svs"]["instances"]) >= 40
    assert rows["whole.svs"]["unreadable"] == "0"


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    """As another user than root, who may read everything."""
    path = tmp_path / "Doe.svs"
    scanner(path)
    path.chmod(0)
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            if os.geteuid() == 0:
                for folder in (tmp_path, *tmp_path.parents[:3]):
                    folder.chmod(0o755)
                os.setuid(65534)
            open_pyramid(path)
            os.write(writing, b"opened")
        except ImageError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    assert text == "cannot be opened as a slide: Permission denied"


def test_a_slide_that_grows_while_the_run_goes_is_left_to_the_next_run(empty: Workspace) -> None:
    """Planned when half of it was there, read when all of it is: it is not what was planned."""
    raw = empty.folder / "data" / "raw"
    for name in ("a.svs", "b.svs"):
        scanner(raw / name)
    whole = (raw / "a.svs").read_bytes()
    (raw / "a.svs").write_bytes(whole[: len(whole) // 2])
    empty.run("-n")
    (raw / "a.svs").write_bytes(whole)
    (planned,) = (empty.folder / "results/plan/tile").glob("*.json")
    receipt = empty.folder / "results/receipts/tile" / planned.name
    empty.pipeline("tile", str(planned.relative_to(empty.folder)), str(receipt.relative_to(empty.folder)))
    rows = {row["id"]: row for row in json.loads(receipt.read_text())["rows"]}
    assert (rows["a.svs"]["status"], rows["b.svs"]["status"]) == ("failed", "done")
    assert rows["a.svs"]["reason"].startswith("its files changed while the run was going: the next run reads them")
    empty.run()
    assert [row["status"] for row in empty.catalog().values()] == ["done", "done"]
