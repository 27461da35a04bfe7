"""Filters that drop examples by the size of their (first) picture and captions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from aced.bounds import NonNegativeInt, NonNegativeOrInfinite, PositiveInt
from aced.config import Checked, ConfigError, MayChange
from aced.data.images.decode import picture_size


@dataclasses.dataclass(frozen=True)
class FilterConfig(Checked):
    """Limits on the examples that are used; 0: no limit. Captions are filtered one by one."""

    min_side: NonNegativeInt = 0  # pixels of the shorter side
    # Longer side / shorter side; users of img2dataset often choose 3.
    max_aspect: NonNegativeOrInfinite = 0.0
    min_chars: NonNegativeInt = 0  # characters of a caption, without space around it
    max_chars: NonNegativeInt = 0
    min_words: NonNegativeInt = 0  # words of a caption, separated by space
    max_words: NonNegativeInt = 0
    # The run stops when this many examples in a row are left out for one row of a batch, since the
    # filters then pass almost nothing.
    max_in_a_row: MayChange[PositiveInt] = 10_000

    def _check(self) -> None:
        if 0 < self.max_aspect < 1:
            raise ConfigError("data.filters.max_aspect is longer / shorter side, at least 1.")
        for what in ("chars", "words"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if most and least > most:
                raise ConfigError(f"data.filters.min_{what} = {least} > max_{what} = {most}.")

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons for which these filters can drop an example."""
        limits = {
            "side": (self.min_side,),
            "aspect": (self.max_aspect,),
            "caption": (self.min_chars, self.max_chars, self.min_words, self.max_words),
        }
        return tuple(name for name, values in limits.items() if any(values))

    def reason(self, image: bytes | np.ndarray) -> str:
        """The reason to drop this picture, one of `reasons`, or "". Reads only the header.

        Raises:
            DecodeError: the data are not a picture.
        """
        if not self.min_side and not self.max_aspect:
            return ""
        sides = image.shape[:2] if isinstance(image, np.ndarray) else picture_size(image)
        short, long = sorted(sides)
        if short < self.min_side:
            return "side"
        return "aspect" if self.max_aspect and long > self.max_aspect * short else ""

    def captions(self, texts: Sequence[str]) -> tuple[int, ...]:
        """The indices of the `texts` that are within the limits."""
        return tuple(i for i, text in enumerate(texts) if self._fits(text))

    def _fits(self, text: str) -> bool:
        chars, words = len(text.strip()), len(text.split())
        fits_chars = self.min_chars <= chars <= (self.max_chars or chars)
        return fits_chars and self.min_words <= words <= (self.max_words or words)
