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

Line = dict[str, Any]
_PART_BYTES = 4_000_000  # a part that has so many is done


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in an object store, which cannot append to a file."""
    return "://" in str(path)


def parse(text: str, path: epath.Path) -> list[Line]:
    """The objects in `text`; `path` names it in warnings about lines that are not complete."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            # Normally the last line, cut off by a kill.
            logging.warning("%s, line %d is not complete and is left out: %r", path, number, line)
    return lines


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


def read(path: epath.Path) -> list[Line]:
    """The complete lines of a file, all its parts together."""
    return [line for part in parts(path) for line in parse(part.read_text(), part)]


def at(path: epath.Path, place: float) -> Line | None:
    """The complete line at a place of a file, or the one before it; None where there is none.

    The file is not read as a whole: the picks of a long run are gigabytes.

    Args:
        path: the file, all its parts together.
        place: between 0, its first byte, and 1, its last.
    """
    sizes = {part: part.stat().length for part in parts(path)}
    offset = int(place * (sum(sizes.values()) - 1))
    for part, size in sizes.items():
        if 0 <= offset < size:
            with _bytes(part) as data:
                end = data.find(b"\n", offset) + 1 or data.rfind(b"\n") + 1  # it may be cut off
                start = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
                return json.loads(data[start:end]) if end else None
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
                *(part, step or 0, size - kept, size),
            )
            _cut(part, kept)
        if kept:
            return
        if part != path:
            part.unlink()


def _end_of(part: epath.Path, step: int) -> int:
    """Where the last complete line ends that is not after `step`."""
    with _bytes(part) as data:
        end = data.rfind(b"\n") + 1
        while end:
            start = data.rfind(b"\n", 0, end - 1) + 1
            try:
                if json.loads(data[start:end])["step"] <= step:
                    return end
            except ValueError:
                logging.warning("%s, byte %d: a line is not complete and is left out.", part, start)
            end = start
    return 0


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
            self._text = last.read_text() if last.exists() else ""
        else:
            self._last = last
            last.parent.mkdir(parents=True, exist_ok=True)
            last.touch()
            self._size = last.stat().length

    @property
    def size(self) -> int:
        """Bytes of all lines that are written, in all parts."""
        return self._before + (len(self._text.encode()) if self._remote else self._size)

    def write(self, lines: Sequence[Line]) -> None:
        """Appends `lines`, all or none of them: after an error, call again with the same.

        Raises:
            OSError: they could not be written.
        """
        if self._remote:
            is_done = len(self._text) >= _PART_BYTES
            text = dumps(lines) if is_done else self._text + dumps(lines)
            _part(self._path, self._number + is_done).write_text(text)
            self._before += len(self._text.encode()) if is_done else 0
            self._text, self._number = text, self._number + is_done
            return
        data = dumps(lines).encode()
        with open(self._last, "ab") as file:
            file.truncate(self._size)  # a write that failed may have left a part of a line
            file.write(data)
        self._size += len(data)

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
