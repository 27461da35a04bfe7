"""A picture in 16 x 16 colours, which separates different images with one perceptual hash.

The hash sees coarse greys only: hearts of different colours have the same hash. Copies at another
size or quality hardly differ in a miniature, whose colours are in OKLab (B. Ottosson, "A perceptual
color space for image processing", 2020), a perceptually uniform space; the two chroma axes have
half the resolution, as in most JPEGs. The bounds are from benchmarks/results/near_duplicates.csv.
"""

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

# Bounds on the mean and largest distance in OKLab of copies; black to white is 1.
MEAN, LARGEST = 0.015, 0.04

_SIDE = 16
SIZE = _SIDE**2 + 2 * (_SIDE // 2) ** 2  # bytes
# Ambient light on the screen; white is 1. Without it, black and the next level are 0.07 apart.
_FLARE = 0.005
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def miniature(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Returns the `SIZE` bytes of a picture's miniature: 16 x 16 lightnesses, 8 x 8 x 2 colours."""
    # A gap of 3 moves edges: 0.56 of 550 copies of black icons were found, and 0.80 with 8.
    small = Image.fromarray(pixels).resize(
        (_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=8.0
    )
    lab = oklab(np.asarray(small))
    colours = lab[..., 1:].reshape(_SIDE // 2, 2, _SIDE // 2, 2, 2).mean((1, 3))
    # The chroma axes range from -0.4 to 0.4 within sRGB.
    values = np.concatenate([255 * lab[..., 0].ravel(), 128 + 255 * colours.ravel()])
    return np.clip(np.round(values), 0, 255).astype(np.uint8).tobytes()


def oklab(rgb: UInt8[np.ndarray, "*any 3"]) -> Float64[np.ndarray, "*any 3"]:
    """sRGB, with `_FLARE`, in OKLab: lightness (white is 1), green to red, blue to yellow."""
    x = rgb / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_LMS.T + _FLARE) @ _TO_OKLAB.T


def differences(
    some: UInt8[np.ndarray, "n size"], others: UInt8[np.ndarray, "n size"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """The mean and largest of the 256 distances in OKLab of each of n pairs of miniatures.

    Rounded to four digits, so that every machine gives the same values.
    """
    squares = np.square((some.astype(np.int32) - others) / 255)
    lightness, colours = np.split(squares, [_SIDE**2], axis=1)
    colours = colours.reshape(-1, _SIDE // 2, 1, _SIDE // 2, 1, 2).sum(-1)
    lightness = lightness.reshape(-1, _SIDE // 2, 2, _SIDE // 2, 2)
    distances = np.sqrt(lightness + colours).reshape(len(some), _SIDE**2)
    return np.round(distances.mean(1), 4), np.round(distances.max(1, initial=0), 4)


def are_copies(
    some: UInt8[np.ndarray, "n size"], others: UInt8[np.ndarray, "n size"]
) -> Bool[np.ndarray, " n"]:
    """Whether the miniatures of each pair are within the bounds of copies."""
    mean, largest = differences(some, others)
    return (mean <= MEAN) & (largest <= LARGEST)
