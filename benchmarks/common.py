"""What the benchmarks share: their command line, their figures, tiny CT series, and Snakemake as a user calls it."""

import argparse
import ast
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SLICES, SIDE = 40, 32
"""Files of one series, and the pixels along each side of a slice."""


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark, and the bar it is held to."""

    name: str
    value: float
    unit: str
    bar: str
    """Such as `<= 1.3` or `>= 4.5`; empty: the figure is there to be read, and nothing is asked of it."""
    holds: bool
    against: str
    """What it was compared with, how often, in the same run."""


def figure(name: str, value: float, unit: str, most: float | None, against: str, least: float | None = None) -> Figure:
    """A figure that holds when it is at most `most`, or at least `least`."""
    bar = f"<= {most:g}" if most is not None else f">= {least:g}" if least is not None else ""
    holds = (most is None or value <= most) and (least is None or value >= least)
    return Figure(name, round(value, 3), unit, bar, holds, against)


def main(description: str, measure: Callable[[Path, bool], list[Figure]]) -> int:
    """Run a benchmark as its command line says; `measure` gets an empty folder, and whether to be quick."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON list")
    parser.add_argument("--quick", action="store_true", help="a smaller run of the same figures; its bars mean little")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        # Compiled modules are kept as on an ordinary machine, wherever this one forbids it: otherwise each process
        # would compile all of torch anew, 10 s that no user waits for twice.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "compiled")
        with contextlib.redirect_stdout(sys.stderr):  # jobs that run in this process print their log
            figures = measure(Path(folder), arguments.quick)
    print(json.dumps([asdict(found) for found in figures], indent=1) if arguments.json else table(figures))
    return 0


def table(figures: list[Figure]) -> str:
    """The figures as lines of text."""
    return "\n".join(
        f"{f.name:28} {f.value:10.3f} {f.unit:2} {f.bar:8} {'' if not f.bar else 'holds' if f.holds else 'MISSED':7}"
        f" {f.against}"
        for f in figures
    )


def title(script: Path) -> str:
    """The first line of a script's docstring."""
    return (ast.get_docstring(ast.parse(script.read_text())) or script.stem).splitlines()[0]


def say(line: str) -> None:
    """Tell whoever waits how far it is; figures alone go to standard output."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def seconds(values: list[float]) -> str:
    """Times as text: their median, and all of them when there are several."""
    each = f" ({', '.join(f'{value:.2f}' for value in values)})" if len(values) > 1 else ""
    return f"{median(values):.2f} s{each}"


def workspace(folder: Path, config: dict[str, Any]) -> None:
    """Make a working directory with a config."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML


def snakemake(folder: Path, *arguments: str) -> tuple[float, str]:
    """Seconds that a run of this repository's workflow took in a working directory, and what it printed."""
    command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "-d", str(folder), "--cores", "2"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE")}
    env = {**kept, "XDG_CACHE_HOME": str(folder / "cache")}
    began = time.perf_counter()
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=folder, env=env)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit((done.stdout + done.stderr)[-6000:])
    return took, done.stdout + done.stderr


class SeriesWriter:
    """Writes valid CT series of small slices at 50 µs a file: one slice is made by pydicom, the others are patched."""

    SERIES = "1.2.826.0.1.3680043.8.498.900000000000"
    INSTANCE = SERIES + ".1000"
    POSITION = "000000.0"

    def __init__(self) -> None:
        import numpy as np

        self._template = self._slice()
        rng = np.random.default_rng(0)
        values = rng.normal(35 + 1024, 40, 4 * SLICES * SIDE * SIDE).astype(np.int16)
        values[np.arange(len(values)) % SIDE < SIDE // 8] = -1000 + 1024  # an eighth is air, as values in HU have it
        self._noise = values.tobytes()
        self._pixels = len(self._template) - SIDE * SIDE * 2

    def _slice(self) -> bytes:
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian

        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = CT_IMAGE
        file.file_meta.MediaStorageSOPInstanceUID = self.INSTANCE
        file.SOPClassUID, file.SOPInstanceUID, file.SeriesInstanceUID = CT_IMAGE, self.INSTANCE, self.SERIES
        file.Modality, file.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        file.ImagePositionPatient, file.ImageOrientationPatient = ["0", "0", self.POSITION], [1, 0, 0, 0, 1, 0]
        file.Rows, file.Columns, file.PixelSpacing, file.SliceThickness = SIDE, SIDE, [1, 1], 5
        file.BitsAllocated = file.BitsStored = 16
        file.HighBit, file.PixelRepresentation, file.SamplesPerPixel = 15, 1, 1
        file.PhotometricInterpretation, file.RescaleSlope, file.RescaleIntercept = "MONOCHROME2", 1, -1024
        file.PixelData = bytes(SIDE * SIDE * 2)
        buffer = BytesIO()
        file.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    def slice(self, series: int, number: int) -> bytes:
        """One file: slice `number` of a series, 5 mm above the one before."""
        uid = f"{self.SERIES[:-12]}9{series:011d}"
        head = self._template[: self._pixels].replace(self.INSTANCE.encode(), f"{uid}.{1000 + number}".encode())
        head = head.replace(self.SERIES.encode(), uid.encode()).replace(b"000000.0", f"{number * 5:06d}.0".encode())
        start = (series * 997 + number * SIDE * SIDE) * 2 % (len(self._noise) // 2)
        return head + self._noise[start : start + SIDE * SIDE * 2]

    def write(self, folder: Path, series: int) -> None:
        """A folder with one series; the order of its files' names is not that of their places."""
        folder.mkdir(parents=True)
        for number in range(SLICES):
            (folder / f"{number * 7 % SLICES:03d}.dcm").write_bytes(self.slice(series, number))
