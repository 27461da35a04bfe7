"""Resizes pictures to squares, in uint8; the towers normalise."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from aced.config import Checked

# Aspect ratio up to which "crop" resizes whole pictures: the whole of a line of pixels takes GBs.
LONGEST_WHOLE = 64
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

    "crop" gives the pixels of torchvision's Resize(resolution), CenterCrop(resolution) on a Pillow
    image (OpenAI's and open_clip's preprocessing), bit for bit up to an aspect ratio of
    `LONGEST_WHOLE`; beyond that it is `resize_middle`.
    """
    height, width = image.shape[:2]
    if height == width == resolution:
        return image
    if config.mode == "squash":
        method = _FILTERS[config.interpolation]
        return np.asarray(Image.fromarray(image).resize((resolution, resolution), method))
    if max(height, width) > LONGEST_WHOLE * min(height, width):
        return resize_middle(image, resolution, config)
    return _resize_and_cut(image, resolution, config)


def resize_middle(
    image: UInt8[np.ndarray, "h w 3"], resolution: int, config: ResizeConfig
) -> UInt8[np.ndarray, "r r 3"]:
    """Returns the "crop" of a picture from its middle alone: long ones cost no more than squares.

    Pixels may differ from those of the whole by a few grey levels, since Pillow stores the
    edges of the middle, fractions of a pixel, in float32.
    """
    height, width = image.shape[:2]
    new_height, new_width, top, left = _geometry(height, width, resolution, config)
    box = (
        left * width / new_width,
        top * height / new_height,
        (left + resolution) * width / new_width,
        (top + resolution) * height / new_height,
    )
    size, method = (resolution, resolution), _FILTERS[config.interpolation]
    return np.asarray(Image.fromarray(image).resize(size, method, box=box))


def _resize_and_cut(
    image: UInt8[np.ndarray, "h w 3"], resolution: int, config: ResizeConfig
) -> UInt8[np.ndarray, "r r 3"]:
    """Resizes the whole picture and cuts the middle out.

    Pillow resizes rows first, and then columns. The two are called one by one here, so that columns
    beside the middle are left out in between.
    """
    height, width = image.shape[:2]
    new_height, new_width, top, left = _geometry(height, width, resolution, config)
    method = _FILTERS[config.interpolation]
    picture = Image.fromarray(image).resize((new_width, height), method)
    picture = picture.crop((left, 0, left + resolution, height))
    picture = picture.resize((resolution, new_height), method)
    return np.asarray(picture.crop((0, top, resolution, top + resolution)))


def _geometry(
    height: int, width: int, resolution: int, config: ResizeConfig
) -> tuple[int, int, int, int]:
    """Height and width of the whole resized picture, and the first row and column of its middle."""
    short = min(height, width)
    # torchvision and transformers truncate the longer side's new length.
    new_height, new_width = (int(resolution * side / short) for side in (height, width))
    margins = (config.margin_of(side, resolution) for side in (new_height, new_width))
    return new_height, new_width, *margins
