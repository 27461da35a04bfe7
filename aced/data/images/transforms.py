"""Resizes pictures to squares, in uint8; the towers normalise."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from aced.config import Checked

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclasses.dataclass(frozen=True)
class ResizeConfig(Checked):
    """How a model resizes pictures to squares, with Pillow's anti-aliasing filters."""

    # "squash": both sides to the resolution, the aspect ratio is lost (SigLIP).
    # "crop": the shorter side to the resolution, then the middle of the longer one (CLIP).
    mode: Literal["squash", "crop"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    # Rounding of the margin of "crop" where it is half a pixel: torchvision (OpenAI's CLIP,
    # open_clip) rounds to the nearest, transformers rounds down.
    margin: Literal["nearest", "down"] = "nearest"

    def margin_of(self, side: int, resolution: int) -> int:
        """Pixels that "crop" leaves before the middle of a resized side."""
        half = (side - resolution) / 2
        return round(half) if self.margin == "nearest" else int(half)


def resize(
    image: UInt8[np.ndarray, "h w 3"], resolution: int, config: ResizeConfig
) -> UInt8[np.ndarray, "r r 3"]:
    """Returns `image` as a square of `resolution` pixels a side; the input itself if it is one.

    "crop" gives the result of torchvision's Resize(resolution), CenterCrop(resolution) on a Pillow
    image (OpenAI's and open_clip's preprocessing), but computes the middle only, so that long
    pictures cost no more than square ones. It may differ by one grey level, since Pillow stores
    the box in float32.
    """
    height, width = image.shape[:2]
    if height == width == resolution:
        return image
    box = None
    if config.mode == "crop":
        short = min(height, width)
        # torchvision and transformers truncate the longer side's new length.
        new_width = int(resolution * width / short)
        new_height = int(resolution * height / short)
        left = config.margin_of(new_width, resolution)
        top = config.margin_of(new_height, resolution)
        box = (
            left * width / new_width,
            top * height / new_height,
            (left + resolution) * width / new_width,
            (top + resolution) * height / new_height,
        )
    picture = Image.fromarray(image)
    return np.asarray(
        picture.resize((resolution, resolution), _FILTERS[config.interpolation], box=box)
    )
