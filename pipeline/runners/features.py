"""Runs `adopt`, `import` and `export`: embeddings that exist already come in, and ours go out."""

import argparse
import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, ImageError, PipelineError, one_line
from pipeline.feature_scan import identity_now, scan_features, without_suffix
from pipeline.names import raw_path, read_private_table
from pipeline.raw import DICOM_SUFFIXES, SLIDE_SUFFIXES
from pipeline.runners.job import LAST, RESULTS, Job
from pipeline.runners.shard import done_row
from pipeline.runners.tables import read_catalog, table
from pipeline.shards import Beat, Entry, Row, Shard, Work, map_shard, one_by_one
from pipeline.store import Store, digest, read_json, write_bytes, write_store
from pipeline.versions import VERSIONS

IMPORT_COLUMNS = ("image", "status", "reason", "instances", "features", "notes")


def run_adopt(arguments: argparse.Namespace) -> None:
    """Make an embedding store of each image of a shard, from files that hold its embeddings."""
    job = Job.of(arguments)
    folder = RESULTS / "adopt" / digest([job.slice["version"], job.slice["settings"]], 8)
    source = Path(job.slice["raw"])
    private = read_private_table(job.slice["private"], job.stage, job.slice_path.stem)
    images = [{**image, "made_of": [image["identity"]]} for image in job.slice["images"]]

    def start(beat: Beat) -> Work:
        from pipeline.feature_files import content

        def work(entry: Entry, beat: Beat) -> Row:
            _, names = raw_path(source, entry, private)
            files = [source / name for name in names]

            def check_unchanged() -> None:
                if identity_now(source, names) != entry["identity"]:
                    raise ImageError("its files changed while the run was going: the next run reads them as they are")

            check_unchanged()
            found = content(files)
            key = digest([found, folder.name])
            store = folder / entry["id"] / f"{key[:8]}.zarr"
            if store.exists():
                return done_row(store, Store(store, key).attributes)
            beat(0, 1)
            attributes = {"key": key, "sha256": found, "settings": job.slice["settings"]}
            full = _adopt(files, store, attributes, check_unchanged)
            return done_row(store, full)

        return one_by_one(work)

    job.finish(rows=map_shard(Shard("adopt", folder, images), start, job.limits))


