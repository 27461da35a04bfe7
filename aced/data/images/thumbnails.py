"""Small copies of pictures, stored beside them for views of low resolution."""

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

QUALITY = 90
_MAX_SIDE = 65_500  # of a JPEG


def make_thumbnail(pixels: UInt8[np.ndarray, "h w 3"], side: int) -> bytes | None:
    """Returns the whole picture with a shorter side of `side` pixels as a JPEG.

    Args:
        pixels: the picture, upright.
        side: the shorter side's new length; the other one keeps the aspect ratio.

    Returns:
        A JPEG of quality 90 with colours in full resolution; None if the picture is no larger
        than that, or its thumbnail would be too long for a JPEG.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= side:
        return None
    size = round(width * side / short), round(height * side / short)
    if max(size) > _MAX_SIDE:
        return None
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return simplejpeg.encode_jpeg(np.asarray(small), quality=QUALITY, colorsubsampling="444")
