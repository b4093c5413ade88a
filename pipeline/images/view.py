"""Which pixels of a pyramid stand for a resolution: a level, how far the decoder shrinks it, and what is left to do."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pipeline.errors import ImageError


@dataclass(frozen=True)
class View:
    """A slide at one resolution, made from the pixels of one decodable size."""

    level: int
    factor: int
    """By which the decoder shrinks the level: 1, 2, 4 or 8."""
    extent: tuple[int, int]
    """Of the decodable size, (x, y)."""
    downsample: float
    """Level 0 pixels per pixel of the decodable size."""
    scale: tuple[float, float]
    """Pixels of the decodable size per pixel of the view, along x and y; (1, 1): they are the view's own."""

    @property
    def is_own(self) -> bool:
        """Whether the view is the decodable size itself, and nothing is resampled."""
        return self.scale == (1.0, 1.0)


def decodable_sizes(
    extents: tuple[tuple[int, int], ...], downsamples: tuple[float, ...], factors: Mapping[int, Iterable[int]]
) -> list[View]:
    """All sizes that can be had without resampling: levels of the slide's shape, and what the decoder makes of them.

    Args:
        extents: pixels of each level, (x, y).
        downsamples: of each level.
        factors: by level, how far its decoder can shrink; levels that are not named: not at all.
    """
    found = []
    for level in same_shape(extents):
        width, height = extents[level]
        for factor in factors.get(level, (1,)):
            if min(width, height) >= factor:
                shrunk = (width // factor, height // factor)
                found.append(View(level, factor, shrunk, downsamples[level] * factor, (1.0, 1.0)))
    return found


def same_shape(extents: tuple[tuple[int, int], ...]) -> list[int]:
    """The numbers of the levels that have about the shape of level 0.

    ASSUME: a level whose sides differ in downsample by more than two is damaged, or shows something else.
    """
    l0_width, l0_height = extents[0]
    return [n for n, (width, height) in enumerate(extents) if 0.5 <= l0_width * height / (l0_height * width) <= 2]


def choose_view(sizes: list[View], l0_mpp: float, wanted: float, tolerance: float) -> View:
    """The decodable size within the tolerance, or else the coarsest finer one with the scale to shrink it by.

    Between a level and a shrunk finer level of the same resolution it is the level.

    Args:
        sizes: decodable, of one slide.
        l0_mpp: µm per pixel of level 0.
        wanted: µm per pixel; 0: level 0 as it is.
        tolerance: relative distance from `wanted` that is near enough.

    Raises:
        ImageError: all sizes are coarser than wanted.
    """
    if wanted == 0:
        return sizes[0]
    ratios = {view: wanted / (l0_mpp * view.downsample) for view in sizes}
    near = [view for view in sizes if abs(1 / ratios[view] - 1) <= tolerance]
    if near:
        return min(near, key=lambda view: (view.factor, abs(1 / ratios[view] - 1)))
    finer = [view for view in sizes if ratios[view] > 1]
    if not finer:
        raise ImageError(
            f"its finest resolution is {l0_mpp:g} µm per pixel, coarser than slide.mpp {wanted:g}: "
            f"set slide.mpp to {l0_mpp:g} or more, or leave this slide out"
        )
    view = min(finer, key=lambda view: (ratios[view], view.factor))
    return replace(view, scale=(ratios[view], ratios[view]))


def picture_view(sizes: list[View], width: int, height: int) -> View:
    """The coarsest size that is fine enough for a picture of the whole in so many pixels."""
    fine = [view for view in sizes if view.extent[0] >= width * 0.99 and view.extent[1] >= height * 0.99]
    view = min(fine or sizes[:1], key=lambda view: (view.extent[0], view.factor))
    return replace(view, scale=(view.extent[0] / width, view.extent[1] / height))


def extent_of(view: View) -> tuple[int, int]:
    """Pixels of the view, (x, y); a last pixel that is not whole does not count."""
    x, y = (math.floor(length / scale + 1e-6) for length, scale in zip(view.extent, view.scale, strict=True))
    return x, y
