"""Results as CSV."""

import csv
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


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
