"""The index of a set of WebDataset tars: the position of every example.

A tar can only be read from front to back; with this index, any example is one read. It is built
once and kept in a file: beside the tars, for all machines, or else in a local folder. It is
memory-mapped, so that 10^8 examples cost no memory; building takes twice its size, which is 120
bytes and the name per example. It holds the size and the stamp (time of change, or ETag) of every
tar, and is built again when one of them changes or its checksum is wrong. Comparing the checksum
when a run starts reads the index once, at about 3 GB/s on one core.

During the build each tar has its own file of the same form. So a killed build is resumed, and the
hosts of a pod, which all start at once, share the tars without communication: each takes them in
its own random order and skips those that are done.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from aced.data.sources.tar_scan import ENTRY, scan
from aced.files import storage
from aced.files.storage import File

EXAMPLES = "aced-tar-index-3"  # version of the definition of an example; part of fingerprints
_MAGIC = b"aced-tar-index-5"  # version of the file format
_HEADER = struct.Struct("<16sQQ")  # _MAGIC, CRC-32 of all that follows, bytes of the JSON
_CHECKED_FROM = 24  # after the CRC-32
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The examples of a set of tars, in order."""

    entries: np.ndarray  # of ENTRY, mapped from the index's file
    keys: memoryview  # the bytes of all keys
    digest: str  # of all headers of all tars, the same for every copy

    def key(self, entry: np.void) -> str:
        """The name of an example without its ending, or of a damaged one with the reason."""
        start = int(entry["key"])
        return bytes(self.keys[start : start + int(entry["key_size"])]).decode("utf-8", "replace")


def load(files: Sequence[File], cache_folder: str) -> TarIndex:
    """Loads the index of these tars, or builds it and stores it beside them.

    If their folder is not writable, the index is stored in the local folder `cache_folder`.

    Raises:
        DatasetError: a file is not a tar, or is compressed.
        StorageError: a tar cannot be read.
    """
    paths = [file.path for file in files]
    names = storage.names(paths)
    table = [[name, file.size, file.stamp] for name, file in zip(names, files, strict=True)]
    # Another set of tars in the same folder has another index.
    file_name = f"INDEX-{_sha256(*names)[:8]}"
    beside = f"{storage.common_folder(paths)}/{file_name}"
    own = os.path.join(os.path.expanduser(cache_folder), f"{file_name}-{_sha256(*paths)[:8]}")
    before = _state(beside)
    for place in (own, beside) if storage.is_remote(beside) else (beside, own):
        if (index := _read(place, table, own)) is not None:
            return index
    try:
        data = _build(files, table, (beside, own), before)
    except _MadeElsewhereError:
        index = load(files, cache_folder)
        _remove_parts(beside, own)  # this process may have written parts after their removal
        return index
    for place in (beside, own):
        if _keep(place, data) and (index := _read(place, table, own)) is not None:
            _remove_parts(beside, own)
            return index
    return _parse(memoryview(data), table)


class _MadeElsewhereError(Exception):
    """Another process has written the index meanwhile."""


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _parts(place: str) -> str:
    """The folder of the indices of single tars, while the index in `place` is built."""
    return f"{place}.parts"


def _remove_parts(*places: str) -> None:
    for place in places:
        storage.remove_folder(_parts(place))


def _state(place: str) -> File | None:
    """Size and stamp of the file `place`; None if it does not exist or cannot be read."""
    with contextlib.suppress(Exception):  # stores raise errors of many kinds
        return storage.stat(place)
    return None


def _keep(place: str, data: bytes | bytearray) -> bool:
    try:
        storage.write(place, data)
    except Exception as error:  # stores raise errors of many kinds; the index is optional
        logging.log_every_n_seconds(
            logging.WARNING, "The index cannot be kept in %s: %s", 60, place, error
        )
        return False
    return True


def _read(place: str, table: list, own: str) -> TarIndex | None:
    """The index in `place` (copied to `own` if remote), or None if that does not fit `table`."""
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
    except Exception as error:  # errors of the store or of damaged content
        logging.warning("The index %s is not used, and is built again: %s", place, error)
        return None


def _read_part(place: str, row: list) -> TarIndex | None:
    """The index of one tar, read into memory: mapping each would open too many files."""
    try:
        if (file := storage.stat(place)) is None:
            return None
        return _parse(memoryview(storage.read(place, 0, file.size)), [row])
    except Exception:  # as in `_read`; the tar is read instead
        return None