def _adopt(
    files: list[Path], store: Path, attributes: dict[str, Any], check: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Write the embedding store of one image; its attributes.

    Raises:
        ImageError: the files cannot be used.
    """
    import numpy as np

    from pipeline.feature_files import read_features, read_folder

    found = read_features(files[0]) if len(files) == 1 else read_folder(files)
    if check:
        check()
    instances, features = found.embeddings.shape
    # Where no file says where tiles lie, the numbers of the rows stand in, which nobody takes for a place: one axis.
    origins = np.arange(instances, dtype=np.int32)[:, None] if found.origins is None else found.origins
    full = {
        **attributes,
        "version": VERSIONS["adopt"],
        "instances": instances,
        "features": features,
        "source_format": ", ".join(sorted({file.suffix.lower() for file in files})),
        "origins_unit": found.origins_unit,
        "size": list(found.size),
        "rows_of_files": list(found.rows),
        "properties": {"notes": list(found.notes)},
    }
    arrays = {"embeddings": found.embeddings, "origins": origins, "status": np.zeros(instances, np.uint8)}
    write_store(store, arrays, full)
    return full


def run_import(arguments: argparse.Namespace) -> None:
    """Turn every feature file below SOURCE into an embedding store below DEST; prints a line per image.

    Raises:
        PipelineError: no image could be read, or the folders cannot be used like this.
    """
    from pipeline.feature_files import content

    source, dest = Path(arguments.source), Path(arguments.dest)
    _check_dest(dest)
    if dest.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{dest}: lies in {source}, where its stores would be read again: name a folder elsewhere")
    try:
        images, ignored = scan_features(source, "slide", arguments.of)
    except ConfigError:
        raise ConfigError(f"{source}: is no folder: name the one that holds the feature files") from None
    rows: list[Row] = []
    for image in images:
        row: Row = {"image": image.path, "status": "done", "reason": ""}
        files = [source / name for name in image.files]
        store = dest / f"{without_suffix(image.path)}.zarr"
        try:
            sha256 = content(files)
            key = digest([sha256, VERSIONS["adopt"]])
            row |= _imported(files, store, {"key": key, "sha256": sha256, "settings": {"features_of": arguments.of}})
        except PipelineError as error:
            row |= {"status": "failed", "reason": one_line(error)}
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            row |= {"status": "failed", "reason": "its name is too long for a folder in DEST: rename it"}
        rows.append(row)
        said = row["reason"] or f"{row['instances']} × {row['features']}"
        print("; ".join([f"{row['status']}: {image.path}: {said}", *filter(None, [row.get("notes", "")])]))
    rows += [{"image": item.path, "status": "ignored", "reason": item.reason} for item in ignored]
    write_bytes(dest / "import.tsv", table(IMPORT_COLUMNS, rows, "\t"))
    count = Counter(row["status"] for row in rows)
    print(", ".join(f"{number} {status}" for status, number in sorted(count.items())) or "no feature file is there")
    if not count["done"]:
        raise PipelineError(f"{source}: none of its {len(images)} images could be read: see {dest / 'import.tsv'}")


def _check_dest(dest: Path) -> None:
    """Refuse to write into a file, or among the results, where `gc` removes what it does not know."""
    if dest.exists() and not dest.is_dir():
        raise ConfigError(f"{dest}: is a file: name a folder to write into")
    if dest.resolve().is_relative_to(RESULTS.resolve()):
        raise ConfigError(f"{dest}: lies in {RESULTS}, which holds what runs made: name a folder elsewhere")


def _imported(files: list[Path], store: Path, attributes: dict[str, Any]) -> Row:
    """Make one store, or find it made before, and say what it holds.

    Raises:
        PipelineError: the files cannot be used, or another store has the name.
    """
    if not store.exists():
        return _said(_adopt(files, store, attributes))
    try:
        return _said(Store(store, attributes["key"]).attributes)
    except PipelineError:
        raise ImageError(
            "another store has its name in DEST, and stays: move that away, or choose another DEST"
        ) from None


def _said(attributes: dict[str, Any]) -> Row:
    notes = "; ".join(attributes["properties"]["notes"])
    return {"instances": attributes["instances"], "features": attributes["features"], "notes": notes}


def run_export(arguments: argparse.Namespace) -> None:
    """Write the embeddings of all done images of the last run below DEST, each as one file.

    Raises:
        PipelineError: an image that was named has no embeddings, or some could not be written.
    """
    from pipeline.feature_export import export_path, read_export, write_export

    _check_dest(Path(arguments.dest))
    stores = {row["image"]: row["store"] for row in read_catalog() if row["status"] == "done"}
    if unknown := [image for image in arguments.images if image not in stores]:
        raise PipelineError(f"{unknown[0]}: has no embeddings: see results/catalog.tsv for the images that have")
    wanted = sorted(set(arguments.images)) or sorted(stores)
    keys = _keys()
    short = Counter(_short(image) for image in stores)
    count: Counter[str] = Counter()
    for image in wanted:
        alone = short[_short(image)] == 1 and (_short(image) == image or _short(image) not in stores)
        name = _short(image) if alone else image  # of 1.svs and 1.tiff each keeps its suffix
        try:
            path = export_path(Path(arguments.dest), name, f".{arguments.format}")
            if path.exists() or path.is_symlink():
                count["there already"] += 1
                print(f"there already: {image}: {path} is not overwritten")
                continue
            if stores[image] not in keys:  # after `retry`, say
                raise PipelineError("the receipt of its shard is gone: run snakemake again")
            found = read_export(Store(Path(stores[image]), keys[stores[image]]))
            write_export(path, found)
        except PipelineError as error:
            count["failed"] += 1
            print(f"failed: {image}: {one_line(error)}")
            continue
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            count["failed"] += 1
            print(f"failed: {image}: its name is too long for a file: choose a format with a shorter suffix")
            continue
        count["written"] += 1
        where = (
            "no coordinates"
            if found.origins is None or path.suffix == ".pt"
            else f"coordinates in {found.unit or 'an unknown unit'}"
        )
        print(f"written: {image}: {' × '.join(str(side) for side in found.embeddings.shape)}, {where}: {path}")
    print(", ".join(f"{number} {what}" for what, number in sorted(count.items())) or "no image is done")
    if count["failed"]:
        raise PipelineError(f"export: {count['failed']} of {len(wanted)} images were not written: see above")


def _keys() -> dict[str, str]:
    """The keys of all stores of embeddings, by their paths."""
    receipts = [path for stage in LAST for path in (RESULTS / "receipts" / stage).glob("*.json")]
    rows = [row for path in receipts for row in read_json(path)["rows"]]
    return {row["store"]: row["key"] for row in rows if row["status"] == "done"}


def _short(image: str) -> str:
    """The id of an image without the suffix of its file; the folder of a series has none."""
    suffix = Path(image).suffix
    return image.removesuffix(suffix) if suffix.lower() in SLIDE_SUFFIXES | DICOM_SUFFIXES else without_suffix(image)
