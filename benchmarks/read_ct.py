"""Reading CT series: the `tile` stage against bare pydicom, headers, two processes against one, and memory."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import CT_IMAGE, Figure, figure, main, say, seconds

HERE = Path(__file__).parent
SIDE, SLICES, DEEP = 512, 40, 200
"""Pixels along each side of a slice; slices of a series, and of the one whose memory is measured."""

SHARED_MEMORY = Path("/dev/shm")
ROOM = 1 << 30
"""Bytes that this benchmark has on its disk at most."""

UID = "1.2.826.0.1.3680043.8.498.900000000000"
PADDING = -2000

PUBLIC: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SOPClassUID": CT_IMAGE,
    "StudyDate": "20200101", "SeriesDate": "20200101", "AcquisitionDate": "20200101", "ContentDate": "20200101",
    "StudyTime": "120000.000000", "SeriesTime": "120100.000000", "AcquisitionTime": "120110", "ContentTime": "120130",
    "AccessionNumber": "0", "Modality": "CT", "Manufacturer": "GE MEDICAL SYSTEMS", "InstitutionName": "NONE",
    "ReferringPhysicianName": "", "StationName": "CT01", "StudyDescription": "HEAD", "SeriesDescription": "AXIAL 5 MM",
    "ManufacturerModelName": "LightSpeed VCT", "PatientName": "SYN", "PatientID": "SYN", "PatientBirthDate": "",
    "PatientSex": "", "PatientAge": "050Y", "BodyPartExamined": "HEAD", "ScanOptions": "AXIAL MODE",
    "SliceThickness": "5.000000", "KVP": "120", "DataCollectionDiameter": "250.000000", "SoftwareVersions": "1",
    "ProtocolName": "HEAD", "ReconstructionDiameter": "230.000000", "DistanceSourceToDetector": "949.147000",
    "DistanceSourceToPatient": "541.000000", "GantryDetectorTilt": "0.000000", "TableHeight": "150.000000",
    "RotationDirection": "CW", "ExposureTime": "1000", "XRayTubeCurrent": "200", "Exposure": "200",
    "FilterType": "HEAD FILTER", "GeneratorPower": "24000", "FocalSpots": "0.700000", "ConvolutionKernel": "STANDARD",
    "PatientPosition": "HFS", "StudyInstanceUID": UID + ".1", "SeriesInstanceUID": UID + ".2", "StudyID": "1",
    "SeriesNumber": "2", "AcquisitionNumber": "1", "ImageOrientationPatient": ["1.000000", "0.000000", "0.000000",
    "0.000000", "1.000000", "0.000000"], "FrameOfReferenceUID": UID + ".3", "PositionReferenceIndicator": "OM",
    "ImagesInAcquisition": "40", "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": SIDE,
    "Columns": SIDE, "PixelSpacing": ["0.449219", "0.449219"], "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15,
    "PixelRepresentation": 1, "PixelPaddingValue": PADDING, "WindowCenter": "40", "WindowWidth": "80",
    "RescaleIntercept": "-1024", "RescaleSlope": "1", "RescaleType": "HU",
}  # fmt: skip
"""What all files have alike, in the layout of a real head of GE's."""

PRIVATE: list[tuple[int, int, str, Any]] = [
    (0x0009, 0x10, "LO", "GEMS_IDEN_01"), (0x0009, 0x1001, "LO", "CT_LIGHTSPEED"), (0x0009, 0x1027, "SL", 1577880000),
    (0x0019, 0x10, "LO", "GEMS_ACQU_01"), (0x0019, 0x1002, "SL", 912), (0x0019, 0x1003, "DS", "389.750000"),
    (0x0019, 0x1023, "DS", "5.000000"), (0x0019, 0x1024, "DS", "60.300000"), (0x0019, 0x1026, "SL", 0),
    (0x0019, 0x1027, "DS", "1.000000"), (0x0019, 0x1039, "SS", 4), (0x0019, 0x1042, "SS", 0),
    (0x0027, 0x10, "LO", "GEMS_IMAG_01"), (0x0027, 0x1050, "FL", -20.5), (0x0027, 0x1051, "FL", 20.5),
    (0x0043, 0x10, "LO", "GEMS_PARM_01"), (0x0043, 0x1012, "SS", [14, 2, 3]), (0x0043, 0x1031, "DS", ["1.5", "-2.0"]),
    (0x0043, 0x1064, "CS", ["ROUTINE", "NONE"]), (0x0043, 0x1065, "US", 5), (0x0043, 0x106A, "FL", [0.1, 0.2]),
    (0x0045, 0x10, "LO", "GEMS_HELIOS_01"), (0x0045, 0x1001, "SS", 16), (0x0045, 0x1003, "SS", 12),
]  # fmt: skip
"""Group, element, value representation and value."""


