"""Shards of a cache: ArrayRecord files with one entry per example, in order.

An entry is the example's id, then the rows of its image, or of each of its stored augmentations,
and of its captions, each as written by `precision.encode`. An example that could not be embedded
has no rows.
"""

import hashlib
import os
import pathlib
import re
import struct
from collections.abc import Sequence

import numpy as np
from array_record.python import array_record_module
from jaxtyping import UInt8

_ID = struct.Struct("<I")
MAX_SHARDS = 100_000  # five digits in a name
# A random read fetches this many bytes in any case, so a group, which is one item of the file's
# index, has as many entries as they hold. Embeddings do not compress.
_READ_BYTES = 32_768
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": _READ_BYTES}


def shard_name(shard: int, shards: int) -> str:
    """The file name of shard number `shard` of `shards`."""
    if not 0 <= shard < shards <= MAX_SHARDS:
        raise ValueError(f"shard {shard} of {shards}; at most {MAX_SHARDS} are allowed")
    return f"embeddings-{shard:05d}-of-{shards:05d}.array_record"


def is_ours(name: str) -> bool:
    """Whether a file of this name is a shard, complete or not, or the summary of one."""
    return (
        re.fullmatch(r"embeddings-\d{5}-of-\d{5}\.(array_record|json)(\.part)?", name) is not None
    )


class EntryWriter:
    """Writes one shard under a temporary name, until `close` renames it."""

    def __init__(self, path: pathlib.Path, entry_bytes: int):
        """Opens the file; `entry_bytes` is the approximate size of an entry."""
        self._path, self._part = path, path.with_name(path.name + ".part")
        options = f"group_size:{max(1, _READ_BYTES // entry_bytes)},uncompressed"
        self._writer = array_record_module.ArrayRecordWriter(str(self._part), options)

    def write(self, index: int, rows: UInt8[np.ndarray, "n bytes"]) -> None:
        """Adds the entry of example `index`, without rows if it could not be embedded."""
        self._writer.write(_ID.pack(index) + rows.tobytes())

    def close(self) -> dict[str, int | str]:
        """Completes the file; returns its `bytes` and `sha256`."""
        self._writer.close()
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self._part.replace(self._path)
        return {"bytes": self._path.stat().st_size, "sha256": digest}

    def discard(self) -> None:
        """Removes what was written."""
        self._writer.close()
        self._part.unlink()


class EntryReader:
    """Reads entries of one shard, many at once."""

    def __init__(self, path: pathlib.Path, first: int, count: int, row_bytes: int):
        """Opens the shard of examples `first` to `first + count`.

        Raises:
            ValueError: the file is damaged, or has another number of entries.
        """
        self._first, self._row_bytes = first, row_bytes
        try:
            self._reader = array_record_module.ArrayRecordReader(str(path), **_READER_OPTIONS)
            entries = self._reader.num_records()
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        if entries != count:
            raise ValueError(f"it has {entries} entries instead of {count}")

    def read(self, ids: Sequence[int]) -> list[UInt8[np.ndarray, "n bytes"]]:
        """The rows of the examples `ids`, in that order.

        Raises:
            ValueError: an entry is damaged, or of another example.
        """
        try:
            records = self._reader.read([i - self._first for i in ids])
        except (RuntimeError, IndexError) as error:
            raise ValueError(str(error)) from error
        entries = []
        for i, record in zip(ids, records, strict=True):
            if len(record) < _ID.size or (len(record) - _ID.size) % self._row_bytes:
                raise ValueError(
                    f"the entry of example {i} has {len(record)} bytes, which are not {_ID.size} "
                    f"and whole rows of {self._row_bytes}"
                )
            if (index := _ID.unpack_from(record)[0]) != i:
                raise ValueError(f"example {index} is in the place of example {i}")
            rows = np.frombuffer(record, np.uint8, offset=_ID.size)
            entries.append(rows.reshape(-1, self._row_bytes))
        return entries
