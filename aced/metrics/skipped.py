"""skipped.jsonl: the records of the input that could not be used, with reasons."""

import math
import time

from absl import logging
from etils import epath

from aced.metrics import jsonl

FILE = "skipped.jsonl"


class SkippedRecords:
    """Logs each skipped record and appends it to `<workdir>/skipped.jsonl`, once per start.

    Each process has its own file. A callback for `pipeline.InputCounters`, which calls it from one
    thread at a time; the end of the `with` block writes the remaining records.
    """

    def __init__(self, workdir: epath.PathLike, process_index: int = 0):
        name = FILE if process_index == 0 else f"{process_index}-{FILE}"
        self._path = epath.Path(workdir) / name
        self._lines: jsonl.Lines | None = None
        self._pending: list[jsonl.Line] = []
        self._next = -math.inf
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, source: str, index: int, reason: str) -> None:
        """Logs a record and writes it to the file; a failed write is only logged."""
        if (source, index) in self._seen:
            return
        self._seen.add((source, index))
        logging.warning("Skipped record %d of %s: %s", index, source, reason)
        self._pending.append({"source": source, "id": index, "reason": reason, "time": time.time()})
        if time.monotonic() < self._next:
            return
        # At most two writes per minute to an object store, since each rewrites a part.
        self._next = time.monotonic() + (30.0 if jsonl.is_remote(self._path) else 0.0)
        self._write()

    def __enter__(self) -> "SkippedRecords":
        return self

    def __exit__(self, *error: object) -> None:
        if self._pending:
            self._write()

    def _write(self) -> None:
        try:
            self._lines = self._lines or jsonl.Lines(self._path)
            self._lines.write(self._pending)
            self._pending.clear()
        except Exception as error:  # stores raise many kinds of errors; none should end the run
            logging.error("%s cannot be written: %s", self._path, error)
