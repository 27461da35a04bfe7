"""Encoded pictures to uint8 RGB arrays of one size. No float: normalising is the tower's work."""

import dataclasses
import io
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

# `decode` has a limit of its own, per call; Pillow's warns through the process-wide filters.
Image.MAX_IMAGE_PIXELS = None
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


class DecodeError(ValueError):
    """A picture that cannot be read; the message says why."""


@dataclasses.dataclass(frozen=True)
class ResizeConfig:
    """How a picture of any shape becomes a square. Belongs to a model, as its tokenizer does.

    Both modes use Pillow's filters, whose support grows with the reduction (anti-aliased).
    """

    # "squash": both sides to the resolution, the aspect ratio is lost (SigLIP).
    # "crop": the shorter side to the resolution, then the middle of the longer one (CLIP).
    mode: Literal["squash", "crop"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


def decode(data: bytes, max_pixels: int = 89_478_485) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes any format that Pillow knows to RGB.

    The EXIF orientation is applied, transparency is laid on white, 16-bit greys are scaled to 8.

    Args:
        data: the encoded picture.
        max_pixels: refuse larger pictures before decoding them: a small file can unfold to
            gigabytes. The default is Pillow's own.

    Raises:
        DecodeError: the picture is broken, of an unknown format, or too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise DecodeError(
                    f"{width} x {height} pixels are more than data.max_pixels = {max_pixels}"
                )
            picture.load()
            return np.asarray(_to_rgb(ImageOps.exif_transpose(picture)))
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers let out whatever a broken file provokes
        raise DecodeError(f"not a readable picture: {type(error).__name__}: {error}") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65_535)
        return Image.fromarray(np.round(grey / 257).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise DecodeError("floating-point pictures have no defined range; store 8 or 16 bits")
    if picture.mode in _ALPHA_MODES or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def resize(
    image: UInt8[np.ndarray, "h w 3"], resolution: int, config: ResizeConfig
) -> UInt8[np.ndarray, "r r 3"]:
    """Returns `image` as a square of `resolution` pixels a side; the input itself if it is one.

    "crop" gives what torchvision's Resize(resolution), CenterCrop(resolution) gives on a Pillow
    image (OpenAI's and open_clip's preprocessing), but computes the middle alone: a picture of
    20 x 13,000 pixels costs no more than a square one. It may differ by one grey level, since
    Pillow holds the box in float32.
    """
    height, width = image.shape[:2]
    if height == width == resolution:
        return image
    box = None
    if config.mode == "crop":
        short = min(height, width)
        # torchvision truncates the longer side's new length and rounds the margin.
        new_width = int(resolution * width / short)
        new_height = int(resolution * height / short)
        left = round((new_width - resolution) / 2)
        top = round((new_height - resolution) / 2)
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
