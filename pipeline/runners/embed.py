"""Runs `embed` over the images of a shard."""

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ImageError, PipelineError
from pipeline.image_settings import HOW_FAST, WHERE_FROM, BackboneSettings
from pipeline.runners.job import RESULTS, Job
from pipeline.runners.raw_images import RawImages
from pipeline.runners.shard import done_row, modality_settings
from pipeline.shards import Beat, Entry, Outcome, Row, Shard, Work, map_shard, say
from pipeline.store import Store, digest, write_bytes, write_store
from pipeline.timing import Times, total, verdict
from pipeline.weights import weights_name

FACTS = ("mpp", "mpp_source", "notes", "removed", "picture", "qc")
"""What `tile` found out about an image and the catalog says."""


def run_embed(arguments: argparse.Namespace) -> None:
    """Embed the tiles of a shard's images: for each a store with embeddings, origins and read status."""
    job = Job.of(arguments)
    settings = {name: value for name, value in job.slice["settings"].items() if name != "weights_file"}
    backbone_settings = BackboneSettings.model_validate(settings["backbone"])
    fetched = job.upstream["weights"][0]["fetched"] if "weights" in job.upstream else None
    read_at = stamp(backbone_settings.file)
    weights = weights_name(backbone_settings, fetched)
    what = {**settings, "backbone": {k: v for k, v in settings["backbone"].items() if k not in HOW_FAST | WHERE_FROM}}
    folder = RESULTS / "embed" / digest([job.slice["version"], what, weights], 8)
    tiled = {row["id"]: row for row in job.upstream_rows("tile")}
    ready = [image for image in job.slice["images"] if tiled[image["id"]]["status"] == "done"]
    images = [{**image, "made_of": [tiled[image["id"]]["key"]]} for image in ready]
    raw_images = RawImages(job)

    def start(beat: Beat) -> Work:
        import timm
        import torch

        from pipeline.backbone import load_backbone
        from pipeline.contact_sheet import contact_sheet
        from pipeline.device import choose_device, gpu_names, lock_gpu
        from pipeline.embedding import Source, embed
        from pipeline.images import READ_OK, Stated, reopen_image
        from pipeline.partial import Partial

        device = choose_device(job.device)
        lock = None
        if device.type == "cuda":
            index, lock = lock_gpu(gpu_names(), waiting=lambda: beat(0, 0))
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
        backbone = load_backbone(backbone_settings, device, fetched, say, job.threads)
        if stamp(backbone_settings.file) != read_at:
            raise PipelineError(f"backbone.file: {backbone_settings.file} was replaced while it was read: run again")
        place = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

        def stores(entry: Entry) -> tuple[dict[str, Any], Path, str]:
            """The row of its tiles, and the place and key of the store to be made."""
            row = tiled[entry["id"]]
            key = digest([row["key"], folder.name])
            return row, folder / entry["id"] / f"{key[:8]}.zarr", key

        @contextlib.contextmanager
        def opened(entry: Entry) -> Iterator[Source | Row]:
            row, store, key = stores(entry)
            if store.exists():
                yield done_row(store, Store(store, key).attributes)
                return
            tiles = Store(Path(row["store"]), row["key"])
            origins, size = tiles.read("origins"), tuple(tiles.attributes["size"])
            times = Times()
            with contextlib.ExitStack() as stack:
                path, arrays = Path(), {}
                if entry["kind"] == "series":
                    with times.spent_on("read"):
                        arrays = {"hu": tiles.read("hu")}
                else:  # a slide: its pixels are in the raw file alone
                    raw_images.check_unchanged(entry)
                    path, _ = stack.enter_context(raw_images.opened(entry))
                modality, stated = modality_settings(entry["kind"], settings), Stated(**entry.get("stated", {}))
                image = reopen_image(path, modality, arrays, tiles.attributes["properties"], stated)
                yield Source(entry, image, origins, size, Partial(store.with_suffix(".partial"), key), times)

        def finish(source: Source) -> Row:
            assert lock is None or not lock.closed  # the GPU stays ours as long as this function lives
            row, store, key = stores(source.entry)
            try:
                values = source.readable(modality_settings(source.entry["kind"], settings).max_unreadable)
            except ImageError:
                source.partial.close()
                raise
            attributes = {
                "key": key,
                "tile_key": row["key"],
                "settings": settings,
                "weights": weights,
                "version": job.slice["version"],
                "versions": {"torch": torch.__version__, "timm": timm.__version__},
                "device": place,
                "batch": backbone.most,
                "instances": len(values),
                "features": values.shape[1],
                "unreadable": int((source.status != READ_OK).sum()),
                "tile_store": row["store"],
                **source.image.reading(),
                "times": source.times.rounded(),  # without this store's own writing, which its row tells
            }
            with source.times.spent_on("write"):
                if source.entry["kind"] == "series":  # what the backbone was shown of it is worth a look
                    picture = store.with_suffix(".jpg")
                    attributes["picture"] = str(picture)
                    write_bytes(picture, contact_sheet(source.image, source.image.channels))
                origins = source.origins[source.status == READ_OK]
                write_store(store, {"embeddings": values, "origins": origins, "status": source.status}, attributes)
            source.partial.close()  # not when the disk is full: the next run goes on with it
            return {**done_row(store, attributes), "seconds": source.seconds, "times": source.times.rounded()}

        def work(entries: Iterable[Entry], beat: Beat) -> Iterator[tuple[Entry, Outcome]]:
            done: list[Row] = []
            for entry, outcome in embed(entries, opened, finish, backbone, job.threads, beat):
                done += [outcome] if isinstance(outcome, dict) and "seconds" in outcome else []  # not of earlier runs
                yield entry, outcome
            if done:
                spent = total(row["times"] for row in done)
                say("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.rounded().items()))
                say(verdict(spent))

        return work

    rows = {row["id"]: row for row in map_shard(Shard("embed", folder, images), start, job.limits)}
    for name, row in rows.items():
        row.update({fact: tiled[name][fact] for fact in FACTS if fact in tiled[name]})
    job.finish(rows=[rows.get(image["id"], tiled[image["id"]]) for image in job.slice["images"]], weights=weights)


def stamp(file: str) -> tuple[int, int, int] | None:
    """What changes when another file takes the place of one; None where there is none."""
    found = Path(file).stat() if file and Path(file).exists() else None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found else None
