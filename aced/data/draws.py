"""Reproducible random choices, from Philox's raw output: numpy keeps nothing else stable."""

import bisect
import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# The streams of the input's choices: each is for one purpose, so that no choice depends on another.
CAPTION, REPLACEMENT, AUGMENTATION, VIEW, ANSWER, CROP = range(6)


class Draws:
    """A stream of random choices, determined by (seed, stream, index)."""

    def __init__(self, seed: int, stream: int, index: int):
        key = np.array([seed & (2**64 - 1), stream], np.uint64)
        self._philox = np.random.Philox(key=key, counter=np.array([0, index, 0, 0], np.uint64))

    def raw(self, count: int) -> list[int]:
        """`count` random 64-bit integers."""
        return self._philox.random_raw(count).tolist()

    def below(self, n: int) -> int:
        """A random one of 0, ..., n - 1, with a bias of n / 2^64."""
        return self.raw(1)[0] % n

    def weighted(self, weights: Sequence[float]) -> int:
        """A random index in `weights`, with a probability in proportion to its weight."""
        ends = list(itertools.accumulate(weights))
        return bisect.bisect_right(ends, self.random() * ends[-1])

    def random(self) -> float:
        """A random number in [0, 1), a multiple of 2^-53."""
        return (self.raw(1)[0] >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """A random number from `low` to `high`."""
        return low + (high - low) * self.random()

    def coin(self) -> bool:
        """True or False, each half of the time."""
        return bool(self.below(2))

    def pick(self, options: Sequence[T]) -> T:
        """A random one of `options`."""
        return options[self.below(len(options))]

    def other(self, options: Sequence[T], *excluded: T) -> T:
        """A random one of `options` without `excluded`."""
        return self.pick([option for option in options if option not in excluded])
