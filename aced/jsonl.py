"""Files of JSON objects, one a line, that survive kills, full disks and object stores.

An object of a store cannot be appended to, only written anew. So that a long run does not upload
all of its lines again and again, a file there is cut into parts: `picks.jsonl`, `picks.jsonl.1`,
..., of which only the last one changes.
"""

import json
from collections.abc import Sequence
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
    """The files that hold the lines of `path`, in order; outside of object stores one at most."""
    found = [path] if path.exists() else []
    while found and is_remote(path) and _part(path, len(found)).exists():
        found.append(_part(path, len(found)))
    return found


def _part(path: epath.Path, number: int) -> epath.Path:
    return path.with_name(f"{path.name}.{number}") if number else path


def read(path: epath.Path) -> list[Line]:
    """The complete lines of a file, all its parts together."""
    return [line for part in parts(path) for line in parse(part.read_text(), part)]


def drop_after(path: epath.Path, step: int | None) -> list[Line]:
    """Removes the lines after `step` and incomplete ones from a file; returns the others.

    Args:
        path: the file; each of its lines has a "step".
        step: the last step to keep; None: keep nothing.
    """
    kept: list[Line] = []
    for part in reversed(parts(path)):  # so that a kill in between leaves no gap
        text = part.read_text()
        lines = parse(text, part)
        keep = [line for line in lines if step is not None and line["step"] <= step]
        if dumps(keep) != text:
            logging.info("%s: %d of %d lines go on from here.", part, len(keep), len(lines))
            repaired = part.with_name(f"{part.name}.repaired")
            repaired.write_text(dumps(keep))
            repaired.replace(part)  # at no time is there less than what is kept
        if not keep and part != path:
            part.unlink()
        kept = keep + kept
    return kept


def dumps(lines: Sequence[Line]) -> str:
    """The text of `lines`. Strict JSON: numbers that are not finite are refused."""
    return "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines)


class Lines:
    """Appends to a file; in an object store, its last part is written anew each time."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._remote = is_remote(path)
        if self._remote:
            self._number = max(len(parts(path)) - 1, 0)
            last = _part(path, self._number)
            self._text = last.read_text() if last.exists() else ""
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._size = path.stat().length

    def write(self, lines: Sequence[Line]) -> None:
        """Appends `lines`, all or none of them: after an error, call again with the same.

        Raises:
            OSError: they could not be written.
        """
        if self._remote:
            is_done = len(self._text) >= _PART_BYTES
            text = dumps(lines) if is_done else self._text + dumps(lines)
            _part(self._path, self._number + is_done).write_text(text)
            self._text, self._number = text, self._number + is_done
            return
        data = dumps(lines).encode()
        with open(self._path, "ab") as file:
            file.truncate(self._size)  # a write that failed may have left a part of a line
            file.write(data)
        self._size += len(data)
