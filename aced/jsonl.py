"""Files of JSON objects, one a line, that survive kills, full disks and object stores."""

import json
from collections.abc import Sequence
from typing import Any

from absl import logging
from etils import epath

Line = dict[str, Any]


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


def drop_after(path: epath.Path, step: int | None) -> list[Line]:
    """Removes the lines after `step` and incomplete ones from a file; returns the others.

    Args:
        path: the file; each of its lines has a "step".
        step: the last step to keep; None: keep nothing.
    """
    if not path.exists():
        return []
    text = path.read_text()
    lines = parse(text, path)
    kept = [line for line in lines if step is not None and line["step"] <= step]
    if dumps(kept) != text:
        logging.info("%s: %d of %d lines go on from here.", path, len(kept), len(lines))
        repaired = path.with_name(f"{path.name}.repaired")
        repaired.write_text(dumps(kept))
        repaired.replace(path)  # at no time is there less than what is kept
    return kept


def dumps(lines: Sequence[Line]) -> str:
    """The text of `lines`. Strict JSON: numbers that are not finite are refused."""
    return "".join(f"{json.dumps(line, allow_nan=False)}\n" for line in lines)


class Lines:
    """Appends to a file; in an object store, the whole object is written anew each time."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._remote = is_remote(path)
        if self._remote:
            self._text = path.read_text() if path.exists() else ""
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
            text = self._text + dumps(lines)
            self._path.write_text(text)
            self._text = text
            return
        data = dumps(lines).encode()
        with open(self._path, "ab") as file:
            file.truncate(self._size)  # a write that failed may have left a part of a line
            file.write(data)
        self._size += len(data)
