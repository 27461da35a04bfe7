"""Normalisation and 64-bit hashes of sentences, and uniform samples of the distinct ones."""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32, UInt64


def normalise(text: str) -> str:
    """Unicode NFC with white space squeezed and stripped; case is left to the tokenizer."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def hashes(sentences: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """The first 64 bits of BLAKE2b of each sentence's UTF-8.

    The probability of a collision among n distinct sentences is n^2 / 2^65: one in 37 for 10^9.
    """
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sentences)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def shuffled(hashes: UInt64[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """A seeded permutation of the 64-bit numbers, which puts `hashes` into a random order.

    It applies the finalizer of SplitMix64 (Steele et al., OOPSLA 2014) twice, with the seed in
    between.
    """
    start = _mix(np.array([seed], np.uint64))
    return _mix(_mix(hashes) ^ start)


def _mix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def halves(hashes: UInt64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n 2"]:
    """The upper and lower 32 bits, since JAX has no 64-bit integers by default."""
    return np.stack([hashes >> np.uint64(32), hashes & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)


def whole(halves: UInt32[np.ndarray, "*dims 2"]) -> UInt64[np.ndarray, "*dims"]:
    """The inverse of `halves`."""
    upper, lower = (halves[..., i].astype(np.uint64) for i in (0, 1))
    return upper << np.uint64(32) | lower


class Sample:
    """A uniform sample of up to `size` distinct sentences of a stream, in random order.

    It keeps the sentences with the smallest seeded hashes. So it does not depend on the order of
    the stream or on repetitions, and the samples of parts merge to the sample of the whole.
    """

    def __init__(self, size: int, seed: int):
        self._size, self._seed = size, seed
        self._keys = np.empty(0, np.uint64)  # ascending
        self._hashes = np.empty(0, np.uint64)
        self._waiting: list[np.ndarray] = []

    def add(self, hashes: UInt64[np.ndarray, " n"]) -> None:
        """Adds the hashes of sentences to the stream."""
        if len(self._keys) == self._size:  # drops most of a long stream early
            hashes = hashes[shuffled(hashes, self._seed) < self._keys[-1]]
        self._waiting.append(hashes)
        if sum(map(len, self._waiting)) > max(self._size, 1 << 16):
            self._merge()

    def hashes(self) -> UInt64[np.ndarray, " n"]:
        """The sample; its first r hashes are the sample of size r."""
        self._merge()
        return self._hashes

    def _merge(self) -> None:
        candidates = np.unique(np.concatenate([self._hashes, *self._waiting]))
        keys = shuffled(candidates, self._seed)
        order = np.argsort(keys)[: self._size]
        self._keys, self._hashes, self._waiting = keys[order], candidates[order], []
