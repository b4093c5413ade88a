"""Annotations: what is read from a file, and which pixels of a mask it covers."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.images.annotation import MAX_BYTES, Polygon, annotation_of, rasterise, read_geojson, write_geojson
from pipeline.images.tissue import Tissue, large_pieces

SQUARE = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def polygon(*rings: list) -> dict:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: dict | None, name: str | None = None) -> dict:
    properties = {"objectType": "annotation"} | ({"classification": {"name": name, "color": [1, 2, 3]}} if name else {})
    return {"type": "Feature", "id": "0815", "geometry": geometry, "properties": properties}


def collection(*features: dict) -> dict:
    return {"type": "FeatureCollection", "features": list(features)}


@pytest.fixture
def read(tmp_path: Path):
    def read(content: object) -> list[Polygon]:
        path = tmp_path / "Doe Jane.geojson"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_geojson(path)

    return read


def drawn(rings: list, shape: tuple[int, int] = (6, 6)) -> list[str]:
    """A mask with # for True, of one pixel to a pixel of level 0."""
    mask = rasterise([Polygon([np.array(ring, dtype=float) for ring in rings])], shape, (1, 1))
    return ["".join("#" if value else "." for value in row) for row in mask]


# Files


@pytest.mark.parametrize(
    "document",
    [
        collection(feature(polygon(SQUARE))),
        [feature(polygon(SQUARE))],
        feature(polygon(SQUARE)),
        polygon(SQUARE),
        collection(feature({"type": "Point", "coordinates": [1, 2]}), feature(None), feature(polygon(SQUARE))),
        {"type": "GeometryCollection", "geometries": [{"type": "LineString", "coordinates": SQUARE}, polygon(SQUARE)]},
        feature({"type": "MultiPolygon", "coordinates": [[SQUARE]]}, "Tumor"),
        polygon([[x, y, 7] for x, y in SQUARE]),
    ],
)
def test_a_polygon_is_found_however_it_is_wrapped(read, document):
    (found,) = read(document)
    assert [ring.tolist() for ring in found.rings] == [SQUARE] and found.is_tissue
    assert found.rings[0].dtype == np.float64


def test_polygons_come_in_the_order_of_the_file_with_their_holes(read):
    hole, other = square(1, 1, 1), square(-50, 1e6, 2.5)
    found = read(
        collection(
            feature({"type": "MultiPolygon", "coordinates": [[SQUARE, hole], [other]]}), polygon(square(9, 9, 1))
        )
    )
    rings = [[ring.tolist() for ring in each.rings] for each in found]
    assert rings == [[SQUARE, hole], [other], [square(9, 9, 1)]]


@pytest.mark.parametrize("name", ["Ignore*", "ignore", "EXCLUDE", "Background", "Other", "Artifact", "artefact"])
def test_classes_that_are_no_tissue_are_cut_out_wherever_they_stand_in_the_file(read, name):
    found = read(collection(feature(polygon(square(1, 1, 2)), name), feature(polygon(SQUARE), "Stroma")))
    assert [each.is_tissue for each in found] == [False, True]
    assert rasterise(found, (4, 4), (1, 1)).astype(int).tolist() == [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1] * 4]


def test_a_class_may_be_a_bare_name(read):
    cut = {"type": "Feature", "geometry": polygon(SQUARE), "properties": {"classification": "Ignore*"}}
    assert [each.is_tissue for each in read([polygon(SQUARE), cut])] == [True, False]


@pytest.mark.parametrize("properties", [None, [], {"classification": None}, {"classification": {"name": 3}}])
def test_odd_properties_are_no_class(read, properties):
    assert read({"type": "Feature", "geometry": polygon(SQUARE), "properties": properties})[0].is_tissue


