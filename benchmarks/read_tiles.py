"""Reading tiles: CPU time against OpenSlide and the bare JPEG decoder; tissue; the memory of a tile worker."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from common import ROOT, Figure, figure, main, say, seconds

sys.path.insert(0, str(ROOT / "tests"))

from support.jpeg_slide import encode, halved, split_stream, textured, write_jpeg_slide

TILE, QUALITY = 256, 70
"""Pixels of a tile, and the encoder's quality: a 256-pixel tile of 4:2:0 then has about the 15 KB of a scanner's."""

Job = Callable[[], Callable[[], object]]
"""Opens a slide anew, which is not timed, and gives what reads it, which is."""


def measure(folder: Path, quick: bool) -> list[Figure]:
    """All comparisons, each in turns."""
    side, repeats = (2048, 3) if quick else (4096, 7)
    pixels = textured(side, side)
    slide = write_jpeg_slide(
        folder / "256.tif", pixels, 0.25, TILE, "ycbcr", quality=QUALITY, aperio=False, shared_tables=False
    )
    aperio = write_jpeg_slide(folder / "240.svs", pixels, 0.25, 240, "rgb", quality=QUALITY)
    say(f"{side} x {side} pixels, {slide.stat().st_size / (side // TILE) ** 2 / 1000:.1f} KB per tile")
    found = [*native(slide, repeats), *half(slide, repeats), unaligned(aperio, repeats), two_threads(slide, repeats)]
    found.append(cosine(slide))
    found += [psnr(folder, "tissue", pixels[:1024, :1024]), psnr(folder, "noise", noise(1024))]
    found.append(tissue(folder, 12_500 if quick else 50_000))
    found += tile_worker(folder, (25_000, 2_500) if quick else (100_000, 40_000))
    return found


def in_turns(
    jobs: dict[str, Job], repeats: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, list[float]]:
    """Seconds of each job in every round, one after the other; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            work = job()
            began = clock()
            work()
            if number:
                times[name].append(clock() - began)
    return times


def ratio(times: dict[str, list[float]], ours: str, theirs: str) -> float:
    """How many times ours is as fast as theirs: the median over the rounds."""
    return median(b / a for a, b in zip(times[ours], times[theirs], strict=True))


def read_all(path: Path, mpp: float, threads: int = 1, passes: int = 1) -> tuple[Job, int]:
    """A job that reads the whole grid of a slide in batches of 64, and how many tiles that is."""
    from pipeline.geometry import grid
    from pipeline.image_settings import SlideSettings
    from pipeline.images.slide import Slide

    settings = SlideSettings(mpp=mpp, tile=TILE, stride=TILE)
    origins = grid(Slide(path, settings).extent, (TILE, TILE), (TILE, TILE))
    room = np.empty((64, TILE, TILE, 3), np.uint8)  # used again, as `embed` does

    def job() -> Callable[[], None]:
        slide = Slide(path, settings)

        def work() -> None:
            for start in [*range(0, len(origins), 64)] * passes:
                slide.read(origins[start : start + 64], (TILE, TILE), threads, room)

        return work

    return job, len(origins)


def openslide_all(path: Path, side: int, shrink: bool) -> Job:
    """A job that reads the same grid as most tools do: `read_region` tile by tile, then Pillow."""
    import openslide
    import PIL.Image

    def job() -> Callable[[], None]:
        slide = openslide.OpenSlide(path)
        width, height = slide.dimensions

        def work() -> None:
            for y in range(0, height - side + 1, side):
                for x in range(0, width - side + 1, side):
                    tile = slide.read_region((x, y), 0, (side, side)).convert("RGB")
                    if shrink:
                        tile = tile.resize((TILE, TILE), PIL.Image.Resampling.BICUBIC)
                    np.asarray(tile)

        return work

    return job


def streams_of(path: Path) -> list[bytes]:
    """The JPEG streams of level 0, in memory."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    content = path.read_bytes()
    return [content[offset : offset + length] for offset, length in places]


def decode_all(streams: list[bytes], threads: int = 1, passes: int = 1) -> Job:
    """A job that does nothing but decode, into memory that it uses again: the bound."""
    import simplejpeg

    out = np.empty((64, TILE, TILE, 3), np.uint8)

    def some(first: int) -> None:
        for number in range(first, len(streams), threads):
            simplejpeg.decode_jpeg(streams[number], buffer=out[number % 64], strict=True)

    def job() -> Callable[[], None]:
        pool = ThreadPoolExecutor(threads)

        def work() -> None:
            for _ in range(passes):
                if threads == 1:
                    some(0)
                else:
                    list(pool.map(some, range(threads)))

        return work

    return job


def native(path: Path, repeats: int) -> list[Figure]:
    """Level 0, where the grid is that of the file's tiles."""
    bare = decode_all(streams_of(path))
    ours, count = read_all(path, 0.25)
    jobs: dict[str, Job] = {"ours": ours, "openslide": openslide_all(path, TILE, False), "bare": bare}
    times = in_turns(jobs, repeats)
    rates = ", ".join(f"{name} {count / median(values):.0f}" for name, values in times.items())
    what = f"{count} tiles of {TILE} px (4:2:0, quality {QUALITY}), {repeats} rounds, tiles per CPU second: {rates}"
    return [
        figure("read.native_vs_openslide", ratio(times, "ours", "openslide"), "x", None, what, least=4.5),
        figure("read.native_vs_turbo", ratio(times, "ours", "bare"), "x", None, what, least=0.85),
    ]


