"""Random crops and flips of the student's pictures (DIME-FM, arXiv 2303.18232).

Selection and caches use no augmentation, because cached embeddings must stay valid.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import UInt8

from aced.config import ConfigError

Box = tuple[int, int, int, int]  # left, upper, right, lower pixel; the last two are outside
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to a picture before it is resized. The default is nothing."""

    # Part of the picture's area that a random crop keeps, from least to most; (1, 1): no crop.
    # DIME-FM: 0.08 to 1
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of the crop's width to its height
    flip: float = 0.0  # how often left and right are exchanged; DIME-FM: 0.5

    def __post_init__(self):
        least, most = self.crop_area
        if not 0 < least <= most <= 1:
            raise ConfigError(f"crop_area must be two numbers in (0, 1], got {self.crop_area}.")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ConfigError(f"crop_ratio must be two positive numbers, got {self.crop_ratio}.")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip must be in [0, 1], got {self.flip}.")

    @property
    def crops(self) -> bool:
        """Whether pictures are cropped at all."""
        return self.crop_area != (1.0, 1.0)


def random_box(width: int, height: int, config: AugmentConfig, rng: np.random.Generator) -> Box:
    """A random part of a picture, by the rule of torchvision's RandomResizedCrop.

    The area and the logarithm of the aspect ratio are uniform in their ranges. After 10 boxes that
    do not fit into the picture, the box is the centre with the nearest allowed ratio.
    """
    low, high = config.crop_ratio
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*config.crop_area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = width, height
    if width / height < low:
        h = min(height, max(1, round(width / low)))
    elif width / height > high:
        w = min(width, max(1, round(height * high)))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def augment(
    image: UInt8[np.ndarray, "h w 3"], config: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns a random part of `image`, perhaps mirrored: a view of it, not a copy."""
    if config.crops:
        left, upper, right, lower = random_box(image.shape[1], image.shape[0], config, rng)
        image = image[upper:lower, left:right]
    return image[:, ::-1] if config.flip and rng.random() < config.flip else image
