"""When two sentences are the same: their normal form, its 64-bit hash, and a random order."""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32, UInt64


def normalise(text: str) -> str:
    """Unicode NFC, with every run of white space squeezed to one space, and none at the ends.

    Case stays: whether it matters is for the tokenizer to say.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def hashes(sentences: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    """The first 64 bits of BLAKE2b of each sentence's UTF-8.

    Of n distinct sentences two are taken for one another with probability n^2 / 2^65: one in 37 for
    a thousand million.
    """
    digests = b"".join(hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sentences)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def shuffled(hashes: UInt64[np.ndarray, " n"], seed: int) -> UInt64[np.ndarray, " n"]:
    """Other 64-bit numbers in place of `hashes`, one for each: their order is random by `seed`.

    The finalizer of SplitMix64 (Steele et al., OOPSLA 2014), which is a permutation, twice with the
    seed in between.
    """
    start = _mix(np.array([seed], np.uint64))
    return _mix(_mix(hashes) ^ start)


def _mix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def halves(hashes: UInt64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n 2"]:
    """The upper and the lower 32 bits: devices have no 64-bit integers."""
    return np.stack([hashes >> np.uint64(32), hashes & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)


def whole(halves: UInt32[np.ndarray, "*dims 2"]) -> UInt64[np.ndarray, "*dims"]:
    """The inverse of `halves`."""
    upper, lower = (halves[..., i].astype(np.uint64) for i in (0, 1))
    return upper << np.uint64(32) | lower
