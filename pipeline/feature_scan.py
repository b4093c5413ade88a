"""Features that exist already, found below a folder: which files are one image, and which say the same twice.

Standard library only: runs in Snakemake's own process, every time.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from pipeline import raw
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.raw import DEEPEST, KINDS, OTHER_NAMES, File, Ignored, Kind, RawImage, files_and_folders

FEATURE_SUFFIXES = (".h5", ".hdf5", ".zarr", ".npz", ".pt", ".pth", ".npy", ".csv")
"""Those that can hold coordinates first: of two forms of one image, the first of this order is read."""

CLAM_FOLDERS = frozenset(("h5_files", "pt_files"))
"""CLAM writes each slide twice, into these two folders beside each other."""


@dataclass(slots=True)
class _Found:
    """What lies below a folder."""

    files: dict[str, list[File]] = field(default_factory=dict)
    """Of a feature file itself, of a Zarr folder all that is in it, by path below the folder."""
    ignored: list[Ignored] = field(default_factory=list)

    def leave(self, name: str, reason: str) -> None:
        """Pass over a feature file that was found."""
        del self.files[name]
        self.ignored.append(Ignored(name, reason))


def find_images(config: Config) -> tuple[list[RawImage], list[Ignored]]:
    """All images of an experiment, raw ones and features that exist already, sorted by path; and what was passed over.

    Raises:
        ConfigError: a folder is not there, is a file or holds the results; or a slide and a series are called the same.
    """
    images, ignored = raw.scan(Path(config.raw))
    replaced: list[Ignored] = []
    for kind in KINDS:
        section = config.modality(kind)
        if not section.features:
            continue
        place, results = Path(section.features).resolve(), Path("results").resolve()
        if place.is_relative_to(results) or results.is_relative_to(place):  # every run would find more of its own
            raise ConfigError(
                f"{kind}.features: {section.features} holds the results of runs, or lies in them: name a folder that "
                "holds the feature files alone"
            )
        if left := sum(image.kind == kind for image in images):
            reason = f"{left} raw images ({kind}) are left out: {kind}.features takes their place"
            replaced.append(Ignored(config.raw, reason))
        images = [image for image in images if image.kind != kind]
        found, passed = scan_features(Path(section.features), kind, section.features_of, Path(config.labels))
        images += found
        ignored = [item for item in ignored if not _is_feature(item.path, config.raw, section.features)] + passed
    twice = len(images) - len({image.path for image in images})
    if twice:
        raise ConfigError(
            f"features: {twice} slides have the paths of series: put the features of each into a folder of their own, "
            "and name the folder above it"
        )
    ignored = [*replaced, *sorted(ignored, key=lambda item: item.path)]
    return sorted(images, key=lambda image: image.path), ignored


def scan_features(
    folder: Path, kind: Kind, of: Literal["file", "folder"], labels: Path | None = None
) -> tuple[list[RawImage], list[Ignored]]:
    """All images below a folder of features, sorted by path, and all that was passed over.

    Args:
        folder: searched in depth; names that start with a dot are not looked at, links are followed.
        kind: what the images are.
        of: what is one image: a file (or Zarr folder), or a folder with all of them that it holds itself.
        labels: the table of labels, which is no image where it lies below the folder.

    Raises:
        ConfigError: the folder is not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"{kind}.features: {folder} is no folder: name the one that holds the feature files")
    found = _Found()
    _scan(folder, "", (), found)
    for name in [name for name in found.files if labels and _is_same(folder / name, labels)]:
        found.leave(name, "is the table of labels")
    _leave_indices(found)
    _leave_twins(found)
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(found.files):
        members[name if of == "file" else name.rpartition("/")[0]].append(name)
    if outside := members.pop("", []):
        more = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
        reason = "lies outside of any folder, and features_of says that a folder is one image"
        found.ignored.append(Ignored(outside[0] + more, reason))
    images = []
    for path, names in sorted(members.items()):
        files = [file for name in names for file in found.files[name]]
        youngest, size = max(file.changed_ns for file in files), sum(file.size for file in files)
        images.append(RawImage(path, kind, raw.identity(files), youngest, tuple(names), size))
    return images, sorted(found.ignored, key=lambda item: item.path)


