"""What lies below the raw folder: slides and CT series, found with stat and a look at the first 4 KB of a few files.

Standard library only (pydicom is imported for DICOM slides alone): runs in Snakemake's own process, every time.
"""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pipeline import companions
from pipeline.errors import ConfigError

Kind = Literal["slide", "series"]
KINDS: tuple[Kind, ...] = ("slide", "series")

SLIDE_SUFFIXES = frozenset(
    (".bif", ".czi", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu")
)
DICOM_SUFFIXES = frozenset((".dcm", ".dic", ".dicom", ".ima"))
PICTURE_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png"))
# fmt: off
OTHER_SUFFIXES = PICTURE_SUFFIXES | frozenset((
    ".bak", ".crdownload", ".csv", ".db", ".doc", ".docx", ".filepart", ".geojson", ".gif", ".gz", ".h5",
    ".html", ".ini", ".json", ".log", ".md", ".nii", ".npy", ".npz", ".nrrd", ".opt", ".part", ".partial", ".pdf",
    ".pt", ".py", ".rar", ".sh", ".tar", ".tmp", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
))
# fmt: on
OTHER_NAMES = frozenset(["DICOMDIR", "LICENSE", "LOCKFILE", "README", "THUMBS.DB", "VERSION"])

DEEPEST = 100
"""Folders in one another that are looked into."""

PATIENCE = 20
"""ASSUME: a slide whose files are not all there is still being copied, until it was left alone for so many times
`settle_seconds`; then it is taken as it is, and what cannot be read is counted."""


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
    missing: tuple[str, ...] = ()
    """Files that a slide names and that are not there, below the folder of its first file."""
    plain: bool = False
    """A PNG, JPEG or BMP file: a slide when somebody states its resolution, and else a picture."""

    def waits(self, now: float, settle: float, hidden: bool) -> str:
        """Why it is left to the next run; empty: it is not.

        Args:
            now: as `time.time()` gives it.
            settle: seconds that an image must have been left alone; 0: none waits.
            hidden: name no file.
        """
        age = now - self.changed_ns / 1e9
        missing = len(self.missing)
        if settle and missing and age < PATIENCE * settle:
            some = f"{missing} of its files" if hidden else self.missing[0].rpartition("/")[2]
            if missing > 1 and not hidden:
                some += f" and {missing - 1} more of its files"
            return f"incomplete: {some} {'are' if missing > 1 else 'is'} not there yet"
        return "changed too recently: run again" if settle and age < settle else ""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Something below the raw folder that is no image, and why."""

    path: str
    reason: str


def scan(raw: Path) -> tuple[list[RawImage], list[Ignored]]:
    """All images below a folder, sorted by path, and all that was passed over. A missing folder holds nothing.

    A slide is what is named like one, and what is a TIFF or CZI file under a name that says nothing or says picture.

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
    files = [file for file in files_and_folders(folder)[0] if file.name.isprintable()]
    beside = {name for names in _beside(folder, files).values() for name in names}
    return _sort_dicom(folder, [file for file in files if _may_be_dicom(file.name) and file.name not in beside])[0]


def _scan_folder(
    folder: Path, below: str, above: tuple[tuple[int, int], ...], images: list[RawImage], ignored: list[Ignored]
) -> None:
    """Add the images of one folder and of those inside it. `below` is its path below raw, '' or ending in a slash."""
    try:
        here = os.stat(folder)
        files, folders = files_and_folders(folder)
    except OSError as error:
        ignored.append(Ignored(below, f"cannot be opened ({error.strerror})"))
        return
    if (here.st_dev, here.st_ino) in above:
        ignored.append(Ignored(below, "is a link to a folder that contains it"))
        return
    if len(above) > DEEPEST:
        ignored.append(Ignored(below, f"lies in more than {DEEPEST} folders: bring it further up"))
        return
    # isprintable: false for control characters and for bytes that are not UTF-8, which no table could hold
    bad = [name for name in (*(file.name for file in files), *folders) if not name.isprintable()]
    ignored += [Ignored(below + ascii(name), "has a name that is not plain text: rename it") for name in bad]
    files = [file for file in files if file.name.isprintable()]
    folders = [name for name in folders if name.isprintable()]

    beside = _beside(folder, files)
    taken = {name for names in beside.values() for name in names}
    free = [file for file in files if file.name not in taken]
    pictures = {f.name: companions.content(folder / f.name) for f in free if _suffix(f.name) in PICTURE_SUFFIXES}
    series, slides, strangers = _sort_dicom(folder, [file for file in free if _may_be_dicom(file.name)])
    slides += [[file] for file in files if _suffix(file.name) in SLIDE_SUFFIXES]
    slides += [[file] for file in free if pictures.get(file.name) in ("slide", "picture")]
    by_name = {file.name: file for file in files}
    for first, *others in slides:
        parts = [first, *others, *(_stat(folder / name, name) for name in beside.get(first.name, ()))]
        if _suffix(first.name) == companions.MIRAX_SUFFIX and Path(first.name).stem in folders:
            folders.remove(Path(first.name).stem)
            parts += _inside(folder, Path(first.name).stem)
        if annotation := companions.annotation_name(first.name, by_name):
            parts.append(by_name[annotation])
        taken.update(part.name for part in parts)
        missing = companions.missing_parts(folder / first.name)
        images.append(_slide(below, parts, tuple(missing), pictures.get(first.name) == "picture"))
    # LICENSE, DICOMDIR and the like are not worth a line.
    rest = [file for file in free if _suffix(file.name) in OTHER_SUFFIXES and file.name.upper() not in OTHER_NAMES]
    strangers = [file for file in (*strangers, *rest) if file.name not in taken]
    ignored += [Ignored(below + file.name, "is no slide and no DICOM file") for file in strangers]
    if series and not below:
        more = f" and {len(series) - 1} more" if len(series) > 1 else ""
        reason = "DICOM outside of any folder: `python -m pipeline sort-dicom` gives each series its own"
        ignored.append(Ignored(series[0].name + more, reason))
    elif series:
        changed, size = max(file.changed_ns for file in series), sum(file.size for file in series)
        images.append(RawImage(below[:-1], "series", identity(series), changed, (), size))
    for name in folders:
        _scan_folder(folder / name, f"{below}{name}/", (*above, (here.st_dev, here.st_ino)), images, ignored)


def files_and_folders(folder: Path) -> tuple[list[File], list[str]]:
    """What a folder holds itself, each sorted by name, without names that start with a dot.

    Raises:
        OSError: it cannot be opened.
    """
    files: list[File] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif (entry.is_symlink() and not os.path.exists(entry.path)) or _is_file(entry):
                files.append(_stat(entry, entry.name))
    files.sort(key=lambda file: file.name)
    folders.sort()
    return files, folders


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """Whether it is an ordinary file or leads to one: a pipe would be waited for, for ever."""
    try:
        return entry.is_file()
    except OSError:
        return False


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


def _beside(folder: Path, files: list[File]) -> dict[str, list[str]]:
    """The files that Hamamatsu's slides name and that are there, by the name of the slide's first file."""
    slides = [file.name for file in files if _suffix(file.name) in companions.HAMAMATSU_SUFFIXES]
    return {name: companions.parts_there(folder / name) for name in slides}


def _inside(folder: Path, name: str) -> list[File]:
    """The files of a MIRAX slide's folder; without them the slide cannot be opened, as its row will say."""
    try:
        files = files_and_folders(folder / name)[0]
    except OSError:
        return []
    return [File(f"{name}/{f.name}", f.size, f.mtime_ns, f.changed_ns) for f in files]


def _slide(below: str, parts: list[File], missing: tuple[str, ...], plain: bool) -> RawImage:
    return RawImage(
        path=below + parts[0].name,
        kind="slide",
        identity=identity(parts),
        changed_ns=max(file.changed_ns for file in parts),
        files=tuple(below + file.name for file in parts),
        size=sum(file.size for file in parts),
        missing=missing,
        plain=plain,
    )


def _sort_dicom(folder: Path, candidates: list[File]) -> tuple[list[File], list[list[File]], list[File]]:
    """Divide what may be DICOM into the files of a CT series, groups that are one slide each, and neither.

    Three files are looked at, named like DICOM first; a folder that shows CT and nothing else is not looked at further,
    because looking costs 30 µs a file and a cohort has a million of them.
    """
    named = {file.name for file in candidates if _suffix(file.name) in DICOM_SUFFIXES}
    first = [file.name for file in candidates if file.name in named or not named]
    looks: dict[str, companions.Content] = {
        name: companions.content(folder / name) for name in first[:: max(1, len(first) // 2)]
    }
    if "dicom" in looks.values() and not {"dicom slide", "slide"} & set(looks.values()):
        return candidates, [], []
    all_of_them = "dicom slide" in looks.values()
    for file in candidates:
        if file.name not in looks and (all_of_them or file.name not in named):
            looks[file.name] = companions.content(folder / file.name)

    series: list[File] = []
    strangers: list[File] = []
    slides: dict[tuple[str, str], list[File]] = {}
    for file in candidates:
        look = looks.get(file.name, "")
        if look == "dicom slide":  # files of one series belong to one slide
            slides.setdefault(("dicom", companions.dicom_series(folder / file.name)), []).append(file)
        elif look == "slide" and file.name not in named:
            slides["file", file.name] = [file]
        # ASSUME: a file named .dcm that is no DICOM file is a broken one, which a row must name.
        elif look == "dicom" or file.name in named:
            series.append(file)
        else:
            strangers.append(file)
    return series, list(slides.values()), strangers
