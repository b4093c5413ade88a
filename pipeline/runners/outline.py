"""Runs `outline`: the tissue that `tile` found, as a mask to be edited in QuPath."""

import argparse
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.runners.job import RESULTS
from pipeline.runners.tables import read_catalog
from pipeline.store import Store, read_json


def run_outline(arguments: argparse.Namespace) -> None:
    """Print the outline of a slide's tissue as GeoJSON.

    Raises:
        PipelineError: no slide of this name has been tiled.
    """
    from pipeline.images.annotation import write_geojson

    # The catalog tells which of the slide's stores the last run was about; its receipt knows the key.
    picture = next((row["picture"] for row in read_catalog() if row["image"] == arguments.image), "")
    receipts = (RESULTS / "receipts" / "tile").glob("slide-*.json")
    rows = [row for path in receipts for row in read_json(path)["rows"] if row["status"] == "done"]
    found = next((row for row in rows if row.get("picture") == picture), None) if picture else None
    if found is None:
        raise PipelineError(f"{arguments.image}: is no slide with tiles: see results/catalog.tsv for those that are")
    store = Store(Path(found["store"]), found["key"])
    properties = store.attributes["properties"]
    x, y = (l0 / pixels for l0, pixels in zip(properties["l0_extent"], properties["outline_extent"], strict=True))
    print(write_geojson(store.read("outline"), (x, y), tuple(properties["l0_origin"])))