def half(path: Path, repeats: int) -> list[Figure]:
    """0.5 µm out of a slide that has 0.25 µm alone."""
    ours, count = read_all(path, 0.5)
    times = in_turns({"ours": ours, "openslide": openslide_all(path, 2 * TILE, True)}, repeats)
    rates = ", ".join(f"{name} {count / median(values):.0f}" for name, values in times.items())
    what = f"{count} tiles of {TILE} px, `read_region` of {2 * TILE} px and a resize, tiles per CPU second: {rates}"
    return [figure("read.half_vs_openslide", ratio(times, "ours", "openslide"), "x", None, what, least=5)]


def unaligned(path: Path, repeats: int) -> Figure:
    """A grid of 256 px on tiles of 240."""
    ours, count = read_all(path, 0.25)
    times = in_turns({"ours": ours, "openslide": openslide_all(path, TILE, False)}, repeats)
    rates = ", ".join(f"{name} {count / median(values):.0f}" for name, values in times.items())
    what = f"{count} tiles of {TILE} px on stored ones of 240 (RGB), tiles per CPU second: {rates}"
    return figure("read.unaligned_vs_openslide", ratio(times, "ours", "openslide"), "x", None, what, least=2)


def two_threads(path: Path, repeats: int) -> Figure:
    """One slide read by one thread and by two; wall time."""
    # Aligned tiles are kept in no cache: passes stand for a slide of 1,024 tiles.
    streams = streams_of(path)
    jobs = {
        "one": read_all(path, 0.25, 1, 4)[0],
        "two": read_all(path, 0.25, 2, 4)[0],
        "bare one": decode_all(streams, 1, 4),
        "bare two": decode_all(streams, 2, 4),
    }
    times = in_turns(jobs, repeats, time.perf_counter)
    what = (
        f"wall time of one slide: one thread {seconds(times['one'])}; two {seconds(times['two'])}; the bare decoder "
        f"gains {ratio(times, 'bare two', 'bare one'):.2f} x by two threads here"
    )
    return figure("read.two_threads", ratio(times, "two", "one"), "x", None, what, least=1.7)