def _parse(data: memoryview, table: list) -> TarIndex:
    """Parses an index; a ValueError if it is damaged or belongs to other tars."""
    if len(data) < _HEADER.size:
        raise ValueError("it is cut off")
    magic, crc, size = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise ValueError("it is not an index of this version")
    if crc != zlib.crc32(data[_CHECKED_FROM:]):
        raise ValueError("its checksum does not match its content: it was cut off or changed")
    header = json.loads(bytes(data[_HEADER.size : _HEADER.size + size]))
    if header["tars"] != table:
        raise ValueError("tars have changed since")
    count, start = header["entries"], _HEADER.size + size
    keys = start + count * ENTRY.itemsize
    if len(data) != keys + header["key_bytes"]:
        raise ValueError("it is cut off")
    entries = np.frombuffer(data, ENTRY, count, start)
    return TarIndex(entries, data[keys:], str(header["digest"]))


def _build(
    files: Sequence[File], table: list, places: Sequence[str], before: File | None
) -> bytearray:
    """Builds the index from those of single tars, which are kept in the first writable place.

    Raises:
        _MadeElsewhereError: another process has replaced the index `before` in the first place.
    """
    logging.info("Indexing %d tars, once; the index will be kept in %s", len(files), places[0])

    def part(number: int) -> TarIndex:
        row = table[number]
        own_places = [f"{_parts(place)}/{_sha256(json.dumps(row))[:16]}" for place in places]
        for place in own_places:
            if (index := _read_part(place, row)) is not None:
                return index
        if _state(places[0]) not in (None, before):
            raise _MadeElsewhereError
        data = _pack([row], *scan(files[number]))
        any(_keep(place, data) for place in own_places)
        return _parse(memoryview(data), [row])

    order = np.random.default_rng().permutation(len(files)).tolist()
    parts = {}
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for number, index in zip(order, pool.map(part, order), strict=True):
            parts[number] = index
            logging.log_every_n_seconds(
                logging.INFO, "Indexed %d of %d tars", 30, len(parts), len(files)
            )
    return _join([parts[number] for number in range(len(files))], table)


def _join(parts: Sequence[TarIndex], table: list) -> bytearray:
    """Joins the indices of single tars, copying each only once, to bound the memory."""
    digest = _sha256(*(f"{row[0]} {part.digest}" for row, part in zip(table, parts, strict=True)))
    sizes = sum(len(part.entries) for part in parts), sum(len(part.keys) for part in parts)
    data, entries, keys = _laid_out(table, *sizes, digest)
    first = base = 0
    for number, part in enumerate(parts):
        own = entries[first : first + len(part.entries)]
        own[:] = part.entries
        own["tar"] = number
        own["key"] += base
        keys[base : base + len(part.keys)] = part.keys
        first, base = first + len(own), base + len(part.keys)
    return _checked(data)


def _pack(table: list, entries: np.ndarray, keys: bytes, digest: str) -> bytearray:
    data, to_entries, to_keys = _laid_out(table, len(entries), len(keys), digest)
    to_entries[:], to_keys[:] = entries, keys
    return _checked(data)


def _checked(data: bytearray) -> bytearray:
    """Writes the checksum into a complete index."""
    crc = zlib.crc32(memoryview(data)[_CHECKED_FROM:])
    struct.pack_into("<Q", data, len(_MAGIC), crc)
    return data


def _laid_out(
    table: list, entries: int, key_bytes: int, digest: str
) -> tuple[bytearray, np.ndarray, memoryview]:
    """An empty index, and views of its entries and keys."""
    header = {"tars": table, "entries": entries, "key_bytes": key_bytes, "digest": digest}
    text = json.dumps(header).encode()
    # Aligned arrays are read faster.
    text += b" " * (-(_HEADER.size + len(text)) % 64)
    start = _HEADER.size + len(text)
    data = bytearray(start + entries * ENTRY.itemsize + key_bytes)
    data[:start] = _HEADER.pack(_MAGIC, 0, len(text)) + text
    view = np.frombuffer(data, ENTRY, entries, start)
    return data, view, memoryview(data)[start + view.nbytes :]
