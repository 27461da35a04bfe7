"""skipped.jsonl: which records of the input could not be used, and why."""

import time

from absl import logging
from etils import epath

from aced import jsonl

FILE = "skipped.jsonl"


class SkippedRecords:
    """Appends each skipped record to `<workdir>/skipped.jsonl`, once per start of the run.

    A callback for `pipeline.InputCounters`, which calls it from one thread at a time.
    """

    def __init__(self, workdir: epath.PathLike, process_index: int = 0):
        name = FILE if process_index == 0 else f"{process_index}-{FILE}"
        self._path = epath.Path(workdir) / name
        self._lines: jsonl.Lines | None = None
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, source: str, index: int, reason: str) -> None:
        """Writes one record down; if that fails it is in the log at least."""
        if (source, index) in self._seen:
            return
        self._seen.add((source, index))
        logging.warning("Skipped record %d of %s: %s", index, source, reason)
        line = {"source": source, "id": index, "reason": reason, "time": time.time()}
        try:
            self._lines = self._lines or jsonl.Lines(self._path)
            self._lines.write([line])
        except OSError as error:
            logging.error("%s cannot be written: %s", self._path, error)
