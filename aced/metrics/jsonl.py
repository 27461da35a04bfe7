"""Files of JSON objects, one a line, that survive kills, full disks and object stores.

An object of a store cannot be appended to, only written anew. So that a long run does not upload
all of its lines again and again, a file there is cut into parts: `picks.jsonl`, `picks.jsonl.1`,
..., of which only the last one changes.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from aced.files import own_files

Line = dict[str, Any]
_PART_BYTES = 4_000_000  # a part that has so many is done
_BLOCK_BYTES = 1 << 20
_SHOWN_BYTES = 80  # of a line that is left out


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in an object store, which cannot append to a file."""
    return "://" in str(path)


def parts(path: epath.Path) -> list[epath.Path]:
    """The files that hold the lines of `path`, in order.

    Outside of object stores it is one, unless it was copied from there.
    """
    found = [path] if path.exists() else []
    while found and _part(path, len(found)).exists():
        found.append(_part(path, len(found)))
    return found


def _part(path: epath.Path, number: int) -> epath.Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def read(path: epath.Path, keys: Sequence[str] = ()) -> list[Line]:
    """The lines of a file, all its parts together, that are complete and have all `keys`.

    Others are left out, which the log says with the number of the line.
    """
    return [line for part in parts(path) for line in _lines(part, keys)]


def _lines(part: epath.Path, keys: Sequence[str]) -> Iterator[Line]:
    *lines, last = part.read_bytes().split(b"\n")
    for number, data in enumerate([*lines, last] if last else lines, 1):
        try:
            yield _parse(data, keys)
        except own_files.UnreadableError as error:
            _left_out(part, number, data, error)


def _parse(data: bytes, keys: Sequence[str]) -> Line:
    line = own_files.parse(data)
    for key in keys:
        if key not in line:
            raise own_files.UnreadableError(f"it has no {key!r}")
    return line


def _left_out(part: epath.Path, number: int, data: bytes, error: own_files.UnreadableError) -> None:
    """Normally it is the last line, which a kill has cut off."""
    logging.warning(
        "%s, line %d is not complete or damaged, and is left out (%s): %r",
        part,
        number,
        error.reason,
        data[:_SHOWN_BYTES],
    )


def at(path: epath.Path, place: float, keys: Sequence[str] = ()) -> Line | None:
    """The complete line at a place of a file, or the next one before it; None where there is none.

    The file is not read as a whole: the picks of a long run are gigabytes.

    Args:
        path: the file, all its parts together.
        place: between 0, its first byte, and 1, its last.
        keys: what a line must have.
    """
    sizes = {part: part.stat().length for part in parts(path)}
    offset = int(place * (sum(sizes.values()) - 1))
    for part, size in sizes.items():
        if 0 <= offset < size:
            with _bytes(part) as data:
                end = data.find(b"\n", offset) + 1 or data.rfind(b"\n") + 1  # it may be cut off
                return next((line for _, line in _backwards(part, data, end, keys)), None)
        offset -= size
    return None


def drop_after(path: epath.Path, step: int | None) -> None:
    """Removes the lines after `step`, and an incomplete one at the end, from a file.

    It is read from its end on, and no further than to the last line that stays: the picks of a
    long run are gigabytes.

    Args:
        path: the file; each of its lines has a "step", which never falls.
        step: the last step to keep; None: keep nothing.
    """
    found = parts(path)
    while found:
        part = found.pop()  # the last one first, so that a kill in between leaves no gap
        size = part.stat().length
        kept = _end_of(part, step) if step is not None and size else 0
        if kept < size:
            logging.info(
                "%s: lines after step %s are dropped, %d of %d bytes.",
                part,
                step or 0,
                size - kept,
                size,
            )
            _cut(part, kept)
        if kept:
            return
        if part != path:
            part.unlink()


def _end_of(part: epath.Path, step: int) -> int:
    """Where the last complete line ends that is not after `step`."""
    with _bytes(part) as data:
        lines = _backwards(part, data, data.rfind(b"\n") + 1, ("step",))
        return next((end for end, line in lines if line["step"] <= step), 0)


def _backwards(
    part: epath.Path, data: mmap.mmap | bytes, end: int, keys: Sequence[str]
) -> Iterator[tuple[int, Line]]:
    """The lines of `data` up to the byte `end`, the last one first, each with its own end."""
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        try:
            yield end, _parse(data[start : end - 1], keys)
        except own_files.UnreadableError as error:
            _left_out(part, _newlines(data, start) + 1, data[start : end - 1], error)
        end = start


def _newlines(data: mmap.mmap | bytes, end: int) -> int:
    """How many there are before the byte `end`."""
    return sum(
        data[i : min(i + _BLOCK_BYTES, end)].count(b"\n") for i in range(0, end, _BLOCK_BYTES)
    )


@contextlib.contextmanager
def _bytes(part: epath.Path) -> Iterator[mmap.mmap | bytes]:
    """What is in a file, which has at least a byte; a large one is not read as a whole."""
    if is_remote(part):
        yield part.read_bytes()
        return
    with open(part, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _cut(part: epath.Path, size: int) -> None:
    """Leaves the first `size` bytes of a file, of which there are never fewer."""
    if is_remote(part):
        part.write_bytes(part.read_bytes()[:size])
    else:
        os.truncate(part, size)


def dumps(lines: Sequence[Line]) -> str:
    """The text of `lines`. Strict JSON: numbers that are not finite are refused."""
    return "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines)


class Lines:
    """Appends to a file; in an object store, its last part is written anew each time."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._remote = is_remote(path)
        self._synced = False  # whether the folder is known to have the file after a power cut
        there = parts(path)
        self._number = max(len(there) - 1, 0)
        self._before = sum(part.stat().length for part in there[:-1])
        last = _part(path, self._number)
        if self._remote:
            self._data = last.read_bytes() if last.exists() else b""
        else:
            self._last = last
            last.parent.mkdir(parents=True, exist_ok=True)
            last.touch()
            self._size = last.stat().length

    @property
    def size(self) -> int:
        """Bytes of all lines that are written, in all parts."""
        return self._before + (len(self._data) if self._remote else self._size)

    def write(self, lines: Sequence[Line]) -> None:
        """Appends `lines`, all or none of them: after an error, call again with the same.

        Raises:
            OSError: they could not be written.
        """
        added = dumps(lines).encode()
        if self._remote:
            is_done = len(self._data) >= _PART_BYTES
            data = added if is_done else self._data + added
            _part(self._path, self._number + is_done).write_bytes(data)
            self._before += len(self._data) if is_done else 0
            self._data, self._number = data, self._number + is_done
            return
        with open(self._last, "ab") as file:
            file.truncate(self._size)  # a write that failed may have left a part of a line
            file.write(added)
        self._size += len(added)

    def sync(self) -> None:
        """Returns when what is written is on the disk itself, where a power cut leaves it.

        Raises:
            OSError: it may not be.
        """
        if self._remote:
            return  # a store answers when it has it
        with open(self._last, "ab") as file:
            os.fsync(file.fileno())
        if not self._synced:
            folder = os.open(self._last.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._synced = True
