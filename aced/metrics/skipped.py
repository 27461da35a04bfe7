"""skipped.jsonl: which records of the input could not be used, and why."""

import math
import time

from absl import logging
from etils import epath

from aced.metrics import jsonl

FILE = "skipped.jsonl"


class SkippedRecords:
    """Appends each skipped record to `<workdir>/skipped.jsonl`, once per start of the run.

    All of them are in the log, too. Of several processes each has a file of its own.

    A callback for `pipeline.InputCounters`, which calls it from one thread at a time; at the end of
    a `with` block, when nothing calls any more, the last ones are written.
    """

    def __init__(self, workdir: epath.PathLike, process_index: int = 0):
        name = FILE if process_index == 0 else f"{process_index}-{FILE}"
        self._path = epath.Path(workdir) / name
        self._lines: jsonl.Lines | None = None
        self._pending: list[jsonl.Line] = []
        self._next = -math.inf
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, source: str, index: int, reason: str) -> None:
        """Writes one record down; if that fails it is in the log at least."""
        if (source, index) in self._seen:
            return
        self._seen.add((source, index))
        logging.warning("Skipped record %d of %s: %s", index, source, reason)
        self._pending.append({"source": source, "id": index, "reason": reason, "time": time.time()})
        if time.monotonic() < self._next:
            return
        # An object store is written to twice a minute at most: it takes a part anew each time.
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
        except Exception as error:  # stores raise errors of many kinds, and none is worth a run
            logging.error("%s cannot be written: %s", self._path, error)
