"""How long it takes to see what there is to do, at tens of thousands of CT series of 40 files."""

import os
import time
from pathlib import Path
from statistics import median

from common import SLICES, Figure, SeriesWriter, figure, main, say, seconds, snakemake, workspace

MOST_LINKS = 60_000
"""ext4 allows 65,000 names of one file."""


def measure(folder: Path, quick: bool) -> list[Figure]:
    """Dry runs and bare walks in turns."""
    count, repeats = (1000, 2) if quick else (20_000, 3)
    raw, work = folder / "raw", folder / "flow"
    workspace(work, {"settle_seconds": 0, "device": "cpu", "raw": str(raw)})
    snakemake(work, "-n")  # compiles what Snakemake and the plan import
    say(f"linking {count * SLICES} files")
    link_series(raw, count)
    first = dry_run(work)
    say(f"first dry run: {first:.2f} s")
    walks: list[float] = []
    runs: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        files = walk(str(raw))
        walks.append(time.perf_counter() - began)
        assert files == count * SLICES
        runs.append(dry_run(work))
        say(f"bare walk: {walks[-1]:.2f} s; dry run: {runs[-1]:.2f} s")
    what = f"{count} series of {SLICES} files (hard links, caches warm)"
    beside = f"a bare walk with stat takes {seconds(walks)}"
    say("removing the files")
    return [
        figure("plan.dry_run_20k_s", median(runs), "s", 10, f"{what}, {repeats} runs: {seconds(runs)}; {beside}"),
        figure("plan.first_dry_run_20k_s", first, "s", None, f"{what}, the run that writes the plan, once"),
    ]


def link_series(raw: Path, count: int) -> None:
    """Folders of CT files that are few files under many names: the plan reads names, sizes, dates, and a few heads."""
    head = SeriesWriter().slice(0, 0)
    sources = raw.parent / "sources"
    sources.mkdir()
    for number in range(count):
        folder = raw / f"{number:05d}"
        folder.mkdir(parents=True)
        source = sources / str(number * SLICES // MOST_LINKS)
        if not source.exists():
            source.write_bytes(head)
        for slice_number in range(SLICES):
            os.link(source, folder / f"{slice_number:03d}.dcm")


def dry_run(folder: Path) -> float:
    """Seconds of a dry run, which finds all shards to do."""
    took, text = snakemake(folder, "-n", "--quiet", "rules")
    assert all(f"\n{rule} " in text for rule in ("tile", "embed")), text[-3000:]
    return took


def walk(folder: str) -> int:
    """How many files lie below a folder; asks for the size and the date of each."""
    files, folders = 0, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.path)
            else:
                entry.stat()
                files += 1
    return files + sum(walk(inside) for inside in folders)


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", measure))
