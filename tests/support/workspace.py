"""A small cohort, a copy of the repository in a folder with spaces, and Snakemake as a user calls it."""

import csv
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

REPOSITORY = Path(__file__).parents[2]
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SNAKEMAKE = [sys.executable, "-m", "snakemake"]

CONFIG: dict[str, Any] = {
    "settle_seconds": 0,
    "device": "cpu",
    "classes": ["normal", "lesion"],
    "slide": {
        "mpp": 0.5,
        "tile": 32,
        "stride": 32,
        "tissue": {"mpp": 4.0},
        "images_per_shard": 8,
        "backbone": {"model": "test_resnet", "weights": "random", "input_size": 32, "batch": 8},
    },
    "series": {
        "images_per_shard": 64,
        "backbone": {"model": "test_resnet", "weights": "random", "input_size": 32, "batch": 8},
    },
    "split": {"folds": 3},
    "heads": {"abmil": {"method": "abmil", "hidden": 8}},
    "training": {"epochs": 3, "patience": 3, "learning_rate": 0.01},
    "evaluation": {"resamples": 200},
    "explain": {"images": 1},
}


def write_slide(path: Path, seed: int, side: int = 256) -> None:
    """A pyramidal TIFF of 0.5 µm per pixel: tissue of random colours in the middle, white around it."""
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), 255, np.uint8)
    inner = slice(side // 8, side - side // 8)
    pixels[inner, inner] = rng.integers(90, 220, (side * 3 // 4, side * 3 // 4, 3)) * [1.0, 0.5, 0.9]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 2, 4):
            tiff.write(
                pixels[::factor, ::factor],
                tile=(64, 64),
                photometric="rgb",
                subfiletype=int(factor > 1),
                resolution=(20000 / factor, 20000 / factor),
                resolutionunit="CENTIMETER",
            )


def write_series(folder: Path, seed: int, slices: int = 10, side: int = 16, patient: str = "SYN") -> None:
    """A folder of CT files, 5 mm apart, with noise around 35 HU in air."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(slices):
        values = np.full((side, side), -1000 + 1024, np.int16)
        values[2:-2, 2:-2] = rng.normal(35 + 1024, 10, (side - 4, side - 4)).astype(np.int16)
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = CT_IMAGE
        file.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{seed}.{number}"
        file.SOPClassUID, file.SOPInstanceUID = CT_IMAGE, f"1.2.3.{seed}.{number}"
        file.SeriesInstanceUID, file.Modality, file.PatientName, file.PatientID = (
            f"1.2.3.{seed}",
            "CT",
            patient,
            patient,
        )
        file.ImagePositionPatient, file.ImageOrientationPatient = [0, 0, 5 * number], [1, 0, 0, 0, 1, 0]
        file.Rows, file.Columns, file.PixelSpacing, file.SliceThickness = side, side, [1, 1], 5
        file.BitsAllocated = file.BitsStored = 16
        file.HighBit, file.PixelRepresentation, file.SamplesPerPixel = 15, 1, 1
        file.PhotometricInterpretation, file.RescaleSlope, file.RescaleIntercept = "MONOCHROME2", 1, -1024
        file.PixelData = values.tobytes()
        file.save_as(folder / f"{(number * 7) % slices:03d}.dcm", enforce_file_format=True)


def write_cohort(folder: Path, slides: int, series: int, labelled: tuple[str, ...] = ("slides", "ct")) -> None:
    """Slides and series, half of each class, one patient each, and one more of either that has no label."""
    raw = folder / "data" / "raw"
    lines = ["image,patient,label"]
    for number in range(slides + 1 if slides else 0):
        write_slide(raw / "slides" / f"{number}.tiff", number)
    for number in range(series + 1 if series else 0):
        write_series(raw / "ct" / f"{number}", 100 + number)
    if "slides" in labelled:
        lines += [f"slides/{n}.tiff,P{n},{('normal', 'lesion')[n % 2]}" for n in range(slides)]
    if "ct" in labelled:
        lines += [f"ct/{n},Q{n},{('normal', 'lesion')[n % 2]}" for n in range(series)]
    (folder / "data" / "labels.csv").write_text("\n".join(lines) + "\n")


@dataclass
class Workspace:
    """A working directory, and the repository whose Snakefile is run in it."""

    folder: Path
    repository: Path

    def configure(self, **changes: Any) -> None:
        """Write config.yaml: the small experiment with some keys changed, `slide__mpp` meaning slide.mpp."""
        config = yaml.safe_load(yaml.safe_dump(CONFIG))
        for name, value in changes.items():
            *above, last = name.split("__")
            section = config
            for key in above:
                section = section[key]
            section[last] = value
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        """The command line of a run."""
        snakefile = str(self.repository / "Snakefile")
        return [*SNAKEMAKE, "-s", snakefile, "-d", str(self.folder), "--cores", str(cores), *arguments]

    def environment(self) -> dict[str, str]:
        """Of a run: the same caches for all, no user's own profile."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE")}
        return {**kept, "XDG_CACHE_HOME": str(self.folder.parent / "cache")}

    def run(self, *arguments: str, cores: int = 2, fails: bool = False, env: dict[str, str] | None = None) -> str:
        """Run Snakemake in the workspace: what it printed."""
        done = subprocess.run(
            self.command(*arguments, cores=cores),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment(), **(env or {})},
            timeout=600,
        )
        text = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, text[-6000:]
        return text

    def pipeline(self, *arguments: str, fails: bool = False) -> str:
        """Run `python -m pipeline` in the workspace: what it printed."""
        command = [sys.executable, "-P", "-m", "pipeline", *arguments]
        env = {**self.environment(), "PYTHONPATH": str(self.repository)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=env, timeout=600)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def jobs(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule a run would start."""
        text = self.run("-n", "--quiet", "rules", *arguments)
        counts = dict(re.findall(r"^([a-z]+) +(\d+)$", text, flags=re.MULTILINE))
        return {rule: int(number) for rule, number in counts.items() if rule not in {"all", "total"}}

    def job_names(self, message: str) -> set[str]:
        """The names of the jobs that a run would start, of the rule that says of itself `message`."""
        return set(re.findall(rf"^Job \d+: {message}: (\S+)", self.run("-n"), flags=re.MULTILINE))

    def logs(self, stage: str) -> str:
        """All logs of a stage."""
        return "\n".join(path.read_text() for path in sorted((self.folder / "logs" / stage).glob("*.log")))

    def stores(self) -> dict[str, tuple[int, int]]:
        """Every store with the inode and the modification time of its first file: the same while nobody rewrites it."""
        found = [
            p
            for stage in ("tile", "embed", "adopt")
            for p in (self.folder / "results" / stage).rglob("*.zarr/zarr.json")
        ]
        return {str(p.parent.relative_to(self.folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(found)}

    def weights(self) -> dict[str, str]:
        """Every head's weights file with its sha256 and modification time."""
        found = sorted((self.folder / "results" / "train").rglob("weights.safetensors"))
        name = {path: str(path.relative_to(self.folder)) for path in found}
        return {name[p]: sha256(p.read_bytes()).hexdigest() + f" {p.stat().st_mtime_ns}" for p in found}

    def catalog(self) -> dict[str, dict[str, str]]:
        """The catalog's rows by image, in its order."""
        lines = self.result("catalog.tsv").decode("utf-8").splitlines()
        return {row["image"]: row for row in csv.DictReader(lines, delimiter="\t")}

    def result(self, name: str) -> bytes:
        """The bytes of a published file."""
        return (self.folder / "results" / name).read_bytes()
