"""Metrics: every number of a run goes through one writer, to metrics.jsonl and to TensorBoard.

A line of metrics.jsonl is one JSON object: step, examples_trained, examples_scored, flops and
whatever was measured at that step. Names that start with "wall/" depend on the clock; without
them, a run that was killed and resumed has the same lines as one that was not. Beside it,
picks.jsonl holds the ids of the examples that were trained on, and claims.jsonl how many bytes of
both each checkpoint came with, so that a start from it notices lines that are lost.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int

from aced.metrics import jsonl
from aced.metrics.history import CLAIMS_FILE, FILE, PICKS_FILE

_REMOTE_SECONDS = 30.0  # between uploads to an object store, which write a part anew


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one step costs. The three are different axes: never compare runs on one alone."""

    examples_trained: int  # b
    examples_scored: int  # candidates that selection looked at: B, or 0 without selection
    flops: int | float  # on all devices, those of scoring and of frozen models included

    def at(self, step: int) -> dict[str, int | float]:
        """What `step` steps cost."""
        return {name: step * cost for name, cost in dataclasses.asdict(self).items()}


class Writer:
    """Appends metrics to a run's files. Only process 0 writes; elsewhere nothing happens.

    A write that fails (a full disk) does not stop the run: it is logged once, counted, and the
    lines are kept and tried again with the next ones.

    For exact resumption write the metrics of a step before its checkpoint, and `claim` in between.

    Attributes:
        failed_writes: writes that failed so far.
    """

    def __init__(self, workdir: epath.PathLike, budget: Budget, step: int | None = None):
        """Opens the files of `workdir`.

        Args:
            workdir: folder of the run, local or gs://.
            budget: cost of a step.
            step: the checkpoint that the run goes on from: later lines are dropped, they will be
                written again; lines that it came with and that are lost are reported in the log.
                None: the run starts anew, and all lines are dropped.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.failed_writes = 0
        self._budget = budget
        self._sinks: dict[str, Any] = {}
        self._pending: dict[str, list[dict]] = {}
        self._broken: set[str] = set()
        self._picked: int | None = None  # the last step of `write_picks`
        self._start = time.time()
        if jax.process_index() != 0:
            return
        folder = epath.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        names = (FILE, PICKS_FILE, CLAIMS_FILE)
        for name in names:
            jsonl.drop_after(folder / name, step)
        kept = jsonl.read(folder / FILE, ("step",))
        self._start -= max((line.get("wall/seconds", 0.0) for line in kept), default=0.0)
        self._sinks = {name: jsonl.Lines(folder / name) for name in names}
        if step is not None:
            self._report_lost(folder, step)
        # Not above: tensorboardX is slow to import, and only a writer needs it.
        from aced.metrics import tensorboard

        if tensorboard.can_write_to(str(folder)):
            first = 0 if step is None else step + 1
            self._sinks["tensorboard"] = tensorboard.Events(str(folder / "tensorboard"), first)
        else:
            logging.warning(
                "No TensorBoard files: tensorboardX needs the package google-cloud-storage to "
                "write to %s. All numbers are in %s.", folder, FILE,
            )  # fmt: skip
        self._pending = {name: [] for name in self._sinks}
        self._seconds = _REMOTE_SECONDS if jsonl.is_remote(folder) else 0.0
        self._flushed = -math.inf

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line.

        Args:
            step: updates done.
            values: numbers, or arrays that hold one. The costs of `budget` and the wall time are
                added, unless `values` has them.

        Raises:
            TypeError: a value is not a number.
        """
        if not self._sinks:
            return
        added = {**self._budget.at(step), "wall/seconds": time.time() - self._start}
        line = {"step": int(step)}
        line |= {name: _number(name, value) for name, value in {**added, **values}.items()}
        for name, pending in self._pending.items():
            if name not in (PICKS_FILE, CLAIMS_FILE):
                pending.append(line)
        if time.monotonic() - self._flushed >= self._seconds:
            self.flush()

    def write_picks(self, step: int, ids: Int[np.ndarray, " b"]) -> None:
        """Writes the ids of the examples that were trained on, a line of picks.jsonl.

        They are handed on with the next line of metrics. Those of the step that was written last
        are not written again: a step that ends the run has its line although none is due.
        """
        if self._sinks and step != self._picked:
            self._picked = step
            self._pending[PICKS_FILE].append({"step": int(step), "ids": ids.tolist()})

    def flush(self) -> None:
        """Hands all lines to the operating system, or to the object store."""
        self._flushed = time.monotonic()
        for name, sink in list(self._sinks.items()):
            pending = self._pending[name]
            if pending and self._succeeds(name, lambda: sink.write(pending)):  # noqa: B023
                pending.clear()

    def claim(self, step: int) -> None:
        """Brings all lines to the disk itself, and notes how many there are by now.

        Call it before the checkpoint of `step` is saved. A run that starts from this checkpoint and
        finds fewer lines reports the loss. Lines that could not be written are counted, too.
        """
        if not self._sinks:
            return
        self.flush()
        line = {"step": int(step)}
        for name in (FILE, PICKS_FILE):
            waiting = jsonl.dumps(self._pending[name])
            line[name] = self._sinks[name].size + len(waiting.encode())
            self._succeeds(name, self._sinks[name].sync)
        self._pending[CLAIMS_FILE].append(line)
        self.flush()
        self._succeeds(CLAIMS_FILE, self._sinks[CLAIMS_FILE].sync)

    def _report_lost(self, folder: epath.Path, step: int) -> None:
        """Compares what is there with what the checkpoint of `step` came with."""
        claimed = jsonl.at(folder / CLAIMS_FILE, 1.0, ("step",)) or {}
        if not claimed and not self._sinks[CLAIMS_FILE].size:
            return  # a run of before there were claims
        if claimed.get("step") != step:
            logging.error(
                "%s does not say how many lines checkpoint %d came with, so that some of %s and %s "
                "may be lost.", folder / CLAIMS_FILE, step, FILE, PICKS_FILE,
            )  # fmt: skip
            return
        for name in (FILE, PICKS_FILE):
            lost = claimed.get(name, 0) - self._sinks[name].size
            if lost > 0:
                last = (jsonl.at(folder / name, 1.0, ("step",)) or {"step": "none"})["step"]
                logging.error(
                    "%s has lost lines: %d bytes fewer than when checkpoint %d was saved; its last "
                    "line is of step %s. A full disk, a power cut or another process may have done "
                    "that. The run goes on; what is missing stays missing.",
                    folder / name,
                    lost,
                    step,
                    last,
                )

    def _succeeds(self, name: str, work: Callable[[], None]) -> bool:
        """Whether `work` on the file `name` does; if not, the run goes on."""
        try:
            work()
        except Exception as error:
            # Object stores raise errors of many kinds, and none is worth a run.
            self.failed_writes += 1
            if name not in self._broken:
                self._broken.add(name)
                logging.error(
                    "Metrics could not be written to %s: %s. The run goes on; the lines are kept "
                    "in memory and tried again.", name, error,
                )  # fmt: skip
            return False
        if name in self._broken:
            self._broken.remove(name)
            logging.info("Metrics are written to %s again, none is missing.", name)
        return True

    def close(self) -> None:
        """Flushes a last time; what still cannot be written is named in the log."""
        self.flush()
        for name, pending in self._pending.items():
            if pending:
                steps = [line["step"] for line in pending]
                logging.error(
                    "%d lines of metrics are lost, steps %d to %d: %s could not be written.",
                    len(pending), steps[0], steps[-1], name,
                )  # fmt: skip
        if events := self._sinks.get("tensorboard"):
            events.close()
        self._sinks, self._pending = {}, {}

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _number(name: str, value: Any) -> int | float | str:
    """A number as JSON has it; those that are not finite become strings."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biufV":  # V: bfloat16
        raise TypeError(f"The metric '{name}' must be one number, got {value!r}.")
    if array.dtype.kind in "bi" or array.dtype.kind == "u":
        return int(array.item())
    number = float(array.item())
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number
