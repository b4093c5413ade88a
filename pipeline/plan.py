"""The plan: which jobs an experiment has, and for each a slice that says all it needs to know.

A job is `<stage>/<name>.<digest>`. Its slice is results/plan/<stage>/<name>.<digest>.json, its one output is
results/receipts/<stage>/<name>.<digest>.json. The digest covers the slice: images and their identities, settings, the
stage's version, and through the upstream receipts' names everything before it. So a receipt that is missing is work to
do, whatever anybody remembers; a slice never changes, and building the plan twice, or during a run, harms nothing.

Standard library and pydantic only: this runs in Snakemake's own process at every start.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.cohort import Cohort, Row, bag_name, class_names, lacks_mpp, match, mixed_patients, read_labels
from pipeline.config import Config
from pipeline.errors import CohortError
from pipeline.feature_scan import find_images
from pipeline.image_settings import BackboneSettings, SeriesSettings, SlideSettings
from pipeline.model_presets import overlap
from pipeline.names import Names
from pipeline.raw import KINDS, Ignored, Kind, RawImage
from pipeline.store import digest, read_json, write_json
from pipeline.versions import VERSIONS

RESULTS = Path("results")
"""Below the working directory, always: a name of an image can not lead out of it."""

FAMILIES = ("labelled", "unlabelled")

ADOPTED = frozenset(("features", "features_of"))
"""Settings that decide nothing where images are read."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job: what it is called and what its slice says."""

    stage: str
    name: str
    slice: dict[str, Any]
    key: str = field(init=False)
    """The job's name with its digest."""

    def __post_init__(self) -> None:
        # Once and not whenever it is asked for: a slice can hold the whole cohort, and each job asks those before it.
        object.__setattr__(self, "key", f"{self.name}.{digest(self.slice, 12)}")

    @property
    def receipt(self) -> str:
        """Path of the file that says that the job is done."""
        return str(RESULTS / "receipts" / self.stage / f"{self.key}.json")

    @property
    def slice_path(self) -> Path:
        """Path of the file that says what the job is."""
        return RESULTS / "plan" / self.stage / f"{self.key}.json"


@dataclass(slots=True)
class Plan:
    """What an experiment consists of at this moment."""

    jobs: list[Job] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    images: dict[Kind, list[RawImage]] = field(default_factory=dict)
    """That will be embedded: without the excluded and the waiting ones."""
    cohort: Cohort = field(default_factory=lambda: Cohort({}, []))
    waiting: list[tuple[RawImage, str]] = field(default_factory=list)
    """With the reason, which names no file when names are hidden."""
    excluded: list[RawImage] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    classes: dict[Kind, tuple[str, ...]] = field(default_factory=dict)
    """Of the modalities that have labels."""

    def add(self, stage: str, name: str, settings: object, upstream: Iterable[Job] = (), **more: object) -> Job:
        """Add a job; `settings`, `more` and the receipts of the jobs it waits for are what its slice says."""
        receipts = sorted(job.receipt for job in upstream)
        content = {"stage": stage, "name": name, "version": VERSIONS[stage], "settings": settings, "upstream": receipts}
        job = Job(stage, name, {**content, **more})
        self.jobs.append(job)
        return job

    def write(self) -> None:
        """Write the slices that are not there yet."""
        for job in self.jobs:
            if not job.slice_path.exists():
                write_json(job.slice_path, job.slice)

    def warnings(self, config: Config, kind: Kind) -> list[str]:
        """What to know of one modality before its figures are believed; names no image and no patient."""
        rows, section = self.cohort.rows, config.modality(kind)
        names = [f"{i.path} {rows[i.path].patient if i.path in rows else ''}" for i in self.images[kind]]
        found = "" if section.features else overlap(section.backbone.preset, names)
        return [found] if found else []

    def labelled(self, kind: Kind) -> dict[str, Row]:
        """Rows of the images of one modality that can train, by the image's path."""
        rows = self.cohort.rows
        return {i.path: rows[i.path] for i in self.images[kind] if i.path in rows and rows[i.path].label}


