"""JSON Lines files that survive kills and full disks, and work in object stores.

Objects in a store cannot be appended to, only rewritten. To avoid uploading all lines again and
again, a file there is split into parts `picks.jsonl`, `picks.jsonl.1`, ..., and only the last part
changes.
"""

import contextlib
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from aced.files import own_files

Line = dict[str, Any]
_PART_BYTES = 4_000_000  # size at which a part is complete
_BLOCK_BYTES = 1 << 20
_SHOWN_BYTES = 80  # of a skipped line, in the warning
_CHECKSUM = b', "crc32": "'  # of the line without this entry
_ENDING = re.compile(rb'"[0-9a-f]{8}"}$')  # of a line with a checksum, even under a damaged name


def is_remote(path: epath.PathLike) -> bool:
    """Whether `path` is in an object store, which cannot append to a file."""
    return "://" in str(path)


def parts(path: epath.Path) -> list[epath.Path]:
    """The files that hold the lines of `path`, in order.

    Outside of object stores there is one, unless the files were copied from a store.
    """
    files = [path] if path.exists() else []
    while files and _part(path, len(files)).exists():
        files.append(_part(path, len(files)))
    return files


def size(path: epath.Path) -> int:
    """The bytes in all parts of a file."""
    return sum(part.stat().length for part in parts(path))


def _part(path: epath.Path, number: int) -> epath.Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def read(path: epath.Path, keys: Sequence[str] = ()) -> list[Line]:
    """The lines of all parts of a file that are complete and have all `keys`.

    Other lines are skipped with a warning that has the line number.
    """
    lines = (line for part in parts(path) for line in _lines(part, keys))
    return [line for line in lines if line is not None]


def _lines(part: epath.Path, keys: Sequence[str]) -> Iterator[Line | None]:
    """The lines of a part, with None for each one that is skipped with a warning."""
    *lines, last = part.read_bytes().split(b"\n")
    for number, data in enumerate([*lines, last] if last else lines, 1):
        try:
            yield _parse(data, keys)
        except own_files.UnreadableError as error:
            _warn_skipped(part, number, data, error)
            yield None


def _parse(data: bytes, keys: Sequence[str]) -> Line:
    line = own_files.parse(_checked(data))
    for key in keys:
        if key not in line:
            raise own_files.UnreadableError(f"it has no {key!r}")
    return line


def _checked(data: bytes) -> bytes:
    """The line without its checksum; older lines have none."""
    start, mark, checksum = data.rpartition(_CHECKSUM)
    content = start + b"}" if mark else data
    if checksum != _ending(content) if mark else _ENDING.search(data):
        raise own_files.UnreadableError("its content is not that of its checksum: it was changed")
    return content


def _ending(content: bytes) -> bytes:
    return b'%08x"}' % zlib.crc32(content)


def _warn_skipped(
    part: epath.Path, number: int, data: bytes, error: own_files.UnreadableError
) -> None:
    """Usually the last line, cut off when the process was killed."""
    logging.warning(
        "%s, line %d is not complete or damaged, and is left out (%s): %r",
        part,
        number,
        error.reason,
        data[:_SHOWN_BYTES],
    )