GEOJSON = "^the annotation is no GeoJSON"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^the annotation is no JSON: export the annotation from QuPath again, as GeoJSON$"),
        (b"\xff\xfe\x00", "^the annotation is no JSON: "),
        (b"[" * 100_000, "^the annotation is no JSON: "),
        ({"shapes": []}, GEOJSON + ": export"),
        (3, GEOJSON + ": export"),
        ({"type": "FeatureCollection"}, GEOJSON + ", a FeatureCollection has no features: export"),
        (polygon([1, 2]), GEOJSON + ", a ring is no list of points: "),
        (polygon([[1, 2], [3]]), GEOJSON + ", a ring is no list of points: "),
        (polygon([["1", "2"]]), GEOJSON + ", a ring is no list of points: "),
        (polygon([[{}, None]]), GEOJSON + ", a ring is no list of points: "),
        ({"type": "MultiPolygon", "coordinates": [3]}, GEOJSON + ", a polygon has no rings: "),
        (polygon([[1.5, float("nan")]]), "^the annotation has a coordinate that is no finite number below 1e"),
        (polygon([[1, -(2**63)]]), "^the annotation has a coordinate that is no finite number below 1e"),
        (b'{"type": "Polygon", "coordinates": [[[1e999, 0]]]}', "^the annotation has a coordinate that is no finite"),
        ([], "^the annotation holds no polygon: outline the tissue in it, or remove it$"),
        ({"type": "Point", "coordinates": [0, 0]}, "^the annotation holds no polygon: "),
        (polygon(), "^the annotation holds no polygon: "),
        (feature(polygon(SQUARE), "Ignore*"), "^the annotation holds only polygons of classes that are cut out: "),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_without_its_path(read, content, message):
    with pytest.raises(ImageError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value) and "Doe" not in str(caught.value)


def test_a_collection_may_be_nested_deeply(read):
    nested = b'{"type": "GeometryCollection", "geometries": [' * 300 + json.dumps(polygon(SQUARE)).encode()
    assert len(read(nested + b"]}" * 300)) == 1


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "cells.geojson"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match="^the annotation has more than 50 MB: export annotations, not cells$"):
        read_geojson(path)


def test_a_file_that_cannot_be_read_names_no_path(tmp_path):
    with pytest.raises(ImageError, match="^the annotation cannot be read: No such file or directory$"):
        read_geojson(tmp_path / "Doe Jane.geojson")


def test_the_annotation_of_a_slide_lies_beside_it(tmp_path):
    slide = tmp_path / "1.svs"
    assert annotation_of(slide) is None
    (tmp_path / "2.geojson").touch()
    assert annotation_of(slide) is None
    (tmp_path / "1.geojson").touch()
    assert annotation_of(slide) == tmp_path / "1.geojson"
    (tmp_path / "1.svs.geojson").touch()
    assert annotation_of(slide) == tmp_path / "1.svs.geojson"


# Masks


def test_a_pixel_counts_when_its_centre_lies_inside():
    assert drawn([square(1, 1, 3)]) == ["......", ".###..", ".###..", ".###..", "......", "......"]
    assert drawn([square(1.4, 1.4, 3.2)]) == ["......", ".####.", ".####.", ".####.", ".####.", "......"]
    assert drawn([square(1.6, 1.6, 2.8)]) == ["......", "......", "..##..", "..##..", "......", "......"]


def test_centres_on_the_border_lie_inside_on_all_four_sides_and_around_holes():
    assert drawn([square(1.5, 1.5, 3)]) == ["......", ".####.", ".####.", ".####.", ".####.", "......"]
    hole = square(1.5, 1.5, 3)
    assert drawn([square(0, 0, 6), hole]) == ["######", "######", "##..##", "##..##", "######", "######"]


def test_holes_are_left_out():
    assert drawn([square(0, 0, 6), square(1, 2, 3)]) == ["######", "######", "#...##", "#...##", "#...##", "######"]


def test_slanted_edges_divide_where_the_centres_are():
    """Below the line from (0, 0) to (6, 3), the centre (x, y) has y >= x / 2; (0.5, 0.5) lies below it."""
    assert drawn([[[0, 0], [6, 3], [0, 3]]], (4, 6)) == ["#.....", "###...", "#####.", "......"]


def test_rings_need_not_be_closed_and_may_turn_either_way():
    ring = square(1, 1, 3)
    assert drawn([ring]) == drawn([ring[:-1]]) == drawn([ring[::-1]])