def cosine(path: Path) -> Figure:
    """Between the embeddings of tiles shrunk in the decoder and of tiles decoded whole and averaged."""
    import torch

    from pipeline.backbone import load_backbone
    from pipeline.geometry import grid
    from pipeline.image_settings import BackboneSettings, SlideSettings
    from pipeline.images.slide import Slide

    ways = []
    for reduced in (True, False):
        slide = Slide(path, SlideSettings(mpp=0.5, tile=TILE, stride=TILE, reduced_decoding=reduced))
        origins = grid(slide.extent, (TILE, TILE), (TILE, TILE))[:32]
        ways.append(slide.read(origins, (TILE, TILE))[0])
    backbone = load_backbone(BackboneSettings(model="resnet18", weights="random", seed=0), torch.device("cpu"))
    a, b = (backbone.submit(tiles).result()[0].astype(np.float64) for tiles in ways)
    gaps = 1e6 * (1 - cosines(a, b))
    others = 1e6 * (1 - cosines(a, np.roll(a, 1, axis=0)))
    what = (
        f"1 - cosine, the largest of {len(gaps)} tiles, resnet18 with random weights (seed 0), against level 0 shrunk "
        f"by Pillow; between different tiles {others.min():.0f} to {others.max():.0f} ppm"
    )
    return figure("read.half_cosine_gap", float(gaps.max()), "ppm", None, what)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the rows of two arrays."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def noise(side: int) -> np.ndarray:
    """Noise in all three colours, without any structure."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def psnr(folder: Path, what: str, pixels: np.ndarray) -> Figure:
    """Of tiles shrunk by two in the decoder, against the average of squares of the whole tiles; the worst tile."""
    from pipeline.geometry import grid
    from pipeline.image_settings import SlideSettings
    from pipeline.images.slide import Slide

    path = write_jpeg_slide(folder / f"{what}.svs", pixels, 0.25, TILE, "ycbcr", quality=QUALITY)
    half, whole = Slide(path, SlideSettings(mpp=0.5)), Slide(path, SlideSettings(mpp=0.25))
    side = pixels.shape[0] // 2
    area = halved(whole.read(np.array([[0, 0]], np.int32), (2 * side, 2 * side))[0][0]).astype(np.float64)
    worst = np.inf
    for x, y in grid((side, side), (128, 128), (128, 128)).tolist():
        shown = half.read(np.array([[x, y]], np.int32), (128, 128))[0][0]
        error = ((area[y : y + 128, x : x + 128] - shown) ** 2).mean()
        worst = min(worst, 10 * np.log10(255**2 / error))
    return figure(f"read.half_psnr_{what}", float(worst), "dB", None, f"the worst tile, 4:2:0, quality {QUALITY}")


def sparse_slide(path: Path, side: int, tissue_tiles: int, levels: tuple[int, ...] = (1, 4, 16)) -> None:
    """A slide whose tiles are a few streams again and again: tissue in a block of whole tiles, white around it."""
    from pipeline.synthetic.pyramid import YCBCR, StoredLevel, write_levels

    tissue = [textured(TILE, TILE, seed) for seed in range(4)]
    white = np.full((TILE, TILE, 3), 255, np.uint8)
    streams = [b"\xff\xd8" + t + s[2:] for t, s in (split_stream(encode(p, "ycbcr", "420", QUALITY)) for p in tissue)]
    blank_tables, blank = split_stream(encode(white, "ycbcr", "420", QUALITY))
    blank = b"\xff\xd8" + blank_tables + blank[2:]
    coarsest = max(levels)
    block = math.ceil(tissue_tiles**0.5 / coarsest) * coarsest * TILE  # its side at level 0, whole tiles on all levels

    def made() -> "list[StoredLevel]":
        found = []
        for factor in levels:
            extent = side // factor
            across = -(-extent // TILE)
            inside = block // factor // TILE
            tiles = [
                streams[(row * 7 + column) % 4] if row < inside and column < inside else blank
                for row in range(across)
                for column in range(across)
            ]
            found.append(StoredLevel((extent, extent), 0.25 * factor, TILE, tiles, factor > 1, YCBCR))
        return found

    write_levels(path, made())


def tissue(folder: Path, side: int) -> Figure:
    """Seconds to find the tissue of a large slide."""
    from pipeline.image_settings import SlideSettings
    from pipeline.images.slide import Slide

    path = folder / "large.tif"
    sparse_slide(path, side, (side // TILE // 2) ** 2)
    times = []
    for _ in range(3):
        slide = Slide(path, SlideSettings(mpp=0.25))
        began = time.perf_counter()
        slide.foreground(np.zeros((1, 2), np.int32), (TILE, TILE))
        times.append(time.perf_counter() - began)
    what = f"Otsu at 8 µm on {side} x {side} px of 0.25 µm, levels 1, 4, 16; 3 times: {seconds(times)}"
    return figure("tissue.seconds_50k", median(times), "s", 2, what)


WORKER = """
import json, re, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from pipeline.image_settings import QualitySettings, SlideSettings
from pipeline.images import open_image
from pipeline.tiling import tile
settings = SlideSettings(mpp=0.25, tile=256, stride=256, quality=QualitySettings(max_white=0.99))
began = time.perf_counter()
image = open_image(Path(sys.argv[2]), settings)
tiles = tile(image, threads=2)
image.arrays()
done = {"seconds": time.perf_counter() - began, "cpu": time.process_time(), "kept": len(tiles.origins)}
# Not getrusage: its peak is that of the process that started this one, where that was larger.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({**done, "gb": int(peak[1]) / 2**20}))
"""


def tile_worker(folder: Path, sizes: tuple[int, int]) -> list[Figure]:
    """Memory and time of tiling with a quality filter, which reads every tile of tissue, in a process of its own."""
    side, kept = sizes
    runs = {}
    for name, extent, count in (("whole", side, kept), ("fewer", side, kept // 4), ("smaller", side // 2, kept // 4)):
        path = folder / f"{name}.tif"
        sparse_slide(path, extent, count)
        done = subprocess.run(
            [sys.executable, "-c", WORKER, str(ROOT), str(path)], stdout=subprocess.PIPE, text=True, check=True
        )
        runs[name] = json.loads(done.stdout)
        say(f"{name}: {extent} px, {runs[name]}")
        path.unlink()
    whole, fewer, smaller = runs["whole"], runs["fewer"], runs["smaller"]
    what = f"{side} x {side} px, {whole['kept']} tiles kept and all of them read, two threads"
    per_tile = (whole["seconds"] / whole["kept"]) / (fewer["seconds"] / fewer["kept"])
    area = fewer["seconds"] / smaller["seconds"]
    return [
        figure("tile.peak_gb_100k", whole["gb"], "GB", 1.5, f"{what}: {whole['seconds']:.1f} s"),
        figure(
            "tile.time_per_kept",
            per_tile,
            "x",
            None,
            f"per tile, {whole['kept']} kept against {fewer['kept']} ({what})",
        ),
        figure("tile.time_per_area", area, "x", None, f"{fewer['kept']} tiles kept on 4 times the area"),
    ]


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", measure))
