"""Runs `outline`: the tissue that `tile` found, as a mask to be edited in QuPath."""

import argparse
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.runners.job import RESULTS
from pipeline.store import Store, read_json


def run_outline(arguments: argparse.Namespace) -> None:
    """Print the outline of a slide's tissue as GeoJSON.

    Raises:
        PipelineError: no slide of this name has been tiled.
    """
    from pipeline.images.annotation import write_geojson

    receipts = sorted((RESULTS / "receipts" / "tile").glob("slide-*.json"), key=lambda path: path.stat().st_mtime)
    rows = [row for path in receipts for row in read_json(path)["rows"]]
    found = [row for row in rows if row["id"] == arguments.image and row["status"] == "done"]
    if not found:
        raise PipelineError(f"{arguments.image}: is no slide with tiles: see results/catalog.tsv for those that are")
    store = Store(Path(found[-1]["store"]), found[-1]["key"])
    properties = store.attributes["properties"]
    x, y = (l0 / pixels for l0, pixels in zip(properties["l0_extent"], properties["outline_extent"], strict=True))
    print(write_geojson(store.read("outline"), (x, y), tuple(properties["l0_origin"])))
