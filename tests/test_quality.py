"""Filters on tiles: each figure by hand, each stain kept, each marker caught."""

from pathlib import Path

import numpy as np
import pytest
from openslide import OpenSlide

from pipeline import quality
from pipeline.image_settings import QualitySettings
from pipeline.quality import (
    BLACK,
    BLUR,
    EDGES,
    KEPT,
    PEN,
    REASONS,
    TISSUE,
    WHITE,
    black_share,
    edge_share,
    is_on,
    judge,
    pen_share,
    sharpness,
    white_share,
)

EOSIN, HAEMATOXYLIN, INK = (230, 150, 190), (90, 60, 140), (20, 60, 200)
ALL = QualitySettings(min_sharpness=100, max_pen=0.5, max_black=0.5, max_white=0.5, min_edges=0.02)


def plain(colour: tuple[int, int, int], side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), colour, dtype=np.uint8)


def nuclei(side: int = 32) -> np.ndarray:
    """Squares of haematoxylin on eosin, four pixels a side, eight apart."""
    row, column = np.indices((side, side))
    return np.where(((row % 8 < 4) & (column % 8 < 4))[..., None], HAEMATOXYLIN, EOSIN).astype(np.uint8)


def test_codes_are_those_that_stores_keep_and_all_have_words() -> None:
    assert (KEPT, TISSUE, BLUR, PEN, BLACK, WHITE, EDGES) == (0, 1, 2, 3, 4, 5, 6)
    assert sorted(REASONS) == [0, 1, 2, 3, 4, 5, 6]
    assert len(set(REASONS.values())) == 7


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    """One white pixel on black: the Laplacian is -4 * 255 there and 255 at its four neighbours."""
    tile = plain((0, 0, 0), 8)
    tile[3, 4] = 255
    values = np.array([-4 * 255.0] + [255.0] * 4 + [0.0] * 59)
    assert sharpness(tile) == pytest.approx(np.mean(values**2))
    assert sharpness(plain(EOSIN)) == 0


def test_grey_levels_weigh_red_green_and_blue_as_the_eye_does() -> None:
    """Green pixels on black are 150 in grey (0.587 * 255), blue ones 29 (0.114 * 255)."""
    green, blue = plain((0, 0, 0), 8), plain((0, 0, 0), 8)
    green[3, 4], blue[3, 4] = (0, 255, 0), (0, 0, 255)
    assert sharpness(green) == pytest.approx(20 * 150**2 / 64)
    assert sharpness(blue) == pytest.approx(20 * 29**2 / 64)


@pytest.mark.parametrize(
    "stain",
    [
        EOSIN,
        HAEMATOXYLIN,
        (60, 40, 110),  # dark nuclei
        (45, 20, 60),  # very dark nuclei
        (225, 90, 150),  # strong eosin
        (190, 60, 80),  # blood
        (150, 100, 60),  # DAB
        (90, 45, 15),  # dark DAB
        (120, 140, 190),  # blue counterstain
        (200, 170, 190),  # pale stroma
        (255, 255, 255),
        (120, 120, 120),  # dust
    ],
)
def test_stains_are_no_pen(stain: tuple[int, int, int]) -> None:
    assert pen_share(plain(stain)) == 0


@pytest.mark.parametrize(
    "ink", [INK, (20, 140, 60), (110, 190, 140), (220, 20, 30), (200, 20, 10), (25, 25, 30), (40, 110, 180)]
)
def test_markers_are_pen_by_the_share_they_cover(ink: tuple[int, int, int]) -> None:
    tile = plain(EOSIN)
    tile[:8] = ink
    assert pen_share(tile) == 0.25


def test_near_black_is_below_fifty_in_all_channels() -> None:
    tile = plain(EOSIN)
    tile[0], tile[1], tile[2] = (49, 49, 49), (50, 49, 49), (0, 0, 0)
    assert black_share(tile) == 2 / 32


def test_near_white_is_bright_or_bright_and_grey() -> None:
    tile = plain(EOSIN)
    tile[0] = (231, 231, 255)
    tile[1] = (230, 231, 255)  # not all above 230, and a tint: saturation 25 of 255
    tile[2] = (205, 205, 207)  # bright grey: saturation 2.5 of 255
    tile[3] = (199, 199, 200)  # grey, and not bright
    tile[4] = (205, 205, 215)  # bright, and a tint: saturation 12 of 255
    assert white_share(tile) == 2 / 32


