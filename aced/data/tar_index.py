"""The index of a set of WebDataset tars: which bytes of which tar are which example.

A tar can only be read from front to back; with this index, any example is one read. It is built
once, by threads, and kept in a file: beside the tars, for every machine, or else in a folder of
this machine. It is mapped, not loaded, so that 10^8 examples cost no memory. It holds the size and
the stamp (time of change, or ETag) of every tar, and is built again when one of them differs.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from aced.data import storage, tar_format
from aced.data.records import DatasetError
from aced.data.storage import File
from aced.data.tar_format import Damage

MAGIC = b"aced-tar-index-1"
PICTURES = ("jpg", "jpeg", "png", "webp")
_KINDS = dict.fromkeys(PICTURES, "image") | {"txt": "text", "json": "json"}
# Where parts of an example are in its tar; start -1: there is none. `key` is a place in the keys;
# that of a damaged example is its name and the reason, and `damaged` is 1.
ENTRY = np.dtype(
    [("tar", "<i4"), ("damaged", "<i4"), ("key", "<i8"), ("key_size", "<i8")]
    + [(f"{kind}{what}", "<i8") for kind in ("image", "text", "json") for what in ("", "_size")]
)
_HEADER = struct.Struct("<16sQ")  # MAGIC, bytes of the JSON that follows
_THREADS = 16
# Read at once while an index is built: on a disk the few small files between two pictures; from a
# store everything, since a request takes as long as many megabytes.
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 14, 1 << 23


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The examples of a set of tars, in order."""

    entries: np.ndarray  # of ENTRY, mapped from the index's file
    keys: memoryview  # the bytes of all keys
    digest: str  # of all headers of all tars: the same for every copy of them

    def key(self, entry: np.void) -> str:
        """The name of an example without its ending; of a damaged one, with the reason."""
        start = int(entry["key"])
        return bytes(self.keys[start : start + int(entry["key_size"])]).decode("utf-8", "replace")


def load(files: Sequence[File], cache_folder: str) -> TarIndex:
    """The index of these tars: the one that is kept, or else a new one, which then is.

    Args:
        files: the tars, in order.
        cache_folder: a local folder for the index where there is no writing beside the tars.

    Raises:
        DatasetError: a file is no tar, or is compressed.
        StorageError: a tar cannot be read.
    """
    paths = [file.path for file in files]
    names = storage.names(paths)
    table = [[name, file.size, file.stamp] for name, file in zip(names, files, strict=True)]
    # Another set of tars in the same folder has an index of its own.
    file_name = f"INDEX-{_sha256(*names)[:8]}"
    beside = f"{storage.common_folder(paths)}/{file_name}"
    own = os.path.join(os.path.expanduser(cache_folder), f"{file_name}-{_sha256(*paths)[:8]}")
    for place in (own, beside) if storage.is_remote(beside) else (beside, own):
        if (index := _read(place, table, own)) is not None:
            return index
    logging.info("Indexing %d tars, once; the index will be kept in %s", len(files), beside)
    data = _build(files, table)
    for place in (beside, own):
        try:
            storage.write(place, data)
        except Exception as error:  # stores raise errors of many kinds, and none is worth a run
            logging.warning("The index cannot be kept in %s: %s", place, error)
            continue
        if (index := _read(place, table, own)) is not None:
            return index
    return _parse(memoryview(data), table)


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(place: str, table: list, own: str) -> TarIndex | None:
    """The index in `place` if it is there, whole, and of these tars."""
    try:
        if storage.is_remote(place):
            if (file := storage.stat(place)) is None:
                return None
            storage.write(own, storage.read(place, 0, file.size))
            place = own
        with open(place, "rb") as local:
            mapped = memoryview(mmap.mmap(local.fileno(), 0, access=mmap.ACCESS_READ))
        return _parse(mapped, table)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("The index %s is not used and built again: %s", place, error)
        return None


