"""SPLIT.hashes: the hash of each record's picture, to compare data sets without their records.

Each hash is the first 8 bytes of the sha256 of the record's (first) picture, or zeros without a
picture. A copy at another size or quality has another hash. For 10^8 pictures and 10^4 others, all
different, the probability of a collision is 5 in 10^8.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt64

DIGEST = "hashes_sha256"  # key in `dataset.json`: sha256 of a shard's part of the file
_TYPE = np.dtype("<u8")


def file_name(split: str) -> str:
    """Name of the file with a split's hashes."""
    return f"{split}.hashes"


def of(sha256: bytes | None) -> bytes:
    """The 8 bytes of a picture with this digest, or of a record without a picture (None)."""
    return bytes(_TYPE.itemsize) if sha256 is None else sha256[: _TYPE.itemsize]


def read(
    file: str | os.PathLike, parts: Sequence[tuple[int, str]]
) -> Iterator[UInt64[np.ndarray, " n"]]:
    """The hashes in a local file, part by part; `parts` gives the records and the sha256 of each.

    Raises:
        OSError: the file cannot be opened or read.
        ValueError: the file does not match `parts`.
    """
    with open(file, "rb") as opened:
        for number, (count, digest) in enumerate(parts):
            data = opened.read(count * _TYPE.itemsize)
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"the part of shard {number} is damaged")
            yield np.frombuffer(data, _TYPE).astype(np.uint64)
        if opened.read(1):
            raise ValueError("there is more in it than the shards have records")
