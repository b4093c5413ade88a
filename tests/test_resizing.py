"""What a model sees is what timm's own transform would show it, but that nothing of a tile is cut off."""

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from timm.data import create_transform
from torchvision.transforms import InterpolationMode

from pipeline.resizing import Geometry, resize_on_gpu

BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR
SIZES = [(224, 224), (256, 256), (512, 512), (300, 200), (200, 300), (96, 96), (131, 97)]
"""Of tiles: width, height. Larger than what the model sees, as large, and smaller."""


def tile(width: int, height: int, content: str) -> NDArray[np.uint8]:
    """(height, width, 3): waves of another length in each colour, or noise, which no filter forgives anything."""
    if content == "noisy":
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + y / 31), np.cos(y / 7), np.sin((x + y) / 13)]
    return np.stack([127.5 + 127 * wave for wave in waves], axis=2).astype(np.uint8)


def shown(geometry: Geometry, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What a model would see of a tile: (side, side, 3), between 0 and 255."""
    pictures = geometry(torch.from_numpy(pixels[None]).permute(0, 3, 1, 2))
    assert pictures.dtype == torch.uint8
    return pictures[0].permute(1, 2, 0).numpy().astype(np.float64)


def by_timm(
    pixels: NDArray[np.uint8], side: int, interpolation: InterpolationMode, crop_pct: float, crop_mode: str
) -> NDArray[np.float64]:
    """What timm's transform, which works with Pillow, makes of it: (side, side, 3), between 0 and 255."""
    transform = create_transform(
        input_size=(3, side, side),
        interpolation=interpolation.value,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        is_training=False,
    )
    picture = transform(PIL.Image.fromarray(pixels))
    found: NDArray[np.float64] = picture.permute(1, 2, 0).numpy().astype(np.float64) * 255
    return found


def assert_same_picture(found: NDArray[np.float64], wanted: NDArray[np.float64], two_off: float = 1 / 4000) -> None:
    """Within one grey level of 255, but for one value in 4,000, which may be two off.

    Torch and Pillow both round after either axis. Torch has weights of 16 bits, Pillow of 22: one level for each axis.
    """
    gaps = np.abs(found - wanted)
    assert gaps.max() <= 2.001
    assert (gaps > 1.001).mean() < two_off


@pytest.mark.parametrize("content", ["smooth", "noisy"])
@pytest.mark.parametrize("interpolation", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("size", SIZES)
def test_the_whole_tile_is_resized_as_pillow_does_it(
    size: tuple[int, int], interpolation: InterpolationMode, content: str
) -> None:
    pixels = tile(*size, content)
    method = {BICUBIC: PIL.Image.Resampling.BICUBIC, BILINEAR: PIL.Image.Resampling.BILINEAR}[interpolation]
    # Along x and then y. Newer releases of Pillow begin with y where that is cheaper: in a tile taller than wide.
    wanted = np.asarray(PIL.Image.fromarray(pixels).resize((224, size[1]), method).resize((224, 224), method))
    assert_same_picture(shown(Geometry(224, interpolation), pixels), wanted.astype(np.float64))


@pytest.mark.parametrize("content", ["smooth", "noisy"])
@pytest.mark.parametrize("interpolation", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("size", [size for size in SIZES if size[0] == size[1]])
def test_the_whole_square_tile_is_what_timm_shows_when_it_crops_nothing(
    size: tuple[int, int], interpolation: InterpolationMode, content: str
) -> None:
    pixels = tile(*size, content)
    wanted = by_timm(pixels, 224, interpolation, 1.0, "center")
    assert_same_picture(shown(Geometry(224, interpolation), pixels), wanted)


@pytest.mark.parametrize("content", ["smooth", "noisy"])
@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"), [(0.875, "center"), (0.95, "center"), (0.9, "center"), (1.0, "center"), (0.9, "squash")]
)
@pytest.mark.parametrize("interpolation", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("size", SIZES)
def test_cropped_as_the_model_is_evaluated_it_is_what_timm_shows(
    size: tuple[int, int], interpolation: InterpolationMode, crop_pct: float, crop_mode: str, content: str
) -> None:
    if crop_mode == "squash":
        size = max(size), min(size)  # for Pillow begins with x there: see above
    pixels = tile(*size, content)
    wanted = by_timm(pixels, 224, interpolation, crop_pct, crop_mode)
    geometry = Geometry(224, interpolation, whole=False, crop_pct=crop_pct, squash=crop_mode == "squash")
    assert_same_picture(shown(geometry, pixels), wanted)


@pytest.mark.parametrize("content", ["smooth", "noisy"])
@pytest.mark.parametrize("interpolation", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (96, 96), (300, 200)])
def test_a_gpu_shows_what_pillow_does(size: tuple[int, int], interpolation: InterpolationMode, content: str) -> None:
    """It resizes in floats: the same arithmetic, made here on the CPU.

    From 256 to 224, bilinear weights make many exact halves, which Pillow's weights of 22 bits put to either side.
    """
    pixels = tile(*size, content)
    found = resize_on_gpu(torch.from_numpy(pixels[None]).permute(0, 3, 1, 2), 224, 224, interpolation.value)
    assert found.dtype == torch.uint8
    method = {BICUBIC: PIL.Image.Resampling.BICUBIC, BILINEAR: PIL.Image.Resampling.BILINEAR}[interpolation]
    wanted = np.asarray(PIL.Image.fromarray(pixels).resize((224, size[1]), method).resize((224, 224), method))
    assert_same_picture(
        found[0].permute(1, 2, 0).numpy().astype(np.float64),
        wanted.astype(np.float64),
        1 / 4000 if interpolation == BICUBIC else 1 / 300,
    )


def test_the_border_counts_when_the_whole_tile_is_shown_and_not_when_timm_crops_it() -> None:
    plain = np.full((256, 256, 3), 128, np.uint8)
    cropping = Geometry(224, BICUBIC, whole=False, crop_pct=0.875)  # the middle 224 of 256
    for edge in (np.s_[:12], np.s_[-12:], np.s_[:, :12], np.s_[:, -12:]):
        framed = plain.copy()
        framed[edge] = 255
        assert np.array_equal(shown(cropping, framed), shown(cropping, plain))
        assert (shown(Geometry(224, BICUBIC), framed) > 250).sum() >= 3 * 224 * 9


def test_a_tile_that_is_not_square_is_squeezed_and_loses_nothing() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    found = shown(Geometry(4, BILINEAR), pixels)
    assert (found[:, 0] < 26).all()
    assert (found[:, 3] > 229).all()


@pytest.mark.parametrize("side", [8, 16, 40])
def test_a_constant_tile_stays_constant(side: int) -> None:
    assert (shown(Geometry(side, BICUBIC), np.full((16, 16, 3), 102, np.uint8)) == 102).all()


def test_a_tile_of_the_models_own_size_keeps_every_bit() -> None:
    pixels = tile(224, 224, "noisy")
    assert np.array_equal(shown(Geometry(224, BICUBIC), pixels), pixels)
    assert np.array_equal(shown(Geometry(224, BICUBIC, whole=False, crop_pct=1.0), pixels), pixels)
