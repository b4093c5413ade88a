"""Colours as a slide's own profile means them, turned into sRGB."""

import io

import numpy as np
import PIL.Image
import PIL.ImageCms
from numpy.typing import NDArray

from pipeline.images.pyramid import SLIDE_ERRORS

PROFILE_ERRORS: tuple[type[Exception], ...] = (*SLIDE_ERRORS, PIL.ImageCms.PyCMSError)

NO_CACHE = 0x0040
"""Of lcms: without it, a transform may not be used by two threads."""


class ToSrgb:
    """The transform from a colour profile to sRGB, perceptual. Safe for many threads.

    Args:
        profile: ICC, as a file holds it.

    Raises:
        ValueError: there is none.
        PyCMSError: it is damaged, or not one of RGB.
    """

    def __init__(self, profile: bytes) -> None:
        if not profile:
            raise ValueError("no profile")
        own, srgb = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile)), PIL.ImageCms.createProfile("sRGB")
        flags = PIL.ImageCms.Flags(NO_CACHE)
        self._transform = PIL.ImageCms.buildTransform(own, srgb, "RGB", "RGB", flags=flags)

    def apply(self, pixels: NDArray[np.uint8]) -> None:
        """Turn the colours of pixels (height, width, 3) in place; white, which is glass or nothing, stays white."""
        white = (pixels == 255).all(axis=2)
        pixels[:] = np.asarray(PIL.ImageCms.applyTransform(PIL.Image.fromarray(pixels), self._transform))
        pixels[white] = 255
