"""What is in one tar: its examples, where their parts stand, and the hash of its headers."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from aced.data import storage, tar_format
from aced.data.records import DatasetError
from aced.data.storage import File
from aced.data.tar_format import Damage

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_KINDS = dict.fromkeys(PICTURES, "image") | {"txt": "text", "json": "json"}
# Where parts of an example are in its tar; start -1: there is none. `key` is a place in the keys;
# that of a damaged example is its name and the reason, and `damaged` is 1.
ENTRY = np.dtype(
    [("tar", "<i4"), ("damaged", "<i4"), ("key", "<i8"), ("key_size", "<i8")]
    + [(f"{kind}{what}", "<i8") for kind in ("image", "text", "json") for what in ("", "_size")]
)
# Read at once: on a disk the few small files between two pictures; from a store everything, since
# a request takes as long as many megabytes.
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 14, 1 << 23


def scan(file: File) -> tuple[np.ndarray, bytes, str]:
    """Reads a tar from front to back, but for what is in its pictures on a disk.

    Returns:
        Its entries, of ENTRY, as those of tar 0; the bytes of their keys; the hash of its headers.

    Raises:
        DatasetError: it is no tar, or is compressed.
        StorageError: it cannot be read.
    """
    digest, rows, keys = hashlib.sha256(), [], bytearray()
    window = _Window(file)
    try:
        for key, damage, parts in _examples(tar_format.members(window.read, file.size, digest)):
            name = (key if damage is None else f"{key}: {damage}").encode()
            places = [x for kind in ("image", "text", "json") for x in parts.get(kind, (-1, 0))]
            rows.append((0, damage is not None, len(keys), len(name), *places))
            keys += name
    except tar_format.TarError as error:
        raise DatasetError(f"{file.path} cannot be used: {error}.") from error
    if not rows:
        logging.warning("%s holds no example.", file.path)
    return np.array(rows, ENTRY), bytes(keys), digest.hexdigest()


def _examples(members: Iterator) -> Iterator[tuple[str, str | None, dict[str, tuple[int, int]]]]:
    """Key, damage if any, and parts: what stands together under one name up to its first dot.

    A damaged example is one too: it is met in training, and counted and skipped there like any
    record that cannot be read. The captions of a picture that was lost belong to the damage. So is
    a picture with a second dot in its name, unless it is another one of an example (KEY.seg.png).
    """
    key: str | None = ""  # None: nothing stands behind the last damage yet
    parts: dict[str, tuple[int, int]] = {}
    others: list[str] = []
    lost = False  # the damage before this example may have been its picture
    for member in members:
        if isinstance(member, Damage):
            yield from _finished(key, parts, others, lost=True)
            yield member.name, member.reason, {}
            key, parts, others = None, {}, []
            continue
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        stem = f"{folder}/{stem}" if folder else stem
        kind = _KINDS.get(ending.lower())
        if kind is None and _KINDS.get(ending.rpartition(".")[2].lower()) != "image":
            continue
        if stem != key or kind in parts:
            yield from _finished(key, parts, others, lost)
            lost = key is None
            key, parts, others = stem, {}, []
        if kind is None:
            others.append(member.name)
        else:
            parts[kind] = member.start, member.size
    yield from _finished(key, parts, others, lost)


def _finished(
    key: str | None, parts: dict[str, tuple[int, int]], others: Sequence[str], lost: bool
) -> Iterator[tuple]:
    if "image" in parts:
        yield key, None, parts
    elif others:
        for name in others:
            yield name, "a name ends at its first dot, so that this picture belongs to none", {}
    elif parts and not lost:
        yield key, f"it has no picture ({', '.join(PICTURES)})", {}


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