def _parse(data: memoryview, table: list) -> TarIndex:
    """The index in `data`.

    Raises:
        ValueError: it is not whole, or of other tars.
    """
    if len(data) < _HEADER.size:
        raise ValueError("it is cut off")
    magic, size = _HEADER.unpack_from(data)
    if magic != MAGIC or size > len(data):
        raise ValueError("it is no index of this version")
    header = json.loads(bytes(data[_HEADER.size : _HEADER.size + size]))
    if header["tars"] != table:
        raise ValueError("tars have changed since")
    count, start = header["entries"], _HEADER.size + size
    keys = start + count * ENTRY.itemsize
    if len(data) != keys + header["key_bytes"]:
        raise ValueError("it is cut off")
    entries = np.frombuffer(data, ENTRY, count, start)
    return TarIndex(entries, data[keys:], str(header["digest"]))


def _build(files: Sequence[File], table: list) -> bytes:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(_index_tar, range(len(files)), files))
    keys, base = b"".join(part[1] for part in parts), 0
    for entries, blob, _ in parts:
        entries["key"] += base
        base += len(blob)
    entries = np.concatenate([part[0] for part in parts])
    digest = _sha256(*(f"{row[0]} {part[2]}" for row, part in zip(table, parts, strict=True)))
    header = {"tars": table, "entries": len(entries), "key_bytes": len(keys), "digest": digest}
    text = json.dumps(header).encode()
    # Arrays are read faster from where a number may begin.
    text += b" " * (-(_HEADER.size + len(text)) % 64)
    return _HEADER.pack(MAGIC, len(text)) + text + entries.tobytes() + keys


def _index_tar(number: int, file: File) -> tuple[np.ndarray, bytes, str]:
    """The entries of one tar, its keys, and the hash of its headers."""
    digest, rows, keys = hashlib.sha256(), [], bytearray()
    window = _Window(file)
    try:
        for key, damage, parts in _examples(tar_format.members(window.read, file.size, digest)):
            name = (key if damage is None else f"{key}: {damage}").encode()
            places = [x for kind in ("image", "text", "json") for x in parts.get(kind, (-1, 0))]
            rows.append((number, damage is not None, len(keys), len(name), *places))
            keys += name
    except tar_format.TarError as error:
        raise DatasetError(f"{file.path} cannot be used: {error}.") from error
    if not rows:
        logging.warning("%s holds no example.", file.path)
    return np.array(rows, ENTRY), bytes(keys), digest.hexdigest()


def _examples(members: Iterator) -> Iterator[tuple[str, str | None, dict[str, tuple[int, int]]]]:
    """Key, damage if any, and parts: what stands together under one name up to its first dot.

    A damaged example is one too: it is met in training, and counted and skipped there like any
    record that cannot be read. The captions of a picture that was lost belong to the damage.
    """
    key, parts, damage, debris = "", {}, None, None
    for member in members:
        if isinstance(member, Damage):
            yield from _finished(key, damage, parts)
            key, parts, damage, debris = member.name, {}, member.reason, None
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        stem = f"{folder}/{stem}" if folder else stem
        kind = _KINDS.get(ending.lower())
        if kind is None:
            continue
        if damage is not None and kind != "image" and debris in (None, stem):
            debris = stem
            continue
        if stem != key or kind in parts or damage is not None:
            yield from _finished(key, damage, parts)
            key, parts, damage = stem, {}, None
        parts[kind] = member.start, member.size
    yield from _finished(key, damage, parts)


def _finished(key: str, damage: str | None, parts: dict) -> Iterator[tuple]:
    if damage is not None:
        yield key, damage, {}
    elif parts and "image" not in parts:
        yield key, f"it has no picture ({', '.join(PICTURES)})", {}
    elif parts:
        yield key, None, parts


class _Window:
    """The bytes of a file from where they were last asked for on."""

    def __init__(self, file: File):
        self._path = file.path
        self._size = _REMOTE_WINDOW if storage.is_remote(file.path) else _LOCAL_WINDOW
        self._start, self._data = 0, b""

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on."""
        if not self._start <= start <= start + length <= self._start + len(self._data):
            self._start, self._data = (
                start,
                storage.read(self._path, start, max(length, self._size)),
            )
        return self._data[start - self._start : start - self._start + length]