def build(config: Config) -> Plan:
    """The plan of an experiment, for the raw folder and the labels as they are now.

    Raises:
        CohortError: the labels cannot be right; before any job.
    """
    plan, names = Plan(), Names.of(config)
    found, plan.ignored = find_images(config)
    plain = [image.path for image in found if image.plain]
    plan.cohort = match(read_labels(Path(config.labels)), [image.path for image in found if not image.plain], plain)
    rows = plan.cohort.rows
    reasons = {path: lacks_mpp(rows.get(path), config.slide) for path in plain}
    found = [image for image in found if not reasons.get(image.path)]
    plan.ignored += [Ignored(path, reason) for path, reason in reasons.items() if reason]
    if plan.cohort.missing and found and not rows:
        first = plan.cohort.missing[0]
        raise CohortError(
            f"{config.labels}: none of its {len(plan.cohort.missing)} rows names one of the {len(found)} images that "
            f"are there (line {first.number} says {names.free_text(first.image)}, an image is called "
            f"{names.free_text(found[0].path)}): write paths below the folder of images"
        )
    if config.strict and plan.cohort.missing:
        numbers = ", ".join(str(row.number) for row in plan.cohort.missing[:10])
        raise CohortError(
            f"{config.labels}: {len(plan.cohort.missing)} rows name images that are not below {config.raw} "
            f"(lines {numbers}{', ...' if len(plan.cohort.missing) > 10 else ''}): bring them, or set strict: false"
        )
    embeds: dict[tuple[Kind, str], list[Job]] = {}
    for kind in KINDS:
        here = [image for image in found if image.kind == kind]
        plan.excluded += [i for i in here if i.path in rows and rows[i.path].exclude]
        here = [i for i in here if not (i.path in rows and rows[i.path].exclude)]
        waits = [(image, image.waits(time.time(), config.settle_seconds, hidden=bool(names.key))) for image in here]
        plan.waiting += [(image, reason) for image, reason in waits if reason]
        plan.images[kind] = here = [image for image, reason in waits if not reason]
        labelled = plan.labelled(kind)
        if labelled:
            plan.classes[kind] = class_names(labelled, config, kind)
        for family in FAMILIES:
            members = [i for i in here if (i.path in labelled) == (family == "labelled")]
            embeds[kind, family] = _add_images(plan, config, names, kind, family, members)

    shown: list[Job] = []
    for kind in plan.classes:
        shown += _add_learning(plan, config, names, kind, embeds[kind, "labelled"], embeds[kind, "unlabelled"])
    _add_tables(plan, config, names, [job for jobs in embeds.values() for job in jobs], shown)
    return plan


def _add_images(plan: Plan, config: Config, names: Names, kind: Kind, family: str, images: list[RawImage]) -> list[Job]:
    """Add the tile and embed jobs of one family of shards, or the adopt jobs; those that give the embeddings."""
    if not images:
        return []
    section = config.modality(kind)
    shards = _shard_count(f"{kind}-{family}", len(images), section.images_per_shard)
    members: dict[int, list[dict[str, Any]]] = defaultdict(list)
    whose: dict[int, list[RawImage]] = defaultdict(list)
    for image in images:
        row = plan.cohort.rows.get(image.path)
        name = names.image(image)
        entry: dict[str, Any] = {"id": name, "kind": kind, "identity": image.identity}
        if row and not section.features:
            series = digest(row.series, 16) if row.series else ""
            stated = {"mpp": row.mpp, "mpp_policy": row.mpp_policy, "series": series}
            entry["stated"] = {name: value for name, value in stated.items() if value}
        if image.files not in ((), (image.path,)):
            entry["files"] = names.files(image)
        shard = int(sha256(name.encode()).hexdigest(), 16) % shards
        members[shard].append(entry)
        whose[shard].append(image)
    private = config.private if config.ids == "hashed" else ""
    common: dict[str, Any] = {"raw": section.features or config.raw, "private": private}
    jobs = []
    for shard, entries in sorted(members.items()):
        shard_name = f"{kind}-{family}-{shard:04d}of{shards:04d}"
        if section.features:
            of = {"features_of": section.features_of}
            adopt = plan.add("adopt", shard_name, of, images=entries, **common)
            names.keep(adopt, images=whose[shard])
            jobs.append(adopt)
            continue
        tile = plan.add("tile", shard_name, tile_settings(config, kind), images=entries, **common)
        before = [tile, *_weights(plan, section.backbone)]
        embed = plan.add("embed", shard_name, embed_settings(section), before, images=entries, **common)
        names.keep(tile, embed, images=whose[shard])
        jobs.append(embed)
    return jobs


