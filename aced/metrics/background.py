"""Sends lines to a service on a thread, so that a slow service or network never delays a step.

`<name>.json` in the workdir holds the id of the run in the service, and the last step that was
sent. A resumed run goes on with the same id. Its lines up to that step are there already, since a
resumed run computes them again bit for bit, and are not sent twice. Earlier lines that were not
sent, for lack of a network or because the service was not in `metrics.to` yet, are sent from
metrics.jsonl.
"""

import collections
import threading
from collections.abc import Callable, Sequence

from absl import logging

from aced.files import own_files
from aced.metrics import jsonl
from aced.metrics.shown import Line, Outcome, RunCard, Service

_SECONDS, _REMOTE_SECONDS = 5.0, 30.0  # between batches; each is followed by a write of the file
_RETRY_SECONDS = 20.0  # after a failure
_MOST_LINES = 2000  # of a batch
_LAST_SECONDS = 60.0  # for what remains at the end of the run
_STOPPED_SECONDS = 10.0  # after a signal, which leaves little time


class Background:
    """A sink whose `write` returns at once and raises nothing."""

    def __init__(
        self,
        name: str,
        service: Callable[[RunCard], Service],
        card: RunCard,
        *,
        seconds: int | float | None = None,
        patience: int | float = _LAST_SECONDS,
    ):
        """Starts the thread.

        Args:
            name: of the service.
            service: its class.
            card: of the run.
            seconds: between batches; None: 5, or 30 if the workdir is in an object store.
            patience: how long `close` waits for the remaining lines, in seconds.
        """
        self._name, self._patience = name, patience
        self._service = service(card)
        self._file = card.folder / f"{name}.json"
        remote = jsonl.is_remote(card.folder)
        self._seconds = (_REMOTE_SECONDS if remote else _SECONDS) if seconds is None else seconds
        self._run_id: str | None = None
        self._known = -1  # the last step that was sent by earlier processes
        self._last = -1  # and by any
        self._is_broken = False
        self._outcome: Outcome | None = None
        self._lines: collections.deque[Line] = collections.deque(card.earlier)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"metrics-{name}", daemon=True)
        self._thread.start()

    def write(self, lines: Sequence[Line]) -> None:
        """Queues `lines`."""
        with self._changed:
            self._lines.extend(lines)

    def close(self, outcome: Outcome) -> None:
        """Waits for the remaining lines, and logs how many of them are not sent."""
        with self._changed:
            self._outcome = outcome
            self._changed.notify()
        is_hurried = outcome == "stopped"
        self._thread.join(min(self._patience, _STOPPED_SECONDS) if is_hurried else self._patience)
        if waiting := len(self._lines):
            logging.error(
                "%d lines of metrics have not reached %s. They are in metrics.jsonl, and are sent "
                "if the run goes on.",
                waiting,
                self._name,
            )
        elif self._thread.is_alive():
            logging.error("%s has not confirmed that it has all metrics.", self._name)

    def _work(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._outcome is not None, pause)
                outcome = self._outcome
                batch = [self._lines[i] for i in range(min(_MOST_LINES, len(self._lines)))]
            if not self._succeeds(batch):
                if outcome is not None:  # this was one more try
                    return
                pause = _RETRY_SECONDS
            elif self._lines or outcome is None:
                pause = 0.0 if len(batch) == _MOST_LINES else self._seconds
            else:
                self._finish(outcome)
                return

    def _succeeds(self, batch: Sequence[Line]) -> bool:
        """Whether the lines are sent. Logs the first of several errors in a row."""
        try:
            self._send(batch)
        except Exception as error:  # services raise many kinds of errors; none should end the run
            if not self._is_broken:
                logging.error(
                    "Metrics could not be sent to %s: %s. The run continues; the lines are kept in "
                    "memory and tried again. If the run there was deleted, remove %s to begin "
                    "another.", self._name, str(error).rstrip("."), self._file,
                )  # fmt: skip
            self._is_broken = True
            return False
        if self._is_broken:
            logging.info("Metrics are sent to %s again, none is missing.", self._name)
        self._is_broken = False
        return True

    def _send(self, batch: Sequence[Line]) -> None:
        if self._run_id is None:
            self._open()
        if new := [line for line in batch if line["step"] > self._known]:
            self._last = max(self._last, *(line["step"] for line in new))
            self._save(self._service.write(new))
        for _ in batch:
            self._lines.popleft()  # only this thread removes lines

    def _open(self) -> None:
        earlier = None
        if self._file.exists():
            with own_files.reading(self._file, f"remove it to begin another run in {self._name}"):
                content = own_files.loads(self._file.read_bytes())
                earlier, self._known = content["id"], content["step"]
        self._last = self._known
        self._run_id = self._service.open(earlier)
        self._save(self._known)

    def _save(self, step: int) -> None:
        part = self._file.with_name(f"{self._file.name}.part")
        part.write_bytes(own_files.dumps({"id": self._run_id, "step": step}))
        part.replace(self._file)

    def _finish(self, outcome: Outcome) -> None:
        try:
            self._service.close(outcome)
            self._save(self._last)
        except Exception as error:
            logging.error("The run could not be ended in %s: %s", self._name, error)