@pytest.mark.parametrize("seed", range(10))
def test_any_polygon_holds_the_centres_that_a_ray_says_are_inside(seed):
    generator = np.random.default_rng(seed)
    ring = generator.uniform(-4, 16, (int(generator.integers(3, 12)), 2))

    def inside(x: float, y: float) -> bool:
        crossed = 0
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if (y0 > y) != (y1 > y):
                crossed += x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
        return crossed % 2 == 1

    wanted = [[inside(x + 0.5, y + 0.5) for x in range(12)] for y in range(9)]
    assert rasterise([Polygon([ring])], (9, 12), (1, 1)).tolist() == wanted


def test_many_edges_are_drawn_like_few():
    """A circle of 5000 edges is larger than what is drawn at once."""
    angle = np.linspace(0, 2 * np.pi, 5000)
    ring = np.column_stack([100 + 80 * np.cos(angle), 90 + 80 * np.sin(angle)])
    y, x = np.indices((180, 200)) + 0.5
    distance = np.hypot(x - 100, y - 90)
    mask = rasterise([Polygon([ring])], (180, 200), (1, 1))
    assert mask[distance < 79.99].all() and not mask[distance > 80].any()


def test_level_0_pixels_are_scaled_along_each_axis_and_shifted():
    ring = np.array(square(80, 80, 80), dtype=float)
    mask = rasterise([Polygon([ring])], (5, 9), (20, 40))
    assert np.argwhere(mask).tolist() == [[y, x] for y in (2, 3) for x in (4, 5, 6, 7)]
    shifted = rasterise([Polygon([ring])], (5, 9), (20, 40), l0_offset=(-40, 40))
    assert np.argwhere(shifted).tolist() == [[y, x] for y in (3, 4) for x in (2, 3, 4, 5)]


def test_what_lies_beyond_the_slide_is_cut_off():
    assert drawn([square(-1e8, -1e8, 1e8 + 2)], (3, 3)) == ["##.", "##.", "..."]
    assert drawn([square(-9, -9, 5)], (3, 3)) == drawn([square(9, 9, 5)], (3, 3)) == ["...", "...", "..."]
    assert drawn([square(-9, -9, 50)], (2, 2)) == ["##", "##"]


def test_overlapping_polygons_are_added():
    both = [Polygon([np.array(square(at, at, 3), dtype=float)]) for at in (0, 1)]
    assert rasterise(both, (4, 4), (1, 1)).astype(int).tolist() == [[1, 1, 1, 0], [1] * 4, [1] * 4, [0, 1, 1, 1]]


# There and back


def test_what_is_written_is_what_qupath_reads():
    mask = np.zeros((6, 6), dtype=bool)
    mask[1:6, 0:5] = True
    mask[3, 2] = False
    document = json.loads(write_geojson(Tissue(mask).outline(), (10, 20)))
    (found,) = document["features"]
    assert document["type"] == "FeatureCollection" and found["type"] == "Feature"
    assert found["properties"]["objectType"] == "annotation"
    assert found["properties"]["classification"]["name"] == "Tissue"
    outer, hole = found["geometry"]["coordinates"]
    assert outer[0] == outer[-1] and sorted(outer[:-1]) == [[5, 30], [5, 110], [45, 30], [45, 110]]
    assert hole[0] == hole[-1] and sorted(hole[:-1]) == [[15, 70], [25, 50], [25, 90], [35, 70]]


@pytest.mark.parametrize("l0_per_pixel", [(1.0, 1.0), (31.987, 32.013), (3.3333333, 7.1)])
def test_an_outline_that_is_read_back_is_the_same_mask(tmp_path, l0_per_pixel):
    mask = np.random.default_rng(0).random((60, 80)) < 0.6
    tissue = Tissue(large_pieces(mask, 8, 0, -1))
    path = tmp_path / "outline.geojson"
    path.write_text(write_geojson(tissue.outline(), l0_per_pixel, (1000, -50)))
    assert np.array_equal(rasterise(read_geojson(path), mask.shape, l0_per_pixel, (1000, -50)), tissue.mask)


def test_what_has_no_area_is_not_written():
    mask = np.zeros((8, 8), dtype=bool)
    mask[0, 0] = mask[3, 2:6] = True
    assert json.loads(write_geojson(Tissue(mask).outline(), (1, 1)))["features"] == []
    assert json.loads(write_geojson(np.zeros((0, 3), dtype=np.int32), (1, 1)))["features"] == []
