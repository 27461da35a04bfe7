"""The writer of all metrics of a run, to metrics.jsonl and to the services that show runs.

A line of metrics.jsonl is one JSON object: step, examples_trained, examples_scored, flops and the
values measured at that step. Names that start with "wall/" depend on the clock; apart from these, a
run that was killed and resumed has the same lines as an uninterrupted one. picks.jsonl holds the
ids of the examples trained on, and claims.jsonl the sizes of both files at each checkpoint, so that
a resumed run notices lost lines.
"""

import dataclasses
import functools
import math
import queue
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int

from aced.metrics import history, jsonl, sinks
from aced.metrics.config import ONLY_FILES, MetricsConfig
from aced.metrics.history import CLAIMS_FILE, FILE, PICKS_FILE
from aced.metrics.shown import Line, Outcome, Picture, RunCard

_FILES = (FILE, PICKS_FILE, CLAIMS_FILE)
_REMOTE_SECONDS = 30.0  # between uploads to an object store; every upload rewrites a part


@dataclasses.dataclass(frozen=True)
class Budget:
    """The cost of a step, on three axes. Compare runs on all of them."""

    examples_trained: int  # b
    examples_scored: int  # B, or 0 without selection
    flops: int | float  # on all devices, including scoring and frozen models
    # Before the first step, by methods that score ahead.
    scored_before: int = 0
    flops_before: int | float = 0

    def at(self, step: int) -> dict[str, int | float]:
        """The cost of the run up to the end of step `step`."""
        return {
            "examples_trained": step * self.examples_trained,
            "examples_scored": step * self.examples_scored + self.scored_before,
            "flops": step * self.flops + self.flops_before,
        }


