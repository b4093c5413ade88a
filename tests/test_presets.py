"""Presets: the numbers of the tools they are named after, and no quiet mixture of a preset and other settings."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.image_settings import SlideSettings
from pipeline.images.slide import Slide
from pipeline.presets import PRESETS
from pipeline.tiling import tile
from support.jpeg_slide import write_jpeg_slide

CLAM_TABLE = {
    # sthresh, mthresh, close, a_t, a_h, max_n_holes of CLAM's preset files
    "clam-biopsy": (15, 11, 2, 1, 1, 2),
    "clam-resection": (15, 11, 4, 100, 16, 8),
    "clam-tcga": (8, 7, 4, 16, 4, 8),
}


@pytest.mark.parametrize("name", CLAM_TABLE)
def test_clams_numbers(name: str) -> None:
    slide = SlideSettings(preset=name)
    found = slide.tissue
    numbers = (found.threshold, found.median, found.close, found.min_area, found.min_hole, found.max_holes)
    assert numbers == CLAM_TABLE[name]
    assert (slide.mpp, slide.tile, slide.stride, slide.edge) == (0, 256, 256, "pad")
    assert (found.method, found.area_unit, found.keep) == ("clam", "patch512", "four_points_any")


def test_tridents_numbers() -> None:
    slide = SlideSettings(preset="trident-20x-256")
    assert (slide.mpp, slide.tile, slide.stride, slide.tissue.min_share) == (0.5, 256, 256, 0.0)


def test_stamps_numbers() -> None:
    """256 µm in 224 pixels."""
    slide = SlideSettings(preset="stamp-1.14")
    assert slide.mpp * slide.tile == pytest.approx(256) and slide.tile == slide.stride == 224
    assert (slide.tissue.brightness, slide.quality.min_edges) == (240, 0.02)


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4096 pixels of 0.25 µm along both sides, white, with speckled tissue from (1024, 1024) to (3584, 2048)."""
    pixels = np.full((4096, 4096, 3), 255, np.uint8)
    speckles = np.random.default_rng(0).integers(-50, 51, (128, 320, 1)).repeat(8, 0).repeat(8, 1)
    pixels[1024:2048, 1024:3584] = np.array((200, 90, 150)) + speckles
    return write_jpeg_slide(tmp_path_factory.mktemp("presets") / "a.svs", pixels, 0.25, 256, "ycbcr")


@pytest.mark.parametrize(
    ("name", "step", "columns", "rows"),
    [
        # Tiles of 256 level 0 pixels; all that begin in the tissue have one of four points in it, though the median of
        # 11 or 7 pixels of 16 µm takes the corners; none that begins elsewhere has.
        ("clam-biopsy", 256, range(4, 14), range(4, 8)),
        # 2560 x 1024 pixels are 10 squares of 512: more than the 1 asked for above, less than the 16 and 100 here.
        ("clam-tcga", 256, (), ()),
        ("clam-resection", 256, (), ()),
        # At 0.5 µm the tissue lies from (512, 512) to (1792, 1024); 0.16 mm² are more than 0.1.
        ("trident-20x-256", 256, range(2, 7), range(2, 4)),
        # Tiles of 1024 level 0 pixels; the third column is half tissue, and still darker than 240 on average.
        ("stamp-1.14", 224, range(1, 4), range(1, 2)),
    ],
)
def test_the_tiles_of_each_preset(slide_file: Path, name: str, step: int, columns: Iterable[int], rows: Iterable[int]):
    """Origins computed by hand from the rules of each tool."""
    tiles = tile(Slide(slide_file, SlideSettings(preset=name)))
    assert tiles.origins.tolist() == [[step * column, step * row] for row in rows for column in columns]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_out_and_read(name: str) -> None:
    """As plan slices do it; the values are then stated, and agree with the preset."""
    slide = SlideSettings(preset=name)
    assert SlideSettings.model_validate(slide.model_dump(mode="json")) == slide


def test_what_a_preset_leaves_open_can_be_set() -> None:
    slide = SlideSettings(preset="clam-tcga", max_unreadable=0.2, quality={"max_pen": 0.1}, tissue={"threshold": 8})
    assert (slide.max_unreadable, slide.quality.max_pen, slide.tissue.threshold) == (0.2, 0.1, 8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tile": 224}, "clam-tcga says otherwise about tile (256 and not 224): remove these keys, or the preset"),
        (
            {"tissue": {"method": "otsu", "median": 9}},
            "about tissue.method (clam and not otsu), tissue.median (7 and not 9)",
        ),
    ],
)
def test_a_preset_and_a_key_that_contradicts_it_are_refused(values: dict[str, Any], said: str) -> None:
    """Neither of them quietly wins."""
    with pytest.raises(ConfigError) as caught:
        load_config({"slide": {"preset": "clam-tcga", **values}})
    assert said in str(caught.value) and "\n" not in str(caught.value)
