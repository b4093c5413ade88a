"""Runs `tile` and `embed` over the images of a shard."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, ImageError
from pipeline.image_settings import BackboneSettings, SeriesSettings, SlideSettings
from pipeline.runners.job import RESULTS, Job
from pipeline.runners.raw_images import RawImages
from pipeline.shards import Beat, Row, Shard, Work, map_shard
from pipeline.store import Store, digest, file_digest, write_bytes, write_store

FACTS = ("mpp", "mpp_source", "notes", "removed", "picture", "qc")
"""What `tile` found out about an image and the catalog says."""


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
                    return _row(store, Store(store, key).attributes)
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
                return {"status": "empty", "reason": tiles.empty, **_facts(attributes)}
            write_store(store, {name: np.asarray(values) for name, values in arrays.items()}, attributes)
            return _row(store, attributes)

        def draw(tiles: Tiles, arrays: dict[str, Any], image: Image) -> bytes:
            around, mpp = image.properties["outline_extent"], image.properties["mpp"]
            shown, outline = arrays["thumbnail"], arrays["outline"]
            return slide_picture(shown, image.extent, tiles.grid, tiles.size, tiles.reasons, outline, around, mpp)

        return work

    job.finish(rows=map_shard(Shard("tile", folder, images), start, job.limits))


def run_embed(arguments: argparse.Namespace) -> None:
    """Embed the tiles of a shard's images: for each a store with embeddings, origins and read status."""
    job = Job.of(arguments)
    settings = {name: value for name, value in job.slice["settings"].items() if name != "weights_file"}
    backbone_settings = BackboneSettings.model_validate(settings["backbone"])
    weights = weights_name(backbone_settings)
    folder = RESULTS / "embed" / digest([job.slice["version"], settings, weights], 8)
    tiled = {row["id"]: row for row in job.upstream_rows("tile")}
    ready = [image for image in job.slice["images"] if tiled[image["id"]]["status"] == "done"]
    images = [{**image, "made_of": [tiled[image["id"]]["key"]]} for image in ready]
    raw_images = RawImages(job)

    def start(beat: Beat) -> Work:
        import numpy as np
        import timm
        import torch

        from pipeline.backbone import choose_device, load_backbone, lock_gpu
        from pipeline.contact_sheet import contact_sheet
        from pipeline.embedding import embed
        from pipeline.images import Stated, reopen_image

        torch.set_num_threads(job.threads)
        device = choose_device(job.device)
        lock = None
        if device.type == "cuda":
            index, lock = lock_gpu(torch.cuda.device_count(), waiting=lambda: beat(0, 0))
            device = torch.device("cuda", index)
        backbone = load_backbone(backbone_settings, device)
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

        def work(entry: dict[str, Any], beat: Beat) -> Row:
            assert lock is None or not lock.closed  # the GPU stays ours as long as this function lives
            row = tiled[entry["id"]]
            key = digest([row["key"], folder.name])
            store = folder / entry["id"] / f"{key[:8]}.zarr"
            if store.exists():
                return _row(store, Store(store, key).attributes)
            source = Store(Path(row["store"]), row["key"])
            origins, size = source.read("origins"), tuple(source.attributes["size"])
            arrays = {"hu": source.read("hu")} if entry["kind"] == "series" else {}
            modality = modality_settings(entry["kind"], settings)
            embeddings, status, done = [], [], 0
            with contextlib.ExitStack() as stack:
                path = Path()
                if not arrays:  # a slide: its pixels are in the raw file alone
                    raw_images.check_unchanged(entry)
                    path, _ = stack.enter_context(raw_images.opened(entry))
                stated = Stated(**entry.get("stated", {}))
                image = reopen_image(path, modality, arrays, source.attributes["properties"], stated)
                for batch, read in embed(image, origins, size, backbone, modality.max_unreadable, job.threads):
                    embeddings.append(batch)
                    status.append(read)
                    done += len(read)
                    beat(done, len(origins))
            read_ok = np.concatenate(status)
            values = np.concatenate([batch for batch in embeddings if len(batch)] or [np.zeros((0, 0), np.float16)])
            if not len(values):
                raise ImageError(f"none of its {len(origins)} tiles can be read: is the file whole?")
            attributes = {
                "key": key,
                "tile_key": row["key"],
                "settings": settings,
                "weights": weights,
                "version": job.slice["version"],
                "versions": {"torch": torch.__version__, "timm": timm.__version__},
                "device": place,
                "instances": len(values),
                "features": values.shape[1],
                "unreadable": int((read_ok != 0).sum()),
                "tile_store": row["store"],
                **image.reading(),
            }
            if arrays:  # a series: what the backbone was shown of it is worth a look
                attributes["picture"] = str(store.with_suffix(".jpg"))
                write_bytes(store.with_suffix(".jpg"), contact_sheet(image, image.channels))
            readable = origins[read_ok == 0]
            write_store(store, {"embeddings": values, "origins": readable, "status": read_ok}, attributes)
            return _row(store, attributes)

        return work

    rows = {row["id"]: row for row in map_shard(Shard("embed", folder, images), start, job.limits)}
    for name, row in rows.items():
        row.update({fact: tiled[name][fact] for fact in FACTS if fact in tiled[name]})
    job.finish(rows=[rows.get(image["id"], tiled[image["id"]]) for image in job.slice["images"]], weights=weights)


def weights_name(settings: BackboneSettings) -> str:
    """What tells the weights of a backbone apart: a file's sha256, a pinned revision, or a seed.

    Raises:
        ConfigError: the file is not there.
    """
    match settings.weights:
        case "random":
            return f"random, seed {settings.seed}"
        case "hub":
            return f"hub, {settings.model} at {settings.revision}"
        case "file":
            return f"file, {_content_name(settings.file, 'backbone.file', 'weights')}"


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


def _row(store: Path, attributes: dict[str, Any]) -> Row:
    """What a receipt says of a finished store."""
    row = {"store": str(store), "key": attributes["key"], "instances": attributes["instances"]}
    row.update({name: attributes[name] for name in ("device", "unreadable", "features") if name in attributes})
    return {**row, **_facts(attributes)}


def _facts(attributes: dict[str, Any]) -> Row:
    """What `tile` found out, as FACTS names it."""
    properties = attributes.get("properties", {})
    found = {name: properties[name] for name in ("mpp", "mpp_source", "qc") if name in properties}
    found.update({name: attributes[name] for name in ("removed", "picture") if attributes.get(name)})
    if properties.get("notes"):
        found["notes"] = "; ".join(properties["notes"])
    return found
