"""Results as CSV."""

import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"


def read(name: str) -> list[dict[str, str]]:
    """The rows of a committed table."""
    with (RESULTS / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_runs(name: str, kind: type) -> list[tuple[Any, dict[str, str]]]:
    """The last row of every run of a committed table, each with its run, a `kind`; see `Runs`."""
    return list({as_run(kind, row): row for row in read(name)}.items())


def as_run(kind: type, row: Mapping[str, str]) -> Any:
    """The run of a row: `kind`, a dataclass whose fields have defaults, with the row's values."""
    fields = dataclasses.fields(kind)
    return kind(**{field.name: type(field.default)(row[field.name]) for field in fields})


def write(
    path: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
) -> None:
    """Writes `rows`; columns: those of the first row, unless given. What a row lacks is empty."""
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class Runs:
    """A CSV of runs, in which a run is found again by its settings.

    A run's rows are appended in one write, so that several programs can share a table.
    """

    def __init__(self, path: str | os.PathLike, kind: type, numbers: Sequence[str]):
        """Reads the table.

        Args:
            path: the CSV; it need not exist.
            kind: a dataclass, whose fields tell one run from another.
            numbers: the columns of results.
        """
        self._path, self._numbers = pathlib.Path(path), numbers
        self._fields = [field.name for field in dataclasses.fields(kind)]
        self._columns, self._known = [*self._fields, *numbers], set()
        if self._path.exists():
            with self._path.open(encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self._known = {tuple(row[name] for name in self._fields) for row in reader}
                self._columns = reader.fieldnames

    def has(self, run: Any) -> bool:
        """Whether the run has rows."""
        return tuple(str(value) for value in dataclasses.astuple(run)) in self._known

    def add(self, run: Any, rows: Sequence[Mapping[str, float]]) -> None:
        """Appends the rows of a run; a number that a row lacks is left empty."""
        is_new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if is_new:
                writer.writeheader()
            for row in rows:
                numbers = {name: _short(row[name]) for name in self._numbers if name in row}
                writer.writerow(dataclasses.asdict(run) | numbers)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