def some(
    path: epath.Path, most: int, pattern: bytes, keys: Sequence[str]
) -> tuple[list[Line], int]:
    """Lines at `most` evenly spaced places, the last line, and lines that match, in order.

    Parts of at most `most` lines are read whole. Of others only these lines are parsed, and their
    checksums compared, since that takes 30 times as long as to find them.

    Args:
        path: the file; parts are treated as one.
        most: the number of lines that are read of each part, besides those that match.
        pattern: regular expression for something in a line.
        keys: required keys of a line.

    Returns:
        The lines, and the number of others at these places that were skipped with a warning.
    """
    found: list[Line | None] = []
    for part in parts(path):
        if not part.stat().length:
            continue
        with _bytes(part) as data:
            end = data.rfind(b"\n") + 1  # the last line may be cut off
            if _newlines(data, end) <= most:
                found += _lines(part, keys)
                continue
            places = {end * i // most for i in range(most)} | {end - 1}
            places |= {match.start() for match in re.finditer(pattern, data) if match.end() < end}
            for start in sorted({data.rfind(b"\n", 0, place) + 1 for place in places}):
                line = data[start : data.find(b"\n", start)]
                try:
                    found.append(_parse(line, keys))
                except own_files.UnreadableError as error:
                    _warn_skipped(part, _newlines(data, start) + 1, line, error)
                    found.append(None)
    return [line for line in found if line is not None], found.count(None)


def at(path: epath.Path, place: float, keys: Sequence[str] = ()) -> Line | None:
    """The complete line at a relative position, or else the nearest one before it, or None.

    Lines that are skipped are named in a warning. The file is not read as a whole: the picks of a
    long run are gigabytes.

    Args:
        path: the file; parts are treated as one.
        place: from 0, the first byte, to 1, the last.
        keys: required keys of a line.
    """
    sizes = {part: part.stat().length for part in parts(path)}
    offset = int(place * (sum(sizes.values()) - 1))
    for part, size in sizes.items():
        if 0 <= offset < size:
            with _bytes(part) as data:
                end = data.find(b"\n", offset) + 1 or len(data)  # the last line may be cut off
                return next((line for _, line in _backwards(part, data, end, keys)), None)
        offset -= size
    return None


def drop_after(path: epath.Path, step: int | None) -> None:
    """Removes the lines after `step`, and an incomplete last line, from a file.

    The file is read backwards, only up to the last line that is kept: the picks of a long run are
    gigabytes.

    Args:
        path: the file; each line has a "step", which never decreases.
        step: the last step to keep; None: keep nothing.
    """
    remaining = parts(path)
    while remaining:
        part = remaining.pop()  # from the end, so that a kill in between leaves no gap
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
    """The end of the last complete line that is not after `step`, in bytes."""
    with _bytes(part) as data:
        lines = _backwards(part, data, data.rfind(b"\n") + 1, ("step",))
        return next((end for end, line in lines if line["step"] <= step), 0)


def _backwards(
    part: epath.Path, data: mmap.mmap | bytes, end: int, keys: Sequence[str]
) -> Iterator[tuple[int, Line]]:
    """The lines of `data` before byte `end`, in reverse order, each with its own end."""
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        try:
            yield end, _parse(data[start : end - 1], keys)
        except own_files.UnreadableError as error:
            _warn_skipped(part, _newlines(data, start) + 1, data[start : end - 1], error)
        end = start


def _newlines(data: mmap.mmap | bytes, end: int) -> int:
    """The number of newlines before byte `end`."""
    return sum(
        data[i : min(i + _BLOCK_BYTES, end)].count(b"\n") for i in range(0, end, _BLOCK_BYTES)
    )


@contextlib.contextmanager
def _bytes(part: epath.Path) -> Iterator[mmap.mmap | bytes]:
    """The content of a non-empty file, memory-mapped if it is local."""
    if is_remote(part):
        yield part.read_bytes()
        return
    with open(part, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _cut(part: epath.Path, size: int) -> None:
    """Truncates a file to its first `size` bytes."""
    if is_remote(part):
        part.write_bytes(part.read_bytes()[:size])
    else:
        os.truncate(part, size)


def dumps(lines: Sequence[Line]) -> bytes:
    """`lines`, none of them empty, as JSON Lines; the last entry of each is its checksum.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
    """
    contents = [json.dumps(line, allow_nan=False).encode() for line in lines]
    return b"".join(x[:-1] + _CHECKSUM + _ending(x) + b"\n" for x in contents)


class Lines:
    """Appends to a file; in an object store, rewrites the last part each time."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._remote = is_remote(path)
        self._synced = False  # whether the folder entry of the file is on disk
        files = parts(path)
        self._number = max(len(files) - 1, 0)
        self._before = sum(part.stat().length for part in files[:-1])
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
        """Bytes of all lines written, in all parts."""
        return self._before + (len(self._data) if self._remote else self._size)

    def write(self, lines: Sequence[Line]) -> None:
        """Appends all `lines` or none; after an error, call again with the same lines.

        Raises:
            OSError: the lines could not be written.
        """
        added = dumps(lines)
        if self._remote:
            is_done = len(self._data) >= _PART_BYTES
            data = added if is_done else self._data + added
            _part(self._path, self._number + is_done).write_bytes(data)
            self._before += len(self._data) if is_done else 0
            self._data, self._number = data, self._number + is_done
            return
        with open(self._last, "ab") as file:
            file.truncate(self._size)  # a failed write may have left a partial line
            file.write(added)
        self._size += len(added)

    def sync(self) -> None:
        """Returns when all written lines are on disk (fsync).

        Raises:
            OSError: they may not be.
        """
        if self._remote:
            return  # writes to a store are durable when they return
        with open(self._last, "ab") as file:
            os.fsync(file.fileno())
        if not self._synced:
            folder = os.open(self._last.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            self._synced = True
