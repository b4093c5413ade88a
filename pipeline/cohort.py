"""The table of labels: read, checked against itself, and matched with the images that are there."""

import csv
import io
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.config import Config
from pipeline.errors import CohortError
from pipeline.feature_scan import FEATURE_SUFFIXES
from pipeline.image_settings import SlideSettings
from pipeline.raw import DICOM_SUFFIXES, SLIDE_SUFFIXES

MPP_POLICIES = ("require", "override", "assume")
FILE_SUFFIXES = SLIDE_SUFFIXES | DICOM_SUFFIXES | frozenset(FEATURE_SUFFIXES)
COLUMNS = frozenset(["image", "patient", "case", "exclude", "site", "mpp", "mpp_policy", "series", "label"])


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table of labels."""

    number: int
    """Line in the file, the header being line 1."""
    image: str
    """Path below the raw folder, with or without suffix; with `by_stem`, a file name without folder and suffix."""
    by_stem: bool
    patient: str
    case: str
    label: str
    """Empty: the image gets a prediction and never enters training."""
    exclude: str
    """A reason; empty: the image is used."""
    site: str
    mpp: float | None
    mpp_policy: str = ""
    """One of `MPP_POLICIES`; empty: the cohort's, or `override` where an mpp is stated."""
    series: str = ""
    """SeriesNumber or SeriesInstanceUID of the series to read of several in a folder; empty: the settings choose."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """Which image has which row, and the rows whose image is not there."""

    rows: dict[str, Row]
    """By the image's path below the raw folder."""
    missing: list[Row]


