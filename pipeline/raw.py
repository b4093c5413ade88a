"""What lies below the raw folder: slides and CT series, found with stat and a look at the first 4 KB of a few files.

Standard library only (pydicom is imported for DICOM slides alone): runs in Snakemake's own process, every time.
"""

import contextlib
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pipeline.errors import ConfigError

Kind = Literal["slide", "series"]
KINDS: tuple[Kind, ...] = ("slide", "series")

SLIDE_SUFFIXES = frozenset(
    (".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu")
)
DICOM_SUFFIXES = frozenset((".dcm", ".dic", ".dicom", ".ima"))
# fmt: off
OTHER_SUFFIXES = frozenset((
    ".bmp", ".csv", ".db", ".doc", ".docx", ".dat", ".geojson", ".gif", ".gz", ".h5", ".html", ".ini", ".jpeg", ".jpg",
    ".json", ".log", ".md", ".nii", ".npy", ".npz", ".nrrd", ".opt", ".pdf", ".png", ".pt", ".py", ".rar", ".sh",
    ".tar", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
))
# fmt: on
OTHER_NAMES = frozenset(["DICOMDIR", "LICENSE", "LOCKFILE", "README", "THUMBS.DB", "VERSION"])

WSI_CLASS = b"1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""


@dataclass(frozen=True, slots=True)
class File:
    """One file, as stat saw it."""

    name: str
    size: int
    mtime_ns: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class RawImage:
    """A slide with its companion files, or a folder of CT DICOM files."""

    path: str
    """Below the raw folder, with forward slashes: a slide's (first) file, or a series' folder."""
    kind: Kind
    identity: str
    """Changes with the name, size or modification time of any of its files."""
    changed_ns: int
    """When the youngest of its files changed last."""
    files: tuple[str, ...]
    """A slide's files below the raw folder; empty for a series, whose files are all of its folder."""
    size: int
    """Bytes of all its files."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Something below the raw folder that is no image, and why."""

    path: str
    reason: str


def scan(raw: Path) -> tuple[list[RawImage], list[Ignored]]:
    """All images below a folder, sorted by path, and all that was passed over. A missing folder holds nothing.

    Names that start with a dot are not looked at: that is how copies in progress and leftovers are called.

    Links are followed; a folder that contains itself is entered once.

    Raises:
        ConfigError: `raw` is a file.
    """
    if raw.exists() and not raw.is_dir():
        raise ConfigError(f"raw: {raw} is a file: name the folder that holds slides and DICOM folders")
    images: list[RawImage] = []
    ignored: list[Ignored] = []
    if raw.exists():
        _scan_folder(raw, "", (), images, ignored)
    images.sort(key=lambda image: image.path)
    ignored.sort(key=lambda item: item.path)
    return images, ignored


def identity(files: list[File]) -> str:
    """Sixteen hexadecimal digits over the names, sizes and modification times of files."""
    lines = sorted(f"{file.name}\0{file.size}\0{file.mtime_ns}" for file in files)
    return sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def identity_now(raw: Path, path: str, kind: Kind, files: tuple[str, ...]) -> str:
    """The identity of an image as its files are at this moment; empty when they are gone."""
    folder = raw / path if kind == "series" else (raw / path).parent
    try:
        if kind == "series":
            return identity(_series(folder))
        below = str(Path(path).parent)
        return identity([_stat(raw / name, os.path.relpath(name, below)) for name in files])
    except OSError:
        return ""


def series_files(folder: Path) -> list[Path]:
    """The files of a series' folder that `scan` took for its own, sorted by name; folders inside are other images."""
    return sorted(folder / file.name for file in _series(folder))


def _series(folder: Path) -> list[File]:
    files = _files_and_folders(folder)[0]
    return _sort_dicom(folder, [file for file in files if file.name.isprintable() and _may_be_dicom(file.name)])[0]


