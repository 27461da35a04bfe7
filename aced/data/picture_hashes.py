"""SPLIT.hashes: which picture each record has, to compare data sets without reading their records.

Of each record the first 8 bytes of its picture's sha256, in the order of the records; zeros where
it has no picture. Of examples about two pictures it is the first one. Equal bytes are equal
pictures; a copy at another size or quality is another picture here. Of 10^8 pictures and 10^4
others, all different, two have the same 8 bytes with a probability of 5 in 10^8.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt64

DIGEST = "hashes_sha256"  # of a shard's part of the file, in `dataset.json`
_TYPE = np.dtype("<u8")


def file_name(split: str) -> str:
    """Of a split's hashes, in the folder of its data set."""
    return f"{split}.hashes"


def of(sha256: bytes | None) -> bytes:
    """The 8 bytes of the picture with this digest; None: of a record without a picture."""
    return bytes(_TYPE.itemsize) if sha256 is None else sha256[: _TYPE.itemsize]


def read(
    file: str | os.PathLike, parts: Sequence[tuple[int, str]]
) -> Iterator[UInt64[np.ndarray, " n"]]:
    """The hashes in `file`, part by part.

    Args:
        file: local.
        parts: number of records and sha256 of each.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: it is not as `parts` say.
    """
    with open(file, "rb") as opened:
        for number, (count, digest) in enumerate(parts):
            data = opened.read(count * _TYPE.itemsize)
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"the part of shard {number} is damaged")
            yield np.frombuffer(data, _TYPE).astype(np.uint64)
        if opened.read(1):
            raise ValueError("there is more in it than the shards have records")