def _weights(plan: Plan, backbone: BackboneSettings) -> list[Job]:
    """The job that fetches the weights of a backbone, if it takes them from the hub; one for all that take the same."""
    if backbone.weights != "hub":
        return []
    settings = backbone.model_dump(mode="json", include={"preset", "model", "revision", "output"})
    known = [job for job in plan.jobs if job.stage == "weights" and job.slice["settings"] == settings]
    return known or [plan.add("weights", "hub", settings)]


def tile_settings(config: Config, kind: Kind) -> dict[str, Any]:
    """What decides a tile store: the section without what `embed` alone reads, and what a segmenter's file is now."""
    later = {"backbone", "images_per_shard", "windows", "channels", "max_unreadable", *ADOPTED}
    settings = config.modality(kind).model_dump(mode="json", exclude=later)
    if kind == "slide":
        settings["content_hash"] = config.content_hash
        if config.slide.tissue.method == "model":
            settings["model_file"] = _file_now(config.slide.tissue.model)
    return settings


def embed_settings(section: SlideSettings | SeriesSettings) -> dict[str, Any]:
    """What decides an embedding store, beside the tile store: the whole section, and what the weights file is now."""
    settings = section.model_dump(mode="json", exclude={"images_per_shard", *ADOPTED})
    if section.backbone.weights == "file":
        settings["weights_file"] = _file_now(section.backbone.file)
    return settings


def _file_now(name: str) -> list[int] | None:
    """Size and modification time of a file, so that another one in its place is noticed; None when it is not there."""
    found = Path(name).stat() if Path(name).exists() else None
    return [found.st_size, found.st_mtime_ns] if found else None


def _shard_count(family: str, images: int, per_shard: int) -> int:
    """The smallest power of two that keeps shards near their size; recorded, so that it only ever doubles.

    The record is written here and read here alone; no job reads it.
    """
    path = RESULTS / "plan" / "shards.json"
    recorded: dict[str, int] = read_json(path) if path.exists() else {}
    shards = recorded.get(family, 1)
    while shards * per_shard < images:
        shards *= 2
    if recorded.get(family) != shards:
        write_json(path, {**recorded, family: shards})
    return shards


