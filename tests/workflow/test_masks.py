"""A user's own mask, drawn in QuPath: honoured by every run, and a change of it changes its slide alone."""

import json
from pathlib import Path

import pytest

from support.workspace import Workspace, write_slide


def rectangle(right: int, low: int) -> str:
    ring = [[0, 0], [right, 0], [right, low], [0, low], [0, 0]]
    return json.dumps({"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}})


def instances(work: Workspace) -> list[str]:
    """Tiles of each image, in the catalog's order."""
    return [row["instances"] for row in work.catalog().values()]


@pytest.mark.parametrize("ids", ["path", "hashed"])
def test_a_mask_is_honoured_edited_and_taken_away(empty: Workspace, ids: str) -> None:
    raw: Path = empty.folder / "data/raw"
    write_slide(raw / "a.tiff", 0)
    empty.configure(ids=ids)
    empty.run()
    (found,) = instances(empty)
    stores = empty.stores()
    for right, low, tiles in ((64, 64, 4), (128, 64, 8)):  # of 32 pixels
        (raw / "a.geojson").write_text(rectangle(right, low))
        empty.run()
        assert instances(empty) == [str(tiles)]
        assert "Nothing to be done" in empty.run()
    (raw / "a.geojson").unlink()
    empty.run()
    assert instances(empty) == [found] and stores.items() <= empty.stores().items()


def test_what_was_found_can_be_edited(empty: Workspace) -> None:
    """The outline as it was written gives the same tiles again; the mask is that of the method, pixel by pixel."""
    raw: Path = empty.folder / "data/raw"
    write_slide(raw / "a.tiff", 0)
    empty.run()
    found = instances(empty)
    text = empty.pipeline("outline", "a.tiff")
    empty.configure(slide__tissue={"method": "none"})
    empty.run()
    assert empty.pipeline("outline", "a.tiff") != text
    empty.configure()  # set back: the older store again
    empty.run()
    assert empty.pipeline("outline", "a.tiff") == text
    (piece,) = json.loads(text)["features"]
    assert piece["properties"]["classification"]["name"] == "Tissue"
    (raw / "a.tiff.geojson").write_text(text)
    empty.run()
    assert instances(empty) == found
    assert empty.pipeline("outline", "b.tiff", fails=True) == (
        "error: b.tiff: is no slide with tiles: see results/catalog.tsv for those that are\n"
    )


def test_a_mask_that_cannot_be_read_fails_its_slide_alone(empty: Workspace) -> None:
    raw: Path = empty.folder / "data/raw"
    for number in range(2):
        write_slide(raw / f"{number}.tiff", number)
    (raw / "0.geojson").write_text("{")
    empty.run()
    rows = list(empty.catalog().values())
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert rows[0]["reason"].startswith("the annotation")