def _scan_folder(
    folder: Path, below: str, above: tuple[tuple[int, int], ...], images: list[RawImage], ignored: list[Ignored]
) -> None:
    """Add the images of one folder and of those inside it. `below` is its path below raw, '' or ending in a slash."""
    try:
        here = os.stat(folder)
        files, folders = _files_and_folders(folder)
    except OSError as error:
        ignored.append(Ignored(below, f"cannot be opened ({error.strerror})"))
        return
    if (here.st_dev, here.st_ino) in above:
        ignored.append(Ignored(below, "is a link to a folder that contains it"))
        return
    # isprintable: false for control characters and for bytes that are not UTF-8, which no table could hold
    bad = [name for name in (*(file.name for file in files), *folders) if not name.isprintable()]
    ignored += [Ignored(below + ascii(name), "has a name that is not plain text: rename it") for name in bad]
    files = [file for file in files if file.name.isprintable()]
    folders = [name for name in folders if name.isprintable()]

    slides = [file for file in files if _suffix(file.name) in SLIDE_SUFFIXES]
    for file in slides:
        companion = Path(file.name).stem if file.name.lower().endswith(".mrxs") else None
        parts = [file]
        if companion in folders:
            folders.remove(companion)
            with contextlib.suppress(OSError):  # without what is in it the slide cannot be opened, as its row will say
                inside = _files_and_folders(folder / companion)[0]
                parts += [File(f"{companion}/{f.name}", f.size, f.mtime_ns, f.changed_ns) for f in inside]
        images.append(_slide(below, parts))

    series, groups, strangers = _sort_dicom(folder, [file for file in files if _may_be_dicom(file.name)])
    images += [_slide(below, group) for group in groups]
    strangers += _others(files)
    ignored += [Ignored(below + file.name, "is no slide and no DICOM file") for file in strangers]
    if series and not below:
        ignored += [Ignored(f.name, "is a DICOM file outside of any folder: give each series its own") for f in series]
    elif series:
        changed, size = max(file.changed_ns for file in series), sum(file.size for file in series)
        images.append(RawImage(below[:-1], "series", identity(series), changed, (), size))
    for name in folders:
        _scan_folder(folder / name, f"{below}{name}/", (*above, (here.st_dev, here.st_ino)), images, ignored)


def _files_and_folders(folder: Path) -> tuple[list[File], list[str]]:
    files: list[File] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif entry.is_symlink() or entry.is_file():
                files.append(_stat(entry, entry.name))
    files.sort(key=lambda file: file.name)
    folders.sort()
    return files, folders


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look
        return False


def _stat(entry: "os.DirEntry[str] | Path", name: str) -> File:
    try:
        found = entry.stat()
    except OSError:  # a link to nothing or to itself: an image that cannot be opened, which its row will say
        return File(name, -1, 0, 0)
    return File(name, found.st_size, found.st_mtime_ns, max(found.st_mtime_ns, found.st_ctime_ns))


def _suffix(name: str) -> str:
    """A name from its last dot, in lower case; a name without a dot is no suffix of ours. pathlib takes 4 µs more."""
    _, dot, end = name.rpartition(".")
    return dot + end.lower()


def _may_be_dicom(name: str) -> bool:
    suffix = _suffix(name)
    return suffix not in OTHER_SUFFIXES and suffix not in SLIDE_SUFFIXES and name.upper() not in OTHER_NAMES


def _others(files: list[File]) -> list[File]:
    """Files whose suffix says that they are no image; LICENSE, DICOMDIR and the like are not worth a line."""
    return [file for file in files if _suffix(file.name) in OTHER_SUFFIXES and file.name.upper() not in OTHER_NAMES]


def _slide(below: str, parts: list[File]) -> RawImage:
    return RawImage(
        path=below + parts[0].name,
        kind="slide",
        identity=identity(parts),
        changed_ns=max(file.changed_ns for file in parts),
        files=tuple(below + file.name for file in parts),
        size=sum(file.size for file in parts),
    )


def _sort_dicom(folder: Path, candidates: list[File]) -> tuple[list[File], list[list[File]], list[File]]:
    """Divide what may be DICOM into the files of a CT series, groups that are one slide each, and neither.

    Three files are looked at, named like DICOM first; only a folder that shows a slide is looked at whole, because
    looking costs 30 µs a file and a cohort has a million of them.
    """
    if not candidates:
        return [], [], []
    named = [file for file in candidates if _suffix(file.name) in DICOM_SUFFIXES]
    sample = (named or candidates)[:: max(1, len(named or candidates) // 2)]
    looks = [_look(folder / file.name) for file in sample]
    if "slide" in looks:
        slides = [file for file in candidates if _look(folder / file.name) == "slide"]
        rest = [file for file in candidates if file not in slides]
        series, _, strangers = _sort_dicom(folder, rest)
        return series, _slide_groups(folder, slides), strangers
    # ASSUME: a file named .dcm that is no DICOM file is a broken one, which a row must name.
    return (candidates, [], []) if named or "other" in looks else ([], [], candidates)


def _look(path: Path) -> Literal["slide", "other", ""]:
    """Whether a file is a DICOM slide, another DICOM file, or neither, from its file meta information."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError:
        return ""
    if head[128:132] != b"DICM":
        return ""
    at = head.find(b"\x02\x00\x02\x00UI")
    if at < 0:
        return "other"
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return "slide" if head[at + 8 : at + 8 + length].rstrip(b"\0 ") == WSI_CLASS else "other"


def _slide_groups(folder: Path, files: list[File]) -> list[list[File]]:
    """DICOM files of the same series belong to one slide."""
    import pydicom

    groups: dict[str, list[File]] = {}
    for file in files:
        try:
            header = pydicom.dcmread(folder / file.name, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
            series = str(header.get("SeriesInstanceUID", file.name))
        except (pydicom.errors.InvalidDicomError, OSError, ValueError, EOFError, AttributeError):
            series = file.name
        groups.setdefault(series, []).append(file)
    return list(groups.values())