def _add_learning(
    plan: Plan, config: Config, names: Names, kind: Kind, embeds: list[Job], unlabelled: list[Job]
) -> list[Job]:
    """Add the jobs from the gate to the figures of one modality; those that the report shows."""
    rows = plan.labelled(kind)
    classes = plan.classes[kind]
    cohort = {
        names.by_path(path, kind): {
            "bag": names.bag(bag_name(path, row, config.bag), config.bag, path, kind),
            "patient": names.patient(row.patient),
            "label": classes.index(row.label),
        }
        for path, row in rows.items()
    }
    gate = plan.add("gate", kind, {"max_failed": config.max_failed}, embeds, cohort=cohort, classes=classes)
    split = plan.add("split", kind, config.split.model_dump(mode="json"), [gate])
    others = {
        names.by_path(image.path, kind): {
            "bag": names.bag(bag_name(image.path, row, config.bag), config.bag, image.path, kind),
            "patient": names.patient(row.patient) if row else "",
        }
        for image in plan.images[kind]
        if image.path not in rows
        for row in [plan.cohort.rows.get(image.path)]
    }
    shown: list[Job] = []
    predictions: list[Job] = []
    pictures = 0 if config.modality(kind).features else config.explain.images  # of features nobody has the pixels
    for name, head in config.heads.items():
        settings = {
            "head": head.model_dump(mode="json"),
            "training": config.training.model_dump(mode="json", exclude={"seeds"}),
        }
        trained = [
            plan.add("train", f"{kind}-{name}-fold{fold}-seed{seed}", settings, [gate, split], fold=fold, seed=seed)
            for fold in range(config.split.folds)
            for seed in config.training.seeds
        ]
        shows = {"images": pictures}
        test = plan.add("predict", f"{kind}-{name}-test", shows, [gate, split, *trained], head=name)
        predictions.append(test)
        if pictures:
            unread = {"images_per_shard", "backbone", *ADOPTED}
            explain_settings = config.modality(kind).model_dump(mode="json", exclude=unread)
            shown.append(plan.add("explain", f"{kind}-{name}", explain_settings, [gate, test], head=name))
        if unlabelled:
            inputs = [gate, *trained, *unlabelled]
            shown.append(
                plan.add("predict", f"{kind}-{name}-unlabelled", {"images": 0}, inputs, head=name, cohort=others)
            )
    settings = config.evaluation.model_dump(mode="json")
    return [*shown, gate, split, plan.add("evaluate", kind, settings, predictions)]


def _add_tables(plan: Plan, config: Config, names: Names, embeds: list[Job], shown: list[Job]) -> None:
    """Add what a user opens: the catalog and the report. They are the targets."""
    rows = plan.cohort.rows
    listed = {
        "missing": [names.missing(row) for row in plan.cohort.missing],
        "excluded": [[names.image(i), i.kind, names.free_text(rows[i.path].exclude)] for i in plan.excluded],
        "waiting": [[names.image(image), image.kind, reason] for image, reason in plan.waiting],
        "ignored": [[names.free_text(item.path), item.reason] for item in plan.ignored],
    }
    labels = {names.by_path(i.path, k): rows[i.path].label for k in KINDS for i in plan.images[k] if i.path in rows}
    sites = {names.by_path(i.path, k): rows[i.path].site for k in KINDS for i in plan.images[k] if i.path in rows}
    plan.targets.append(_published(plan, "catalog", {}, embeds, listed=listed, labels=labels, sites=sites))
    settings = config.model_dump(mode="json", exclude={"raw", "labels", "private"})
    for (
        kind
    ) in KINDS:  # the path of a folder is nobody's business, and where features are read the rest decides nothing
        settings[kind].pop("features")
        if config.modality(kind).features:
            settings[kind] = {"features_of": settings[kind]["features_of"]}
    cohort = {
        kind: {
            "adopted": bool(config.modality(kind).features),
            "warnings": plan.warnings(config, kind),
            "classes": plan.classes.get(kind, ()),
            "patients": len({row.patient for row in plan.labelled(kind).values()}),
            "mixed_patients": mixed_patients(plan.labelled(kind).values()),
            "images": len(plan.images[kind]),
        }
        for kind in KINDS
    }
    plan.targets.append(
        _published(plan, "report", settings, [*embeds, *shown], listed=listed, labels=labels, cohort=cohort)
    )


def _published(plan: Plan, stage: str, settings: object, upstream: list[Job], **more: object) -> str:
    """Add a job whose result is also copied to a fixed name, results/catalog.tsv say; its receipt.

    The copy stands for the last plan that was run. When settings go from A to B and back, the receipt of A is there and
    the copy is B's: so the job's name carries a serial number, which goes up whenever another plan is published.
    """
    core = digest([stage, settings, sorted(job.receipt for job in upstream), more], 12)
    marker = RESULTS / "published" / f"{stage}.json"
    last: dict[str, Any] = read_json(marker) if marker.exists() else {"serial": 0, "core": "", "files": []}
    current = last["core"] == core and all((RESULTS / name).exists() for name in last["files"])
    serial = last["serial"] if current else last["serial"] + 1
    return plan.add(stage, "all", settings, upstream, serial=serial, core=core, **more).receipt