def measure(folder: Path, quick: bool) -> list[Figure]:
    """All comparisons, in turns, in memory where the machine has a file system there."""
    if not (SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * ROOM):
        return compare(folder, quick, "a disk, cached")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=SHARED_MEMORY) as memory:
        return compare(Path(memory), quick, "tmpfs")


def compare(folder: Path, quick: bool, disk: str) -> list[Figure]:
    """All comparisons on one disk, which is named in words."""
    repeats, series = (3, 6) if quick else (21, 24)
    one_thread()
    different = [folder / f"series {number}" for number in range(series // 2)]  # each is read twice: half the room
    for number, path in enumerate(different):
        write_series(path, SLICES, number)
    narrow = folder / "12 bits"
    write_series(narrow, SLICES, 0, bits_stored=12)
    first = next(different[0].iterdir())
    what = f"{SLICES} slices of {SIDE} x {SIDE}, int16, uncompressed, {elements(first)} elements a header, on {disk}"
    say(what)
    with one_core():
        found = [
            against_pydicom("ct.read_vs_pydicom", different[0], repeats, 1.3, what),
            against_pydicom("ct.read_12_of_16_bits", narrow, repeats, None, "the same, 12 bits of 16, unsigned"),
            *headers(different[0], repeats, what),
            *parts(different[0], repeats),
            windows(different[0], repeats),
        ]
    found.append(two_workers(folder, different * 2, 2 if quick else 7, disk))
    shutil.rmtree(narrow)
    for path in different[1:]:
        shutil.rmtree(path)
    found.append(peak(folder, SLICES if quick else DEEP))
    return found


def one_thread() -> None:
    """Zarr writes with one thread in this process, one chunk after the other."""
    import zarr

    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})


@contextmanager
def one_core(number: int = 0) -> Iterator[None]:
    """This process and its threads stay on one of the cores it has, where the system can do so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def write_series(folder: Path, slices: int, seed: int, bits_stored: int = 16) -> None:
    """A folder with a head; the order of its files' names is not that of their places."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    folder.mkdir()
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 6, (2 * SIDE, SIDE))
    for number in range(slices):
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = CT_IMAGE
        instance = f"{UID}.{1000 + number}"
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = instance
        for keyword, value in PUBLIC.items():
            setattr(file, keyword, value)
        for group, element, representation, value in PRIVATE:
            file.add_new((group, element), representation, value)
        stored = head(number / slices, noise, int(rng.integers(SIDE)))
        if bits_stored == 12:
            stored = np.maximum(stored, 0)
            file.BitsStored, file.HighBit, file.PixelRepresentation = 12, 11, 0
            del file.PixelPaddingValue
        z = f"{number * 5 - 100:.6f}"
        file.InstanceNumber, file.SliceLocation = number + 1, z
        file.ImagePositionPatient = ["-115.000000", "-115.000000", z]
        file.PixelData = stored.tobytes()
        file.save_as(folder / f"{number * 7 % slices:04d}.dcm", enforce_file_format=True)


def head(height: float, noise: np.ndarray, start: int) -> np.ndarray:
    """Stored values (y, x) of a slice at a height between 0 and 1: skull, brain, air and, in the corners, padding."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    size = 0.55 + 0.4 * np.sin(np.pi * (0.15 + 0.8 * height))
    depth = size - np.hypot(x * 1.2, y)
    hounsfield = np.select([depth < 0, depth < 0.03, depth < 0.1], [-1000.0, 20.0, 900.0], 35.0)
    stored = np.rint(hounsfield + noise[start : start + SIDE]) + 1024
    stored[np.hypot(x, y) > 1] = PADDING
    return stored.astype(np.int16)


def elements(path: Path) -> int:
    """Elements of a file, those in sequences and the pixels not counted."""
    from pydicom import dcmread

    return len(dcmread(path, stop_before_pixels=True))


def tile_series(folder: Path, store: Path) -> None:
    """What the stage `tile` does for a series."""
    from pipeline.image_settings import SeriesSettings
    from pipeline.images import open_image
    from pipeline.images.content import content_hash
    from pipeline.store import write_store
    from pipeline.tiling import tile

    content = content_hash(folder, sorted(folder.iterdir()), "series", True)
    image = open_image(folder, SeriesSettings())
    tiles = tile(image)
    attributes = {"key": content, "content": content, "properties": image.properties, "instances": len(tiles.origins)}
    write_store(store, {"origins": tiles.origins, **image.arrays()}, attributes)


def bare(folder: Path, store: Path) -> None:
    """The least that reads the pixels by pydicom and writes them: no check, no order, no HU, no hash."""
    from pydicom import dcmread

    from pipeline.store import write_store

    write_store(store, {"hu": np.stack([dcmread(path).pixel_array for path in sorted(folder.iterdir())])}, {"key": ""})


@dataclass
class Times:
    """Seconds of one job, round by round."""

    cpu: list[float] = field(default_factory=list)
    """Of all threads: on one core and with no disk to wait for, what the wall time is without other people's work."""
    wall: list[float] = field(default_factory=list)

    def ms(self, each: int = 1) -> float:
        """Median CPU time in ms of one of so many."""
        return 1000 * median(self.cpu) / each


