"""Random choices that are fixed for ever: numpy promises Philox's raw output, and no more."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """A stream of random choices, a function of (seed, stream, index) alone."""

    def __init__(self, seed: int, stream: int, index: int):
        key = np.array([seed & (2**64 - 1), stream], np.uint64)
        self._philox = np.random.Philox(key=key, counter=np.array([0, index, 0, 0], np.uint64))

    def raw(self, count: int) -> list[int]:
        """`count` random 64-bit integers."""
        return self._philox.random_raw(count).tolist()

    def below(self, n: int) -> int:
        """One of 0, ..., n - 1; uneven by n / 2^64."""
        return self.raw(1)[0] % n

    def coin(self) -> bool:
        """Heads or tails."""
        return bool(self.below(2))

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[self.below(len(options))]

    def other(self, options: Sequence[T], *excluded: T) -> T:
        """One of `options` that is none of `excluded`."""
        return self.pick([option for option in options if option not in excluded])
