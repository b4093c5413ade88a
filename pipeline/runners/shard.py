"""Runs `tile` over the images of a shard."""

import argparse
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.image_settings import SeriesSettings, SlideSettings
from pipeline.runners.job import RESULTS, Job
from pipeline.runners.raw_images import RawImages
from pipeline.shards import Beat, Row, Shard, Work, map_shard, one_by_one
from pipeline.store import Store, digest, file_digest, write_bytes, write_store


def run_tile(arguments: argparse.Namespace) -> None:
    """Tile the images of a shard: for each a store with origins, and a slide's thumbnail or a series' HU volume."""
    job = Job.of(arguments)
    settings = {name: value for name, value in job.slice["settings"].items() if name != "model_file"}
    full_hash = settings.pop("content_hash", "full") == "full"
    model = segmenter_name(job.slice["settings"])
    folder = RESULTS / "tile" / digest([job.slice["version"], settings, full_hash, model], 8)
    images = [{**image, "made_of": [image["identity"], image.get("stated")]} for image in job.slice["images"]]
    raw_images = RawImages(job)

    def start(beat: Beat) -> Work:
        import numpy as np

        from pipeline.images import Image, Stated, open_image, refuse_early
        from pipeline.images.content import content_hash
        from pipeline.qc import slide_picture
        from pipeline.tiling import Tiles, tile

        def work(entry: dict[str, Any], beat: Beat) -> Row:
            modality = modality_settings(entry["kind"], settings)
            raw_images.check_unchanged(entry)
            with raw_images.opened(entry) as (path, files):
                refuse_early(files, modality)
                content = content_hash(path, files, entry["kind"], full_hash)
                stated = entry.get("stated", {})
                key = digest([content, folder.name, stated])
                store = folder / entry["id"] / f"{key[:8]}.zarr"
                if store.exists():
                    return done_row(store, Store(store, key).attributes)
                image = open_image(path, modality, Stated(**stated))
                beat(0, 1)
                tiles = tile(image, job.threads, beat)
                arrays = {"origins": tiles.origins, **image.arrays()}
            raw_images.check_unchanged(entry)
            attributes = {
                "key": key,
                "content": content,
                "settings": job.slice["settings"],
                "version": job.slice["version"],
                "instances": len(tiles.origins),
                "size": list(tiles.size),
                "extent": [int(side) for side in image.extent],
                "properties": image.properties,
                "removed": tiles.removed,
            }
            if "outline" in arrays:  # a slide: where its tiles lie is worth a look, and worth most when there are none
                arrays["reasons"] = tiles.reasons
                attributes["picture"] = str(store.with_suffix(".png"))
                write_bytes(store.with_suffix(".png"), draw(tiles, arrays, image))
            if tiles.empty:
                return {"status": "empty", "reason": tiles.empty, **facts(attributes)}
            write_store(store, {name: np.asarray(values) for name, values in arrays.items()}, attributes)
            return done_row(store, attributes)

        def draw(tiles: Tiles, arrays: dict[str, Any], image: Image) -> bytes:
            around, mpp = image.properties["outline_extent"], image.properties["mpp"]
            shown, outline = arrays["thumbnail"], arrays["outline"]
            return slide_picture(shown, image.extent, tiles.grid, tiles.size, tiles.reasons, outline, around, mpp)

        return one_by_one(work)

    job.finish(rows=map_shard(Shard("tile", folder, images), start, job.limits))


def segmenter_name(settings: dict[str, Any]) -> str:
    """What tells the network of `tissue.method: model` apart, its file's sha256; empty for the other methods.

    Raises:
        ConfigError: the file is not there.
    """
    tissue = settings.get("tissue", {})
    if tissue.get("method") != "model":
        return ""
    return _content_name(tissue["model"], "slide.tissue.model", "network")


def _content_name(name: str, key: str, what: str) -> str:
    """`sha256 ...` of a file that a setting names."""
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not there: name the file that holds the {what}")
    return f"sha256 {file_digest(path)}"


def modality_settings(kind: str, section: dict[str, Any]) -> SlideSettings | SeriesSettings:
    """The settings of one modality from a slice; what the stage does not read has its default."""
    return SlideSettings.model_validate(section) if kind == "slide" else SeriesSettings.model_validate(section)


def done_row(store: Path, attributes: dict[str, Any]) -> Row:
    """What a receipt says of a finished store."""
    row = {"store": str(store), "key": attributes["key"], "instances": attributes["instances"]}
    row.update({name: attributes[name] for name in ("device", "unreadable", "features", "times") if name in attributes})
    return {**row, **facts(attributes)}


def facts(attributes: dict[str, Any]) -> Row:
    """What `tile` found out about an image and the catalog says: `FACTS` of pipeline/runners/embed.py."""
    properties = attributes.get("properties", {})
    found = {name: properties[name] for name in ("mpp", "mpp_source", "qc") if name in properties}
    found.update({name: attributes[name] for name in ("removed", "picture") if attributes.get(name)})
    if properties.get("notes"):
        found["notes"] = "; ".join(properties["notes"])
    return found