class Writer:
    """Appends metrics to a run's files, and hands them to its sinks, on process 0 only.

    A failed write (a full disk) does not stop the run: it is logged once and counted, and the lines
    are written again with the next ones.

    For exact resumption write the metrics of a step before its checkpoint, with `claim` in between.

    Attributes:
        failed_writes: writes that failed so far.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        budget: Budget,
        step: int | None = None,
        config: MetricsConfig = ONLY_FILES,
        settings: Mapping[str, Any] | None = None,
    ):
        """Opens the files of `workdir`.

        Args:
            workdir: folder of the run, local or gs://.
            budget: cost of a step.
            step: of the checkpoint that the run resumes from. Later lines are dropped, as they
                will be written again; earlier lines that were lost are logged as errors. None: a
                new run, all lines are dropped.
            config: where metrics go besides the files.
            settings: of the run, by their dotted paths, for the sinks.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.failed_writes = 0
        self._budget = budget
        self._sinks: dict[str, Any] = {}
        self._pending: dict[str, list[dict]] = {}
        self._broken: set[str] = set()
        self._shown: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._picked: int | None = None  # the last step of `write_picks`
        self._start = time.time()
        if jax.process_index() != 0:
            return
        folder = epath.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        for name in reversed(_FILES):  # claims first: the files are never smaller than claimed
            jsonl.drop_after(folder / name, step)
        kept = jsonl.read(folder / FILE, ("step",))
        self._start -= max((line.get("wall/seconds", 0.0) for line in kept), default=0.0)
        self._sinks = {name: jsonl.Lines(folder / name) for name in _FILES}
        if step is not None:
            for message in history.lost_lines(folder, step):
                logging.error("%s The run continues; what is missing stays missing.", message)
        card = RunCard(
            folder=folder,
            project=config.project,
            name=config.name or "/".join(folder.absolute().parts[-2:]),
            settings=settings or {},
            first_step=0 if step is None else step + 1,
            earlier=kept,
        )
        self._sinks |= sinks.build(config.to, card)
        self._pending = {name: [] for name in self._sinks}
        self._seconds = _REMOTE_SECONDS if jsonl.is_remote(folder) else 0.0
        self._flushed = -math.inf

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
            step: completed steps.
            values: numbers, or arrays of one element. Costs and wall time are added unless `values`
                has them.

        Raises:
            TypeError: a value is not a number.
        """
        if not self._sinks:
            return
        added = {**self._budget.at(step), "wall/seconds": time.time() - self._start}
        line = {"step": int(step)}
        line |= {name: _number(name, value) for name, value in {**added, **values}.items()}
        self._pending[FILE].append(line)
        self._show(line)
        if time.monotonic() - self._flushed >= self._seconds:
            self.flush()

    def write_picks(self, step: int, ids: Int[np.ndarray, " b"]) -> None:
        """Writes the ids of the examples trained on, as a line of picks.jsonl.

        The line is flushed with the next line of metrics. Repeated calls for the same step write
        one line.
        """
        if self._sinks and step != self._picked:
            self._picked = step
            self._pending[PICKS_FILE].append({"step": int(step), "ids": ids.tolist()})

    def show(self, step: int, name: str, picture: Picture) -> None:
        """Shows a picture in the sinks, with the next flush. May be called from any thread."""
        self._shown.put({"step": int(step), name: picture})

    def _show(self, line: Line) -> None:
        for name, pending in self._pending.items():
            if name not in _FILES:
                pending.append(line)

    def flush(self) -> None:
        """Hands all lines to the operating system, or to the object store, and to the sinks."""
        self._flushed = time.monotonic()
        while not self._shown.empty():
            self._show(self._shown.get())
        for name, sink in list(self._sinks.items()):
            pending = self._pending[name]
            if pending and self._succeeds(name, lambda: sink.write(pending)):  # noqa: B023
                pending.clear()

    def claim(self, step: int) -> None:
        """Syncs all lines to disk, and records the sizes of the files.

        Call it before the checkpoint of `step` is saved. A run that resumes from this checkpoint
        logs an error if the files are smaller. Lines that could not be written yet are included.
        """
        if not self._sinks:
            return
        self.flush()
        line = {"step": int(step)}
        for name in (FILE, PICKS_FILE):
            waiting = jsonl.dumps(self._pending[name])
            line[name] = self._sinks[name].size + len(waiting)
            self._succeeds(name, self._sinks[name].sync)
        self._pending[CLAIMS_FILE].append(line)
        self.flush()
        self._succeeds(CLAIMS_FILE, self._sinks[CLAIMS_FILE].sync)

    def _succeeds(self, name: str, work: Callable[[], None]) -> bool:
        """Whether `work` on the file `name` succeeds. Logs errors instead of raising them."""
        try:
            work()
        except Exception as error:
            # Object stores raise many kinds of errors; none should end the run.
            self.failed_writes += 1
            if name not in self._broken:
                self._broken.add(name)
                logging.error(
                    "Metrics could not be written to %s: %s. The run continues; the lines are kept "
                    "in memory and tried again.", name, error,
                )  # fmt: skip
            return False
        if name in self._broken:
            self._broken.remove(name)
            logging.info("Metrics are written to %s again, none is missing.", name)
        return True

    def close(self, outcome: Outcome = "finished") -> None:
        """Flushes a last time, and logs which lines are lost."""
        self.flush()
        for name, pending in self._pending.items():
            if pending:
                steps = [line["step"] for line in pending]
                logging.error(
                    "%d lines of metrics are lost, steps %d to %d: %s could not be written.",
                    len(pending), steps[0], steps[-1], name,
                )  # fmt: skip
        for name in self._sinks.keys() - set(_FILES):
            self._succeeds(name, functools.partial(self._sinks[name].close, outcome))
        self._sinks, self._pending = {}, {}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self.close("finished")
        else:
            is_signal = issubclass(error, SystemExit | KeyboardInterrupt)
            self.close("stopped" if is_signal else "failed")


def _number(name: str, value: Any) -> int | float | str:
    """A number for JSON; non-finite numbers become strings."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biufV":  # V: bfloat16
        raise TypeError(f"The metric '{name}' must be one number, got {value!r}.")
    if array.dtype.kind in "biu":
        return int(array.item())
    number = float(array.item())
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number