def identity_now(folder: Path, names: tuple[str, ...]) -> str:
    """The identity of an image as its files are at this moment; empty when they are gone."""
    try:
        return raw.identity([file for name in names for file in _parts(folder, name)])
    except OSError:
        return ""


def without_suffix(path: str) -> str:
    """A path without the suffix of a feature file, if it has one: other dots belong to the name."""
    pure = PurePosixPath(path)
    return str(pure.with_suffix("")) if pure.suffix.lower() in FEATURE_SUFFIXES else path


def _is_feature(path: str, raw_folder: str, features: str) -> bool:
    """Whether what `raw` passed over is, or lies in, a feature file: these may lie below the folder of raw images."""
    if not any(part.lower().endswith(FEATURE_SUFFIXES) for part in path.split("/")):
        return False
    return (Path(raw_folder) / path).resolve().is_relative_to(Path(features).resolve())


def _is_same(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them is not there, or is a link to nothing
        return False


def _scan(folder: Path, below: str, above: tuple[tuple[int, int], ...], found: _Found) -> None:
    """Add what one folder and those inside it hold. `below` is its path below the first, '' or ending in a slash."""
    try:
        here = os.stat(folder)
        files, folders = files_and_folders(folder)
    except OSError as error:
        found.ignored.append(Ignored(below, f"cannot be opened ({error.strerror})"))
        return
    if (here.st_dev, here.st_ino) in above:
        found.ignored.append(Ignored(below, "is a link to a folder that contains it"))
        return
    if len(above) > DEEPEST:
        found.ignored.append(Ignored(below, f"lies in more than {DEEPEST} folders: bring it further up"))
        return
    others = []
    for name, is_folder in [*((file.name, False) for file in files), *((name, True) for name in folders)]:
        path = below + name
        suffix = PurePosixPath(name).suffix.lower()
        if not name.isprintable():
            found.ignored.append(Ignored(below + ascii(name), "has a name that is not plain text: rename it"))
        elif suffix in FEATURE_SUFFIXES and is_folder == (suffix == ".zarr"):
            found.files[path] = _parts(folder, name, below)
        elif is_folder:
            _scan(folder / name, f"{path}/", (*above, (here.st_dev, here.st_ino)), found)
        elif name.upper() not in OTHER_NAMES:
            others.append(path)
    if others:  # one line for all: below a folder of raw images there may be a million
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        found.ignored.append(Ignored(others[0] + more, "is no feature file"))


def _parts(folder: Path, name: str, below: str = "") -> list[File]:
    """A feature file itself, or the files of a Zarr folder in depth, named by their paths below the first folder.

    Raises:
        OSError: it is not there.
    """
    path = folder / name
    if not path.is_dir():
        return [_stat(path, below + name)]
    inside = [Path(top) / file for top, _, files in os.walk(path) for file in files]
    return [_stat(file, below + file.relative_to(folder).as_posix()) for file in sorted(inside)] or [
        _stat(path, below + name)
    ]


def _stat(path: Path, name: str) -> File:
    """One file; a link to nothing is one too, which its row will say."""
    found = path.stat() if path.exists() else path.lstat()
    return File(name, found.st_size, found.st_mtime_ns, max(found.st_mtime_ns, found.st_ctime_ns))


def _leave_indices(found: _Found) -> None:
    """Leave the places of tiles that slideflow writes beside each file of features."""
    for name in list(found.files):
        bag = name.removesuffix(".index.npz").removesuffix(".index.npy")
        if bag != name and f"{bag}.pt" in found.files:
            found.leave(name, "holds the places of the tiles of the .pt file beside it, and no features")


def _leave_twins(found: _Found) -> None:
    """Keep one of the forms that an image is there in: beside each other, or in CLAM's two folders."""
    forms: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in found.files:
        pure = PurePosixPath(name)
        where = pure.parent.parent / "(h5_files or pt_files)" if pure.parent.name in CLAM_FOLDERS else pure.parent
        forms[str(where), pure.stem].append(name)
    for names in forms.values():
        first, *others = sorted(names, key=lambda name: FEATURE_SUFFIXES.index(PurePosixPath(name).suffix.lower()))
        for other in others:
            taken = PurePosixPath(first).suffix.lower()
            found.leave(other, f"is another form of an image whose {taken} file is taken")
