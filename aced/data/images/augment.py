"""Random crops and flips of pictures.

DIME-FM (arXiv 2303.18232) draws new ones for the student every time, and its teacher sees whole
pictures. Stored augmentations (after DataCompDR, arXiv 2311.17049) are k views of each picture,
whose parameters follow from the example's id and the number of the view alone. So a cache has the
embeddings of all of them, and no parameters or pixels are stored.
"""

import dataclasses
import math
from typing import Annotated

import numpy as np
from annotated_types import Interval
from jaxtyping import UInt8

from aced.bounds import Fraction, PositiveFraction
from aced.config import Checked, ConfigError
from aced.data.draws import VIEW, Draws

Box = tuple[int, int, int, int]  # left, upper, right, lower pixel; the last two are outside
_Ratio = Annotated[float, Interval(ge=1e-3, le=1e3)]
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class AugmentConfig(Checked):
    """Random changes of a picture before it is resized; none by default."""

    # Part of the picture's area that a random crop keeps, from least to most; (1, 1): no crop.
    # DIME-FM: 0.08 to 1
    crop_area: tuple[PositiveFraction, PositiveFraction] = (1.0, 1.0)
    # Ratio of the crop's width to its height, from least to most.
    crop_ratio: tuple[_Ratio, _Ratio] = (3 / 4, 4 / 3)
    flip: Fraction = 0.0  # probability that left and right are exchanged; DIME-FM: 0.5

    def _check(self) -> None:
        for name in ("crop_area", "crop_ratio"):
            least, most = getattr(self, name)
            if least > most:
                raise ConfigError(f"{name} must be a range, got {least} > {most}.")

    @property
    def crops(self) -> bool:
        """Whether pictures are cropped at all."""
        return self.crop_area != (1.0, 1.0)

    @property
    def changes(self) -> bool:
        """Whether pictures are changed at all."""
        return self.crops or self.flip > 0


def check_single(stored_ones: int, own: AugmentConfig) -> None:
    """Raises a ConfigError if pictures have stored augmentations and others of the method's own."""
    if stored_ones and own != AugmentConfig():
        raise ConfigError(
            "data.augmentations and the method's augment both change the pictures; set "
            "method.augment.crop_area to (1, 1) and .flip to 0, or data.augmentations to 0."
        )


def random_box(width: int, height: int, config: AugmentConfig, rng: Draws) -> Box:
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
            left, upper = rng.below(width - w + 1), rng.below(height - h + 1)
            return left, upper, left + w, upper + h
    w, h = width, height
    if width / height < low:
        h = min(height, max(1, round(width / low)))
    elif width / height > high:
        w = min(width, max(1, round(height * high)))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def augment(
    image: UInt8[np.ndarray, "h w 3"], config: AugmentConfig, rng: Draws
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns a random part of `image`, perhaps mirrored: a view of it, not a copy."""
    if config.crops:
        left, upper, right, lower = random_box(image.shape[1], image.shape[0], config, rng)
        image = image[upper:lower, left:right]
    return image[:, ::-1] if config.flip and rng.random() < config.flip else image


def stored(
    image: UInt8[np.ndarray, "h w 3"], config: AugmentConfig, index: int, number: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Stored augmentation `number` of a picture of example `index`: the same in every run.

    The two pictures of an example are changed by the same random numbers.
    """
    return augment(image, config, Draws(number, VIEW, index))
