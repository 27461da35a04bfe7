"""A table of results on disk: complete after every change, and found again by the next call."""

import csv
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import table


class Rows:
    """Rows of a CSV. A row takes the place of the one with the same `key`."""

    def __init__(self, path: pathlib.Path, columns: Sequence[str], key: Sequence[str]):
        self._path, self._columns, self._key = path, columns, key
        self._rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = list(csv.DictReader(file))

    def find(self, **wanted: Any) -> list[dict[str, str]]:
        """The rows with these values."""
        texts = {name: str(value) for name, value in wanted.items()}
        return [row for row in self._rows if texts.items() <= row.items()]

    def put(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows, all of them or none."""
        for row in rows:
            new = {name: _short(row.get(name, "")) for name in self._columns}
            same = [old for old in self._rows if all(old[k] == new[k] for k in self._key)]
            self._rows = [old for old in self._rows if old not in same] + [new]
        part = self._path.with_suffix(".part")
        table.write(part, self._rows, self._columns)
        part.replace(self._path)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