def in_turns(
    jobs: dict[str, Callable[[], object]], repeats: int, before: Callable[[], object] = lambda: None
) -> dict[str, Times]:
    """How long each job takes in every round, one after the other; the first round is not counted, nor is `before`."""
    times = {name: Times() for name in jobs}
    for number in range(repeats + 1):
        for name, job in jobs.items():
            before()
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                times[name].cpu.append(cpu)
                times[name].wall.append(wall)
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds."""
    return median(a / b for a, b in zip(above, below, strict=True))


def against_pydicom(name: str, series: Path, repeats: int, most: float | None, what: str) -> Figure:
    """Ours over bare pydicom, each with the store it writes."""
    store = series.with_name("store.zarr")
    times = in_turns(
        {"ours": lambda: tile_series(series, store), "bare": lambda: bare(series, store)},
        repeats,
        lambda: shutil.rmtree(store, ignore_errors=True),
    )
    shutil.rmtree(store)
    ours, theirs = times["ours"], times["bare"]
    against = (
        f"{what}; one core, {repeats} rounds of CPU time (ratio of wall time: {ratio(ours.wall, theirs.wall):.2f}): "
        f"hash, series and checks {ours.ms():.0f} ms, bare `dcmread` and `pixel_array` {theirs.ms():.0f} ms; both "
        "write their store"
    )
    return figure(name, ratio(ours.cpu, theirs.cpu), "x", most, against)


def headers(series: Path, repeats: int, what: str) -> list[Figure]:
    """The headers of a series, by ours and by pydicom."""
    from pydicom import dcmread

    from pipeline.images.dicom import read_headers

    files = sorted(series.iterdir())
    times = in_turns(
        {
            "ours": lambda: read_headers(files),
            "bare": lambda: [dcmread(path, stop_before_pixels=True) for path in files],
        },
        repeats,
    )
    ours, theirs = (times[name].ms(len(files)) for name in ("ours", "bare"))
    against = f"a file of {what}; one core, {repeats} rounds of CPU time"
    found = "`dcmread(stop_before_pixels=True)`, whose elements are found and not yet understood"
    return [
        figure("ct.header_ms", ours, "ms", 0.5, against),
        figure("ct.header_bare_ms", theirs, "ms", None, f"{found}, in the same rounds"),
    ]


def parts(series: Path, repeats: int) -> list[Figure]:
    """Where the time of one series goes."""
    from pipeline.image_settings import SeriesSettings
    from pipeline.images import open_image
    from pipeline.images.content import content_hash
    from pipeline.images.decoding import read_stored
    from pipeline.images.dicom import read_headers
    from pipeline.images.hounsfield import Shares, to_hounsfield
    from pipeline.store import write_store

    files, store = sorted(series.iterdir()), series.with_name("store.zarr")
    slices, _ = read_headers(files)
    codings = [header.coding for header in slices]
    stored = [read_stored(header, "")[0] for header in slices]
    image = open_image(series, SeriesSettings())
    origins = np.zeros((len(files), 3), np.int32)

    def pixels() -> None:
        for header in slices:
            read_stored(header, "")

    def hounsfield() -> None:
        volume = np.empty((len(stored), SIDE, SIDE), np.int16)
        for values, coding, plane in zip(stored, codings, volume, strict=True):
            to_hounsfield(values, coding, plane)

    def check() -> None:
        shares = Shares()
        for values, coding in zip(stored, codings, strict=True):
            shares.add(values, coding)

    jobs: dict[str, Callable[[], object]] = {
        "whole": lambda: tile_series(series, store),
        "hash": lambda: content_hash(series, files, "series", True),
        "headers": lambda: read_headers(files),
        "pixels": pixels,
        "hu": hounsfield,
        "check": check,
        "write": lambda: write_store(store, {"origins": origins, **image.arrays()}, {"key": ""}),
    }
    times = in_turns(jobs, repeats, lambda: shutil.rmtree(store, ignore_errors=True))
    shutil.rmtree(store)
    each = {name: found.ms() for name, found in times.items()}
    each["rest"] = each["whole"] - sum(value for name, value in each.items() if name != "whole")
    says = {
        "whole": f"one series of {SLICES} slices, hash to store; {repeats} rounds of CPU time, as of the parts below",
        "hash": "sha256 of every file",
        "headers": "`read_headers`",
        "pixels": "stored values, slice by slice",
        "hu": "stored values to HU in a new volume",
        "check": "shares of air and tissue, and the tissue's median",
        "write": "the store",
        "rest": "the whole without the parts: choosing, order and geometry, the record",
    }
    return [figure(f"ct.{name}_ms", each[name], "ms", None, against) for name, against in says.items()]


def windows(series: Path, repeats: int) -> Figure:
    """A slice through three windows, out of the HU a store keeps."""
    from pipeline.image_settings import SeriesSettings
    from pipeline.images import open_image
    from pipeline.tiling import tile

    image = open_image(series, SeriesSettings())
    origins = tile(image).origins
    room = np.empty((len(origins), SIDE, SIDE, 3), np.uint8)
    took = in_turns({"read": lambda: image.read(origins, image.tile_size, 1, room)}, repeats)["read"].ms(len(origins))
    return figure("ct.new_windows", took, "ms", None, f"a slice of {SIDE} x {SIDE}, three windows; {repeats} rounds")


def worker(number: int, folder: Path, warm: Path) -> None:
    """A process that reads the series it is told, and says when it is done; JSON lines."""
    one_thread()
    with one_core(number):
        for work in (tile_series, bare):
            work(warm, folder / f"warm {number} {work.__name__}.zarr")
        print("ready", flush=True)
        for line in sys.stdin:
            task = json.loads(line)
            work = {"ours": tile_series, "bare": bare}[task["work"]]
            for index, path in enumerate(task["series"]):
                work(Path(path), folder / f"store {number} {index}.zarr")
            print("done", flush=True)


class Worker:
    """A process that runs `worker`."""

    def __init__(self, number: int, folder: Path, warm: Path) -> None:
        code = "import sys; from pathlib import Path; from read_ct import worker; "
        code += "worker(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))"
        command = [sys.executable, "-c", code, str(number), str(folder), str(warm)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE, bufsize=1
        )

    def tell(self, work: str, series: list[Path]) -> None:
        """Give it series to read."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"work": work, "series": [str(path) for path in series]}) + "\n")

    def wait(self) -> None:
        """Until it is ready, or done."""
        assert self.process.stdout
        if not self.process.stdout.readline():
            raise SystemExit("error: a process that reads series ended: see above")

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def two_workers(folder: Path, series: list[Path], repeats: int, disk: str) -> Figure:
    """All series by one process, and half of them by each of two; wall time."""
    stores = folder / "stores"
    stores.mkdir()
    workers = [Worker(number, stores, series[0]) for number in (0, 1)]
    for each in workers:
        each.wait()

    def job(work: str, count: int) -> Callable[[], None]:
        def run() -> None:
            for number, each in enumerate(workers[:count]):
                each.tell(work, series[number::count])
            for each in workers[:count]:
                each.wait()

        return run

    def clean() -> None:
        for store in stores.glob("store *"):
            shutil.rmtree(store)

    jobs: dict[str, Callable[[], object]] = {
        f"{work} {count}": job(work, count) for work in ("ours", "bare") for count in (1, 2)
    }
    times = in_turns(jobs, repeats, clean)
    for each in workers:
        each.end()
    shutil.rmtree(stores)
    one, two = times["ours 1"].wall, times["ours 2"].wall
    what = (
        f"wall time of {len(series)} series on {disk}, {repeats} rounds, a core and a thread each: one process "
        f"{seconds(one)}; two {seconds(two)}; bare pydicom gains "
        f"{ratio(times['bare 1'].wall, times['bare 2'].wall):.2f} x by two processes here"
    )
    return figure("ct.two_workers", ratio(one, two), "x", None, what, least=1.6)


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, those it has; VmHWM, the most it has had."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def report_peak(folder: Path, tiny: Path, large: Path) -> None:
    """Print by how many bytes a series is above what the process has anyway, at the peak."""
    one_thread()
    tile_series(tiny, folder / "tiny.zarr")
    before = memory("VmRSS")
    tile_series(large, folder / "large.zarr")
    print(json.dumps({"before": before, "peak": memory("VmHWM")}))


def peak(folder: Path, slices: int) -> Figure:
    """Memory over the volume's size, in a process of its own."""
    write_series(folder / "tiny", 10, 0)
    write_series(folder / "large", slices, 1)
    code = (
        "import sys; from pathlib import Path; from read_ct import report_peak; report_peak(*map(Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(folder / "tiny"), str(folder / "large")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE)
    found = json.loads(done.stdout)
    grown, volume = found["peak"] - found["before"], slices * SIDE * SIDE * 2
    what = (
        f"VmHWM above what the process has after a series of 10 slices ({found['before'] / 1e6:.0f} MB), over the "
        f"{volume / 1e6:.0f} MB of int16 of {slices} slices; hash to store, once"
    )
    return figure("ct.peak_vs_volume", grown / volume, "x", 3, what)


if __name__ == "__main__":
    raise SystemExit(main(__doc__ or "", measure))