def read_labels(path: Path) -> list[Row]:
    """The rows of a table of labels; none when there is no table.

    The columns are `image`, `patient`, `label` and optionally `case`, `exclude`, `site`, `mpp`, `mpp_policy`,
    `series`; or CLAM's `case_id` (the patient) and `slide_id` (the file's name without suffix). Other columns are left
    alone.

    Raises:
        CohortError: naming the line, what was found and what to do.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CohortError(f"{path}: is not UTF-8 (byte {error.start}): save it as CSV UTF-8") from None
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    table = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    try:
        lines = [(table.line_num, line) for line in table]
    except csv.Error as error:
        raise CohortError(f"{path} line {table.line_num}: is not a table ({error}): is a quote left open?") from None
    columns = {(name or "").strip().lower(): name for name in table.fieldnames or []}
    by_stem = "image" not in columns and "slide_id" in columns
    if by_stem:
        columns["image"] = columns["slide_id"]
        if "case_id" in columns:
            columns.setdefault("patient", columns["case_id"])
            columns.setdefault("case", columns["case_id"])
    for needed in ("image", "patient"):
        if needed not in columns:
            found = ", ".join(sorted(columns)) or "nothing"
            raise CohortError(f"{path}: has no column `{needed}` (found: {found}): add it, one row per image")
    used = {name: columns[name] for name in COLUMNS if name in columns}
    return [
        _row(path, number, {k: (line[v] or "").strip() for k, v in used.items()}, by_stem) for number, line in lines
    ]


def _row(path: Path, number: int, cells: dict[str, str], by_stem: bool) -> Row:
    image = cells["image"].replace("\\", "/").removeprefix("./").rstrip("/")
    if not image or image.startswith("/") or ".." in PurePosixPath(image).parts:
        raise CohortError(
            f"{path} line {number}: `image` is empty or leads out of the raw folder: write its path below it"
        )
    if not cells["patient"]:
        raise CohortError(f"{path} line {number}: `patient` is empty: folds divide patients, so each image needs one")
    mpp = None
    if cells.get("mpp"):
        try:
            mpp = float(cells["mpp"])
        except ValueError:
            mpp = -1.0
        if not 0.01 <= mpp <= 100:
            raise CohortError(
                f"{path} line {number}: mpp is {cells['mpp']!r}: write µm per pixel, such as 0.25, or nothing"
            )
    policy = cells.get("mpp_policy", "").lower()
    if policy and policy not in MPP_POLICIES:
        raise CohortError(
            f"{path} line {number}: mpp_policy is {cells['mpp_policy']!r}: write {', '.join(MPP_POLICIES)} or nothing"
        )
    if policy == "require" and mpp is not None:
        raise CohortError(
            f"{path} line {number}: mpp_policy is `require`, the file's own, and an mpp is stated: remove one of them"
        )
    if policy == "override" and mpp is None:
        raise CohortError(f"{path} line {number}: mpp_policy is `override` and no mpp is stated: state it in `mpp`")
    return Row(
        number=number,
        image=image,
        by_stem=by_stem,
        patient=cells["patient"],
        case=cells.get("case", ""),
        label=cells.get("label", ""),
        exclude=cells.get("exclude", ""),
        site=cells.get("site", ""),
        mpp=mpp,
        mpp_policy=policy,
        series=cells.get("series", ""),
    )


def match(rows: list[Row], images: Iterable[str], plain: Iterable[str] = ()) -> Cohort:
    """Give each row its image.

    Args:
        rows: of the table of labels.
        images: paths below the raw folder, with forward slashes.
        plain: paths of pictures that may be slides. They answer to their full path alone: a preview 1.jpg beside a
            slide 1.svs must not make `1` mean two images.

    Raises:
        CohortError: two rows name one image, or one row may mean several.
    """
    by_path = {path: path for path in images}
    by_form = {unicodedata.normalize("NFC", path): path for path in by_path}
    by_short: dict[str, list[str]] = defaultdict(list)
    by_stem: dict[str, list[str]] = defaultdict(list)
    for path in by_path:
        pure = PurePosixPath(path)
        # Only what an image's file ends in is a suffix: a series' folder may be called 1.2.840.4 beside 1.2.840.
        short = pure.with_suffix("") if pure.suffix.lower() in FILE_SUFFIXES else pure
        by_short[unicodedata.normalize("NFC", str(short))].append(path)
        for name in {short.name, pure.name}:
            by_stem[unicodedata.normalize("NFC", name)].append(path)
    by_path.update({path: path for path in plain})

    found: dict[str, Row] = {}
    unseen: dict[str, Row] = {}
    missing: list[Row] = []
    for row in rows:
        called = unicodedata.normalize("NFC", row.image)  # a Mac writes the letter and its dots apart
        exact = row.image if row.image in by_path else by_form.get(called)
        paths = [exact] if exact else by_short.get(called, [])
        if row.by_stem and not paths:
            paths = by_stem.get(called, [])
        if not paths and (name := _of_slide(called)):  # features, labelled by the slide they were made of
            found_by = by_stem if row.by_stem else by_short
            paths = [path for path in found_by.get(name, []) if path.lower().endswith(FEATURE_SUFFIXES)]
        if len(paths) > 1:
            raise CohortError(
                f"labels line {row.number}: `image` may mean {len(paths)} different images: write the path below "
                "the raw folder with its suffix"
            )
        first = found.get(paths[0]) if paths else unseen.get(row.image)
        if first:
            raise CohortError(f"labels lines {first.number} and {row.number}: name the same image: remove one of them")
        if paths:
            found[paths[0]] = row
        else:
            unseen[row.image] = row
            missing.append(row)
    return Cohort(found, missing)


def _of_slide(image: str) -> str:
    """The name of a slide without its suffix; empty when it has none."""
    pure = PurePosixPath(image)
    return str(pure.with_suffix("")) if pure.suffix.lower() in SLIDE_SUFFIXES else ""


def lacks_mpp(row: Row | None, settings: SlideSettings) -> str:
    """Why a picture is no slide: its file states no resolution, and nobody else does; empty: somebody does."""
    policy = (row.mpp_policy if row else "") or settings.mpp_policy
    if (row and row.mpp) or (policy != "require" and settings.native_mpp):
        return ""
    return "is a plain image and nobody states its mpp: give it one in the `mpp` column of labels.csv"


def bag_name(image: str, row: Row | None, unit: str) -> str:
    """The bag that an image belongs to: itself, or its case or patient where its row names one."""
    if row is None or unit == "image":
        return image
    return row.patient if unit == "patient" else (row.case or image)


def class_names(labelled: dict[str, Row], config: Config, kind: str) -> tuple[str, ...]:
    """The classes of one modality, in the order of the logits.

    Args:
        labelled: rows with a label and without an exclusion, by image.
        config: `classes`, `bag` and `split.folds` of it.
        kind: how to call the images in a message.

    Raises:
        CohortError: a label that is not in `classes`, fewer than two classes, one bag with two labels, or a class with
            fewer patients than folds.
    """
    rows = labelled.values()
    labels = sorted({row.label for row in rows})
    for row in rows:
        if config.classes and row.label not in config.classes:
            raise CohortError(
                f"labels line {row.number}: label {row.label!r} is not one of `classes` ({', '.join(config.classes)}): "
                "correct the label or the setting"
            )
    if len(labels) == 1:
        raise CohortError(f"labels: every labelled {kind} is {labels[0]!r}: learning needs at least two classes")
    bags: dict[str, Row] = {}
    for image, row in labelled.items():
        first = bags.setdefault(bag_name(image, row, config.bag), row)
        if first.label != row.label:
            raise CohortError(
                f"labels lines {first.number} and {row.number}: one {config.bag} has the labels {first.label!r} and "
                f"{row.label!r}: correct one, or choose a smaller `bag`"
            )
    for label in labels:
        patients = {row.patient for row in rows if row.label == label}
        if len(patients) < config.split.folds:
            raise CohortError(
                f"labels: class {label!r} has {len(patients)} patients among the labelled {kind}, fewer than the "
                f"{config.split.folds} folds: label more, or lower split.folds"
            )
    return tuple(label for label in config.classes if label in labels) or tuple(labels)


def mixed_patients(rows: Iterable[Row]) -> int:
    """How many patients have images with different labels; they are allowed and stay in one fold."""
    labels = {(row.patient, row.label) for row in rows if row.label}
    return sum(count > 1 for count in Counter(patient for patient, _ in labels).values())
