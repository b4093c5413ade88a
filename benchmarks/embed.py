"""Embedding: jobs against the bare model on the same cores or GPU; many tiny series; what a job costs beside its model.

A job is the real one, `run_embed`, with the model loaded: it opens, reads, decodes, embeds and writes stores and rows.
The model alone gets pictures that are normalised and on the device already, in the same batches and layout.
"""

import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

import numpy as np
from common import ROOT, Figure, figure, main, say, seconds
from numpy.typing import NDArray
from read_ct import head

sys.path.insert(0, str(ROOT / "tests"))

from support.jpeg_slide import textured, write_jpeg_slide

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TILE, QUALITY = 224, 70
BATCH = 32
"""Tiles of one, on the CPU; the slide of the first batch has as many."""

TINY, DEEP, BLOCK = 64, 10, 200
"""Pixels along each side of a slice of a tiny series; slices; series of one round."""

GPU_MODELS = (("gpu_vitl", "vit_large_patch16_224", 0.9), ("gpu_resnet50", "resnet50", 0.6))

Entry = dict[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Images:
    """Images that are tiled, and the settings they were tiled with."""

    name: str
    settings: Any
    entries: list[Entry]
    rows: list[Row]
    """Of `tile`."""

    @property
    def tiles(self) -> int:
        """Of all images."""
        return sum(row["instances"] for row in self.rows)


def measure(folder: Path, quick: bool) -> list[Figure]:
    """The same images in all comparisons; job and model, or one series and many, in turns."""
    os.chdir(folder)  # a job writes below its working directory
    rounds, across, series = (2, 8, 4) if quick else (5, 16, 24)  # whole batches: none is padded
    blocks, block = (1, 20) if quick else (10, BLOCK)
    say(f"writing slides and series; {CORES} cores")
    slides, first = write_slides(folder / "raw", 2 if quick else 4, across)
    heads = write_heads(series)
    tiny, long = write_tiny(blocks * block, block)
    os.sync()  # what is still to be written would keep the disk busy meanwhile
    say("whole jobs")
    found = whole_jobs(slides, first, 1 if quick else 3)
    say("slides and the model, in turns")
    what = f"{len(slides.entries)} slides of 0.5 µm, JPEG tiles of 240 (4:4:4) and 256 px (4:2:0), {slides.tiles} tiles"
    found.append(against_model("slide_cpu", slides, rounds, f"{what} of {TILE} px"))
    say("series and the model, in turns")
    what = f"{series} series of 40 slices of 512 x 512, resized to {TILE} px"
    found.append(against_model("series_cpu", heads, rounds, what))
    say("many tiny series and a long one, in turns")
    found.append(many_series(tiny, long, blocks, block))
    return found + on_gpu(folder / "raw", slides, 1 if quick else 10, rounds)


def write_slides(raw: Path, count: int, across: int) -> tuple[Images, Images]:
    """Slides of `across` by `across` tiles, as Aperio's and as others are; and one that is a single batch."""
    from pipeline.images import open_image

    raw.mkdir()
    pixels = textured(across * TILE, across * TILE)
    for number in range(count):
        write_slide(raw / f"{number}.tif", pixels, aperio=number % 2 == 0)
    write_slide(raw / "first.tif", textured(4 * TILE, BATCH // 4 * TILE), aperio=True)
    settings = slide_settings("resnet18", BATCH, "fp32")
    names = [f"{number}.tif" for number in range(count)]
    slides = tiled("slides", settings, {name: open_image(raw / name, settings) for name in names}, raw)
    return slides, tiled("first", settings, {"first.tif": open_image(raw / "first.tif", settings)}, raw)


def write_slide(path: Path, pixels: NDArray[np.uint8], aperio: bool) -> None:
    """A slide of 0.5 µm per pixel."""
    side, model = (240, "rgb") if aperio else (256, "ycbcr")
    write_jpeg_slide(path, pixels, 0.5, side, model, quality=QUALITY, shared_tables=aperio, aperio=aperio)


def slide_settings(model: str, batch: int, precision: str) -> Any:
    """Settings under which every tile of a slide is kept."""
    from pipeline.image_settings import SlideSettings

    backbone = {"model": model, "weights": "random", "batch": batch, "precision": precision}
    slide = {"mpp": 0.5, "tile": TILE, "stride": TILE, "tissue": {"method": "none"}, "backbone": backbone}
    return SlideSettings.model_validate(slide)


def write_heads(count: int) -> Images:
    """CT heads; four are different."""
    noise = np.random.default_rng(0).normal(0, 6, (1024, 512))
    volumes = [
        np.stack([np.clip(head(z / 40, noise, (41 * seed + 13 * z) % 512) - 1024, -1024, 3071) for z in range(40)])
        for seed in range(4)
    ]
    return tiled_series("heads", {f"head/{number:02d}": volumes[number % 4] for number in range(count)})


def write_tiny(count: int, block: int) -> tuple[Images, Images]:
    """Tiny series; and one that has half as many slices as a block of them."""
    rng = np.random.default_rng(0)
    slices = rng.normal(35, 40, (block * DEEP, TINY, TINY)).astype(np.int16)
    starts = rng.integers(len(slices) - DEEP, size=count).tolist()
    many = {f"tiny/{number:04d}": slices[start : start + DEEP] for number, start in enumerate(starts)}
    return tiled_series("tiny", many), tiled_series("long", {"long": slices[: len(slices) // 2]})


def tiled_series(name: str, volumes: dict[str, NDArray[np.int16]]) -> Images:
    """Series as `tile` leaves them, of volumes (z, y, x) in HU."""
    from pipeline.image_settings import SeriesSettings
    from pipeline.images.series import Series

    backbone = {"model": "resnet18", "weights": "random", "batch": BATCH, "input_size": TILE}
    settings = SeriesSettings.model_validate({"backbone": backbone})
    images = {
        image: Series(hu, settings, {"z_mm": [5.0 * z for z in range(len(hu))], "spacing": [0.45, 0.45], "notes": []})
        for image, hu in volumes.items()
    }
    return tiled(name, settings, images)


def tiled(name: str, settings: Any, images: dict[str, Any], raw: Path | None = None) -> Images:
    """What `tile` leaves of images: stores and rows."""
    from pipeline.raw import identity_now
    from pipeline.runners.shard import done_row
    from pipeline.store import digest, write_store
    from pipeline.tiling import tile

    kind, entries, rows = settings.kind, [], []
    for image_id, image in images.items():
        tiles, key = tile(image), digest([name, image_id])
        attributes = {
            "key": key,
            "instances": len(tiles.origins),
            "size": list(tiles.size),
            "extent": [int(side) for side in image.extent],
            "properties": image.properties,
        }
        store = Path("results") / "tile" / name / image_id / f"{key[:8]}.zarr"
        arrays = {"origins": tiles.origins, **image.arrays()}
        write_store(store, {of: np.asarray(values) for of, values in arrays.items()}, attributes)
        identity = identity_now(raw, image_id, kind, (image_id,)) if raw else "none"
        entries.append({"id": image_id, "kind": kind, "identity": identity})
        rows.append({"id": image_id, "kind": kind, "status": "done", **done_row(store, attributes)})
    return Images(name, settings, entries, rows)


def job_of(images: Images, device: str = "cpu") -> list[str]:
    """The command line of a job that embeds images, whose slice and upstream receipt this writes."""
    from pipeline.plan import Plan, embed_settings
    from pipeline.store import write_json

    plan = Plan()
    tile = plan.add("tile", images.name, {})
    more = {"images": images.entries, "raw": "raw", "private": ""}
    embed = plan.add("embed", images.name, embed_settings(images.settings), [tile], **more)
    plan.write()
    write_json(Path(tile.receipt), {"stage": "tile", "name": images.name, "rows": images.rows})
    return ["embed", str(embed.slice_path), embed.receipt, "--threads", str(CORES), "--device", device]


class Loaded:
    """A job of `run_embed` whose model is loaded, in this process, to be run as often as wanted."""

    def __init__(self, images: Images, device: str = "cpu") -> None:
        from pipeline.cli import parser
        from pipeline.runners import embed

        caught: list[tuple[Any, Any]] = []

        def catch(shard: Any, start: Any, limits: object) -> list[Row]:
            caught.append((shard, start))
            return []

        # What a job would do in a child of its own, which a benchmark cannot keep beside the bare model.
        with mock.patch.object(embed, "map_shard", catch):
            embed.run_embed(parser().parse_args(job_of(images, device)))
        self._shard, start = caught[0]
        self._work = start(lambda done, of: None)
        self.rows: list[Row] = []

    def rate(self, some: slice = slice(None)) -> float:
        """Tiles per second of some of its images, from opening the first to the row of the last."""
        entries = self._shard.images[some]
        shutil.rmtree(self._shard.folder, ignore_errors=True)
        self.rows = []
        began = time.perf_counter()
        for image, outcome in self._work(iter(entries), lambda done, of: None):
            if not isinstance(outcome, dict):
                raise outcome
            self.rows.append(self._shard.remember(image, {"status": "done", **outcome}))
        took = time.perf_counter() - began
        assert len(self.rows) == len(entries) == sum(1 for _ in self._shard.folder.rglob("*.zarr"))
        return sum(row["instances"] for row in self.rows) / took

    def spent(self) -> str:
        """Where the time of the last run went, which overlaps."""
        from pipeline.timing import total

        tiles = sum(row["instances"] for row in self.rows)
        spent = total(row["times"] for row in self.rows).rounded()
        return "ms per tile: " + ", ".join(f"{name} {1000 * value / tiles:.2f}" for name, value in spent.items())

    def decoding(self) -> float:
        """Tiles per second that the reader gave while it read, in the last run."""
        spent = sum(row["times"]["decode"] + row["times"]["read"] for row in self.rows)
        return sum(row["instances"] for row in self.rows) / spent


class Bare:
    """The model of a job, with nothing around it."""

    def __init__(self, settings: Any, device: str = "cpu") -> None:
        import torch

        from pipeline.backbone import DTYPES, load_backbone

        torch.set_num_threads(CORES)
        backbone = load_backbone(settings, torch.device(device))
        side = backbone.geometry.side
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randn(backbone.batch, 3, side, side, generator=generator)
        self._pictures = pictures.to(device).contiguous(memory_format=layout)
        self._model, self._dtype, self._device, self._batch = (
            backbone.model,
            DTYPES[settings.precision],
            device,
            backbone.batch,
        )

    def rate(self, tiles: int) -> float:
        """Tiles per second of about so many."""
        import torch

        batches = -(-tiles // self._batch)
        reduced = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self._device, dtype=self._dtype, enabled=reduced):
            self._model(self._pictures)
            self._wait()
            began = time.perf_counter()
            for _ in range(batches):
                self._model(self._pictures)
            self._wait()
            return batches * self._batch / (time.perf_counter() - began)

    def rate_in_parts(self, tiles: int) -> float:
        """The same, each core computing its part of a batch, as a job does."""
        from concurrent.futures import ThreadPoolExecutor

        import torch

        def one(part: Any) -> None:
            with torch.inference_mode():
                self._model(part)

        parts = self._pictures.split(-(-self._batch // CORES)) * -(-tiles // self._batch)
        with ThreadPoolExecutor(CORES, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            list(threads.map(one, parts[:CORES]))
            began = time.perf_counter()
            list(threads.map(one, parts))
            return len(parts) * self._batch / CORES / (time.perf_counter() - began)

    def _wait(self) -> None:
        import torch

        if self._device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Turns:
    """Rates of two jobs that were run in turns, the base first and last."""

    base: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """Ours over the mean of the base before and after it; the median over the rounds."""
        around = zip(self.base, self.base[1:], strict=False)
        return median(rate / mean(two) for rate, two in zip(self.ours, around, strict=True))

    def __str__(self) -> str:
        return f"{median(self.ours):.1f} tiles/s against {median(self.base):.1f}, {len(self.ours)} rounds in turns"


def in_turns(base: Callable[[], float], ours: Callable[[int], float], rounds: int) -> Turns:
    """Base, ours, base, ours and so on, at last the base; `ours` is told the round."""
    found = Turns([base()], [])
    for number in range(rounds):
        found.ours.append(ours(number))
        found.base.append(base())
        say(f"{found.ours[-1]:.1f} tiles/s; base {found.base[-2]:.1f} and {found.base[-1]:.1f}")
    return found


def against_model(name: str, images: Images, rounds: int, what: str) -> Figure:
    """A job's tiles per second over those of its model alone, on the CPU."""
    bare, job = Bare(images.settings.backbone), Loaded(images)
    job.rate(slice(1))
    in_parts = []

    def ours(_: int) -> float:
        in_parts.append(bare.rate_in_parts(images.tiles))
        return job.rate()

    turns = in_turns(lambda: bare.rate(images.tiles), ours, rounds)
    on = (
        f"resnet18 with random weights, batch {BATCH}, {CORES} cores; the model alone, each core with a part of the "
        f"batch as in a job, {median(in_parts):.1f} tiles/s"
    )
    return figure(f"embed.{name}", turns.ratio, "x", None, f"{what}; {on}: {turns}; {job.spent()}", least=0.9)


def many_series(tiny: Images, long: Images, blocks: int, block: int) -> Figure:
    """Many tiny series against a single long one."""
    jobs = Loaded(tiny), Loaded(long)
    jobs[0].rate(slice(4))

    def some(number: int) -> float:
        return jobs[0].rate(slice(number * block, (number + 1) * block))

    turns = in_turns(jobs[1].rate, some, blocks)
    what = (
        f"{blocks * block} series of {DEEP} slices of {TINY} x {TINY}, {block} a round, against one series of "
        f"{block * DEEP // 2}; resnet18, input {TILE}, {CORES} cores: {turns}; {jobs[0].spent()}; "
        f"of the long one {jobs[1].spent()}"
    )
    return figure("embed.many_series", turns.ratio, "x", None, what, least=0.8)


def whole_jobs(slides: Images, first: Images, repeats: int) -> list[Figure]:
    """Seconds of jobs from the start of their process, as Snakemake starts them."""
    bare = Bare(slides.settings.backbone)
    start(job_of(first))  # compiles what a job imports
    times: dict[str, list[float]] = {"first": [], "beside": [], "nothing": []}
    jobs: list[float] = []
    before = bare.rate(slides.tiles)
    for _ in range(repeats):
        shutil.rmtree("results/embed")
        times["first"].append(start(job_of(first), until="1/1")[0])
        jobs.append(start(job_of(slides))[0])
        times["nothing"].append(start(job_of(slides))[0])
        after = bare.rate(slides.tiles)
        times["beside"].append(jobs[-1] - slides.tiles / mean((before, after)))
        before = after
        say(", ".join(f"{name} {each[-1]:.2f} s" for name, each in times.items()))
    _, imported = start(job_of(slides), "-X", "importtime")
    assert "pipeline.store" in imported
    assert " torch" not in imported, "a job with nothing to do imports torch"
    beside = (
        f"a job of {slides.tiles} tiles of {len(slides.entries)} slides, {seconds(jobs)}, start, imports and resnet18 "
        f"included, less its tiles over the rate of the model alone; {repeats} times: {seconds(times['beside'])}"
    )
    batch = f"from the start of a job of one slide with {BATCH} tiles to its row: {seconds(times['first'])}"
    nothing = f"the job of {len(slides.entries)} slides again: {seconds(times['nothing'])}; torch is not imported"
    return [
        figure("embed.job_s_outside_model", median(times["beside"]), "s", None, beside),
        figure("embed.first_batch_s", median(times["first"]), "s", None, batch),
        figure("embed.nothing_to_do_s", median(times["nothing"]), "s", None, nothing),
    ]


def start(job: list[str], *options: str, until: str = "") -> tuple[float, str]:
    """Seconds of a job in a process of its own, or those until it says a line with some text; and what it said."""
    command = [sys.executable, "-P", *options, "-m", "pipeline", *job]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said, heard = [], 0.0
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        assert process.stdout
        for line in process.stdout:
            said.append(line)
            if until and until in line and not heard:
                heard = time.perf_counter() - began
    took = time.perf_counter() - began
    text = "".join(said)
    if process.returncode or (until and not heard):
        raise SystemExit(text[-6000:])
    return heard or took, text


def on_gpu(raw: Path, slides: Images, copies: int, rounds: int) -> list[Figure]:
    """Jobs against their models on a GPU; nothing without one."""
    import torch

    if not torch.cuda.is_available():
        say("no GPU that torch can use: its figures are left out")
        return []
    found = []
    for name, model, least in GPU_MODELS:
        say(f"{model} on the GPU")
        settings = slide_settings(model, 256, "bf16")
        found += gpu_model(name, least, link_slides(raw, slides, copies, name, settings), rounds)
        gc.collect()  # frees the GPU's lock, which the job holds as long as it can be run
    return found


def link_slides(raw: Path, slides: Images, copies: int, name: str, settings: Any) -> Images:
    """The slides under many names: a GPU is through a few of them in no time."""
    from pipeline.images import open_image

    images = {}
    for number in range(copies):
        for entry in slides.entries:
            path = raw / f"{name}-{number}-{entry['id']}"
            os.link(raw / entry["id"], path)
            images[path.name] = open_image(path, settings)
    return tiled(name, settings, images, raw)


def gpu_model(name: str, least: float, images: Images, rounds: int, device: str = "cuda") -> list[Figure]:
    """Rates, and how busy the GPU is, of one model."""
    import torch

    job = Loaded(images, device)  # first: it chooses the GPU
    bare = Bare(images.settings.backbone, device)
    job.rate()
    busy: list[float] = []

    def ours(_: int) -> float:
        with utilisation(busy):
            return job.rate()

    turns = in_turns(lambda: bare.rate(images.tiles), ours, rounds)
    backbone = images.settings.backbone
    place = torch.cuda.get_device_name() if device == "cuda" else device
    what = (
        f"{backbone.model}, {backbone.precision}, batch {backbone.batch}, random weights, on {place}, {CORES} cores; "
        f"{images.tiles} tiles of {TILE} px from {len(images.entries)} slides, decoded at {job.decoding():.0f} "
        f"tiles/s: {turns}; {job.spent()}"
    )
    return [
        figure(f"embed.{name}", turns.ratio, "x", None, what, least=least),
        figure(f"embed.{name}_rate", median(turns.ours), "/s", None, f"tiles per second, all of the job; {place}"),
        figure(f"embed.{name}_busy", mean(busy or [0.0]), "%", None, f"nvidia-smi, mean of {len(busy)} samples"),
    ]


@contextmanager
def utilisation(found: list[float]) -> Iterator[None]:
    """Adds what nvidia-smi says of the GPU that torch uses, five times a second, in percent."""
    import torch

    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop-ms=200", f"--id={uuid}"]
    with subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            process.terminate()
            text, _ = process.communicate()
            found += [float(line) for line in text.split() if line.isdigit()]


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", measure))
