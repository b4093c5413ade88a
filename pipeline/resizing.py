"""From the pixels of tiles to those that a model sees."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class Geometry:
    """How the pixels of a tile become those that the model sees: as in timm, but that nothing is cut off.

    Timm resizes the shorter side to `side / crop_pct` and cuts the middle out, which loses 10 to 23 % of a tile. With
    `whole`, all of it is resized to `side` x `side`.
    """

    side: int
    interpolation: InterpolationMode
    whole: bool = True
    crop_pct: float = 1.0
    squash: bool = False
    """Timm resizes both sides to the same length."""

    def __call__(self, tiles: Tensor) -> Tensor:
        """Pictures (tile, channel, side, side) uint8 of tiles (tile, channel, height, width) uint8.

        Rounded and clipped after each axis, as Pillow does: within 1 of 255 of it, a few values in a million within 2.
        """
        height, width = tiles.shape[-2:]
        if self.whole:
            return self._resize(tiles, self.side, self.side)
        longer = math.floor(self.side / self.crop_pct)
        if self.squash:
            tiles = self._resize(tiles, longer, longer)
        else:
            shorter = min(height, width)
            tiles = self._resize(tiles, longer * height // shorter, longer * width // shorter)
        cropped: Tensor = functional.center_crop(tiles, [self.side, self.side])
        return cropped

    def _resize(self, tiles: Tensor, height: int, width: int) -> Tensor:
        if tiles.shape[-2:] == (height, width):
            return tiles
        if tiles.device.type != "cpu":
            return resize_on_gpu(tiles, height, width, self.interpolation.value)
        # In uint8: eight times as fast as floats.
        resized: Tensor = functional.resize(tiles, [height, width], self.interpolation, antialias=True)
        return resized


def resize_on_gpu(tiles: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Tiles (tile, channel, height, width) uint8 in another size; torch resizes on a GPU in floats alone.

    Along x and then along y, because both at once would not clip what overshoots between them: up to 20 of 255.
    """
    pictures = tiles.float()
    for size in ((tiles.shape[-2], width), (height, width)):
        pictures = torch.nn.functional.interpolate(pictures, size=size, mode=mode, antialias=True)
        pictures = pictures.add_(0.5).floor_().clamp_(0, 255)  # halves go up, as in Pillow
    return pictures.to(torch.uint8)
