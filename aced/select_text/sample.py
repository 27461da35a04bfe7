"""A uniform sample of the distinct sentences of a stream: those whose seeded hashes are smallest.

However the stream is cut, ordered or repeated, the sample is the same, and samples of its parts
merge to the sample of the whole.
"""

import numpy as np
from jaxtyping import UInt64

from aced.select_text.sentences import shuffled


class Sample:
    """The hashes of up to `size` distinct sentences, in their random order."""

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._keys = np.empty(0, np.uint64)  # ascending
        self._hashes = np.empty(0, np.uint64)
        self._waiting: list[np.ndarray] = []

    def add(self, hashes: UInt64[np.ndarray, " n"]) -> None:
        """Offers sentences, by their hashes."""
        if len(self._keys) == self._size:  # most of a long stream ends here
            hashes = hashes[shuffled(hashes, self._seed) < self._keys[-1]]
        self._waiting.append(hashes)
        if sum(map(len, self._waiting)) > max(self._size, 1 << 16):
            self._settle()

    def hashes(self) -> UInt64[np.ndarray, " n"]:
        """The sample; its first r are the sample of size r."""
        self._settle()
        return self._hashes

    def _settle(self) -> None:
        found = np.unique(np.concatenate([self._hashes, *self._waiting]))
        keys = shuffled(found, self._seed)
        order = np.argsort(keys)[: self._size]
        self._keys, self._hashes, self._waiting = keys[order], found[order], []