def test_edges_are_counted_along_a_step_and_not_on_plain_ground() -> None:
    """A step between two halves is an edge one pixel wide, all the way down."""
    tile = plain((0, 0, 0))
    tile[:, 16:] = 255
    assert edge_share(tile) == 1 / 32
    assert edge_share(plain(EOSIN)) == 0


def test_tiles_are_judged_one_by_one() -> None:
    tiles = np.stack([nuclei(), plain((0, 0, 0)), plain((255, 255, 255)), plain(INK), plain(EOSIN), nuclei()])
    assert judge(tiles, ALL).tolist() == [KEPT, BLACK, WHITE, PEN, BLUR, KEPT]
    assert judge(tiles, ALL).dtype == np.uint8


def test_a_sharp_tile_with_too_few_edges_says_so() -> None:
    tile = plain(EOSIN)
    tile[:2, :2] = 0  # four pixels: a high variance, and a short edge
    assert judge(tile[None], ALL).tolist() == [EDGES]


def test_glass_and_ink_are_not_called_blurred() -> None:
    """They are blurred as well, which shows when their own filter is off."""
    tiles = np.stack([plain((255, 255, 255)), plain(INK)])
    assert judge(tiles, QualitySettings(min_sharpness=100)).tolist() == [BLUR, BLUR]
    assert judge(tiles, ALL).tolist() == [WHITE, PEN]


def test_a_tile_at_its_limit_is_kept() -> None:
    half = nuclei()
    half[:16] = INK
    assert judge(half[None], QualitySettings(max_pen=0.5)).tolist() == [KEPT]
    assert judge(half[None], QualitySettings(max_pen=0.499)).tolist() == [PEN]
    step = plain((0, 0, 0))
    step[:, 16:] = 255
    assert judge(step[None], QualitySettings(min_edges=1 / 32)).tolist() == [KEPT]


def test_no_tiles_are_judged_too() -> None:
    found = judge(np.zeros((0, 32, 32, 3), dtype=np.uint8), ALL)
    assert found.tolist() == [] and found.dtype == np.uint8


@pytest.mark.parametrize(
    "limit", [{"min_sharpness": 1.0}, {"max_pen": 0.5}, {"max_black": 0.5}, {"max_white": 0.5}, {"min_edges": 0.01}]
)
def test_one_filter_is_enough_to_be_on_and_only_it_is_computed(
    limit: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "min_sharpness": "sharpness",
        "max_pen": "pen_share",
        "max_black": "black_share",
        "max_white": "white_share",
        "min_edges": "edge_share",
    }[next(iter(limit))]
    called = []
    for name in ("sharpness", "pen_share", "black_share", "white_share", "edge_share"):
        monkeypatch.setattr(quality, name, lambda tile, name=name: called.append(name) or 0.3)
    settings = QualitySettings(**limit)
    assert is_on(settings)
    judge(nuclei()[None], settings)
    assert called == [own]


def test_all_filters_are_off_unless_asked_for() -> None:
    assert not is_on(QualitySettings())
    assert judge(np.stack([plain((0, 0, 0)), plain((255, 255, 255))]), QualitySettings()).tolist() == [KEPT, KEPT]


CMU = "wsi/libvips__libvips/test/test-suite/images/CMU-1-Small-Region.svs"
BREAST = "wsi/PingjunChen__pyslide/test/data/Slides/CropBreastSlide.tiff"


@pytest.mark.parametrize("name", [CMU, BREAST])
def test_real_stained_tissue_has_next_to_no_pen(shared_data: Path, name: str) -> None:
    with OpenSlide(shared_data / name) as slide:
        region = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    height, width = (side // 224 * 224 for side in region.shape[:2])
    tiles = region[:height, :width].reshape(height // 224, 224, width // 224, 224, 3).swapaxes(1, 2)
    assert max(pen_share(np.ascontiguousarray(tile)) for row in tiles for tile in row) < 0.05
