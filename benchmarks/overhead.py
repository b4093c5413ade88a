"""What Snakemake, shards and receipts cost beside plain loops over the same functions, at thousands of tiny CT series.

Tiny series are the hardest case: their own work is small, so that what is paid per image, per job and per run shows.
"""

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from common import Figure, SeriesWriter, figure, main, say, seconds, snakemake, workspace

CORES = 2
CONFIG: dict[str, Any] = {
    "settle_seconds": 0,
    "device": "cpu",
    "series": {"backbone": {"model": "test_resnet", "weights": "random", "input_size": 32, "batch": 40}},
}


def measure(folder: Path, quick: bool) -> list[Figure]:
    """Time both ways in turns, then runs with nothing and with one series to do."""
    count, rounds, repeats = (200, 1, 2) if quick else (2000, 2, 3)
    config = {**CONFIG, "series": {**CONFIG["series"], **({"images_per_shard": count // CORES} if quick else {})}}
    writer = SeriesWriter()
    warm_up(folder, config, writer)
    raw = folder / "raw"
    say(f"writing {count} series")
    for number in range(count):
        writer.write(raw / f"{number:05d}", number)
    plain: list[float] = []
    flow: list[float] = []
    work_ratio: list[float] = []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: plain loops")
        before = processor_seconds()
        took, tile_each, embed_each = plain_loops(raw, folder / f"plain{number}", config)
        plain.append(took)
        between = processor_seconds()
        say(f"plain loops: {took:.1f} s; now Snakemake")
        work = folder / f"flow{number}"
        workspace(work, {**config, "raw": str(raw)})
        flow.append(snakemake(work)[0])
        work_ratio.append((processor_seconds() - between) / (between - before))
        say(f"Snakemake: {flow[-1]:.1f} s")
        check_stores(work, count)
    idle: list[float] = []
    added: list[float] = []
    for number in range(repeats):
        took, text = snakemake(work)
        assert "Nothing to be done" in text, text[-3000:]
        idle.append(took)
        writer.write(raw / f"new{number}", count + number)
        added.append(snakemake(work)[0] - tile_each - embed_each)
        say(f"nothing to do: {idle[-1]:.2f} s; one more series: {added[-1]:.2f} s")
    check_stores(work, count + repeats)
    ratio = median(f / p for f, p in zip(flow, plain, strict=True))
    often = "1 round" if rounds == 1 else f"{rounds} rounds"
    loops = f"plain loops on the same {CORES} cores, {count} series, {often}: {seconds(flow)}"
    own = f"its own work, {tile_each + embed_each:.3f} s in the plain loops"
    say("removing the files")
    return [
        figure("overhead.wall_ratio", ratio, "x", 1.3, f"{loops} against {seconds(plain)}"),
        figure("overhead.processor_ratio", median(work_ratio), "x", None, "the same runs, time on the processors"),
        figure("overhead.noop_s", median(idle), "s", 5, f"nothing to do, {count} series, {repeats} runs"),
        figure("overhead.add_one_s", median(added), "s", 10, f"one more series, less {own}, {repeats} runs"),
    ]


def processor_seconds() -> float:
    """Time on processors of all finished child processes and of theirs; a busy machine lengthens it less than wall."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def warm_up(folder: Path, config: dict[str, Any], writer: SeriesWriter) -> None:
    """Go both ways once with one series, so that every module is compiled and in the page cache."""
    say("warming up")
    raw = folder / "warm-raw"
    writer.write(raw / "0", 0)
    plain_loops(raw, folder / "warm-plain", config)
    workspace(folder / "warm-flow", {**config, "raw": str(raw)})
    snakemake(folder / "warm-flow")


def check_stores(folder: Path, count: int) -> None:
    """Both stages made a store of every series: a run that failed fast would look fast."""
    for stage in ("tile", "embed"):
        found = sum(1 for _ in (folder / "results" / stage).glob("*/*/*.zarr"))
        assert found == count, f"{stage}: {found} stores of {count}"


def plain_loops(raw: Path, out: Path, config: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of tiling in two processes and then embedding in one; of these, median seconds per series of each.

    Starting the processes, imports and the backbone count, as they do for Snakemake's jobs.
    """
    folders = sorted(raw.iterdir())
    context = get_context("spawn")
    began = time.perf_counter()
    with ProcessPoolExecutor(CORES, mp_context=context) as pool:
        halves = [folders[part::CORES] for part in range(CORES)]
        tiled = list(pool.map(plain_tile, halves, [out] * CORES, [config] * CORES))
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        embedded = pool.submit(plain_embed, folders, out, config).result()
    took = time.perf_counter() - began
    return took, median(each for half in tiled for each in half), median(embedded)


def plain_tile(folders: list[Path], out: Path, config: dict[str, Any]) -> list[float]:
    """Tile series one after the other; seconds of each."""
    import numpy as np

    from pipeline.image_settings import SeriesSettings
    from pipeline.images import open_image
    from pipeline.images.content import content_hash
    from pipeline.store import digest, write_store
    from pipeline.tiling import tile

    settings = SeriesSettings.model_validate(config["series"])
    each = []
    for folder in folders:
        began = time.perf_counter()
        content = content_hash(folder, sorted(folder.iterdir()), "series", True)
        image = open_image(folder, settings)
        tiles = tile(image)
        arrays = {"origins": tiles.origins, **image.arrays()}
        attributes = {
            "key": digest([folder.name]),
            "content": content,
            "settings": config["series"],
            "version": 1,
            "instances": len(tiles.origins),
            "size": list(tiles.size),
            "extent": [int(side) for side in image.extent],
            "properties": image.properties,
        }
        store = out / "tile" / f"{folder.name}.zarr"
        write_store(store, {name: np.asarray(values) for name, values in arrays.items()}, attributes)
        each.append(time.perf_counter() - began)
    return each


def plain_embed(folders: list[Path], out: Path, config: dict[str, Any]) -> list[float]:
    """Embed series one after the other, on all cores; seconds of each."""
    import numpy as np
    import torch

    from pipeline.backbone import load_backbone
    from pipeline.contact_sheet import contact_sheet
    from pipeline.image_settings import SeriesSettings
    from pipeline.images import reopen_image
    from pipeline.store import Store, digest, write_bytes, write_store

    torch.set_num_threads(CORES)
    settings = SeriesSettings.model_validate(config["series"])
    backbone = load_backbone(settings.backbone, torch.device("cpu"))
    each = []
    for folder in folders:
        began = time.perf_counter()
        key = digest([folder.name])
        source = Store(out / "tile" / f"{folder.name}.zarr", key)
        origins, size = source.read("origins"), tuple(source.attributes["size"])
        image = reopen_image(folder, settings, {"hu": source.read("hu")}, source.attributes["properties"])
        pixels, status = image.read(origins, size, CORES)
        parts = [pixels[start : start + backbone.batch] for start in range(0, len(pixels), backbone.batch)]
        values = np.concatenate([backbone.submit(part).result()[0] for part in parts])
        attributes = {
            "key": digest([key]),
            "tile_key": key,
            "settings": config["series"],
            "instances": len(values),
            "features": values.shape[1],
        }
        arrays = {"embeddings": values, "origins": origins[status == 0], "status": status}
        write_bytes(out / "embed" / f"{folder.name}.jpg", contact_sheet(image, image.channels))
        write_store(out / "embed" / f"{folder.name}.zarr", arrays, attributes)
        each.append(time.perf_counter() - began)
    return each


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", measure))
