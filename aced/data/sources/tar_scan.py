"""Scans a tar for its examples, the positions of their parts, and the hash of its headers."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from aced.data.records import DatasetError
from aced.data.sources import tar_format
from aced.data.sources.tar_format import Damage
from aced.files import storage
from aced.files.storage import File

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_KINDS = dict.fromkeys(PICTURES, "image")
_KINDS |= {"txt": "text", "json": "json", "cls": "cls", "npy": "npy", "syn.json": "syn"}
_PLACED = ("image", "text", "json", "cls", "npy", "syn")  # kinds, in the order of an entry
# Start and size of an example's parts in its tar; a start of -1 means that the part is missing.
# `key` is an offset in the keys; the key of a damaged example is its name and the reason.
ENTRY = np.dtype(
    [("tar", "<i4"), ("damaged", "<i4"), ("key", "<i8"), ("key_size", "<i8")]
    + [(f"{kind}{suffix}", "<i8") for kind in _PLACED for suffix in ("", "_size")]
)
# Bytes read at once: locally the few small files between two pictures; from a store everything,
# since a request takes as long as reading many megabytes.
_LOCAL_WINDOW, _REMOTE_WINDOW = 1 << 14, 1 << 23

_APART = (
    "other members of the same name are elsewhere in the tar, and it is unclear which belong "
    "together; write the tar again, with a unique name and adjacent members for each example"
)


@dataclasses.dataclass(slots=True)
class _Example:
    """Adjacent members with one name; the index has no parts of damaged examples."""

    key: str
    damage: str | None = None
    parts: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


def scan(file: File) -> tuple[np.ndarray, bytes, str]:
    """Reads a tar from front to back; pictures in local tars are skipped.

    Returns:
        Its entries (`ENTRY`) with tar number 0, the bytes of their keys, and the hash of its
        headers.

    Raises:
        DatasetError: the file is not a tar, or is compressed.
        StorageError: the file cannot be read.
    """
    digest, rows, keys = hashlib.sha256(), [], bytearray()
    window = _Window(file)
    try:
        examples = list(_examples(tar_format.members(window.read, file.size, digest)))
    except storage.StorageError:
        raise
    except Exception as error:  # any content that is not a tar
        reason = error if isinstance(error, tar_format.TarError) else repr(error)
        raise DatasetError(f"{file.path} cannot be used: {reason}.") from error
    for example in _joined(examples, file.path):
        name, parts = example.key, example.parts
        if is_damaged := example.damage is not None:
            name, parts = f"{name}: {example.damage}", {}
        name = name.encode()
        places = [x for kind in _PLACED for x in parts.get(kind, (-1, 0))]
        rows.append((0, is_damaged, len(keys), len(name), *places))
        keys += name
    if not rows:
        logging.warning("%s holds no example.", file.path)
    return np.array(rows, ENTRY), bytes(keys), digest.hexdigest()


def _joined(examples: list[_Example], path: str) -> list[_Example]:
    """Joins separated members of one name: in some tars all pictures come before all captions.

    Only unambiguous members are joined: one picture of this name in the tar, and one member of each
    other kind. Concatenated tars repeat names for different examples.
    """
    alone: dict[str, list[_Example]] = {}  # without a picture
    for example in examples:
        if example.parts and "image" not in example.parts:
            alone.setdefault(example.key, []).append(example)
    with_picture: dict[str, list[_Example]] = {}
    for example in examples:
        if "image" in example.parts and example.key in alone:
            with_picture.setdefault(example.key, []).append(example)
    gone, joined = set(), 0
    for key, pictures in with_picture.items():
        others = alone[key]
        kinds = [kind for example in (pictures[0], *others) for kind in example.parts]
        if len(pictures) == 1 and len(set(kinds)) == len(kinds):
            for other in others:
                pictures[0].parts |= other.parts
            gone |= set(map(id, others))
            joined += 1
        else:
            for example in others:
                example.damage = _APART
    if joined:
        logging.warning(
            "%s: the members of %d examples are not adjacent, so they are read one by one, which "
            "is slow. Write the tar again, with `tar --sort=name`.",
            path,
            joined,
        )
    # An array alone, such as embeddings.npy, was not meant for a picture, and synthetic captions
    # alone are left of a picture that could not be downloaded.
    gone |= {id(x) for x in examples if x.parts and x.parts.keys() <= {"npy", "syn"}}
    return [example for example in examples if id(example) not in gone]


def _examples(members: Iterator) -> Iterator[_Example]:
    """Groups adjacent members by their name up to the first dot, with damaged examples.

    A damaged example is indexed, and counted and skipped in training like any unreadable record.
    Captions of a lost picture belong to the damage. A picture with a second dot in its name counts
    as damaged, unless its example has another picture (KEY.seg.png).
    """
    key: str | None = ""  # None: no member since the last damage
    parts: dict[str, tuple[int, int]] = {}
    others: list[str] = []
    lost = False  # the damage before this example may have been its picture
    for member in members:
        if storage.is_shadow(member.name):
            continue
        if isinstance(member, Damage):
            yield from _finished(key, parts, others, lost=True)
            yield _Example(member.name, member.reason)
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
) -> Iterator[_Example]:
    if "image" in parts:
        yield _Example(key, None, parts)
    elif others:
        for name in others:
            reason = "an example's name ends at the first dot, so this picture belongs to none"
            yield _Example(name, reason)
    elif parts and not lost:
        reason = f"it has no picture in this tar ({', '.join(PICTURES)})"
        yield _Example(key, reason, parts)


class _Window:
    """A buffered window of a file."""

    def __init__(self, file: File):
        self._path = file.path
        self._size = _REMOTE_WINDOW if storage.is_remote(file.path) else _LOCAL_WINDOW
        self._start, self._data = 0, b""

    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start` on."""
        if not self._start <= start <= start + length <= self._start + len(self._data):
            self._data = storage.read(self._path, start, max(length, self._size))
            self._start = start
        return self._data[start - self._start : start - self._start + length]
