"""Progress of a run: its speed, and a progress line on the terminal."""

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from io import TextIOBase
from typing import Any

import jax
from absl import logging

from aced.metrics.writer import Budget


class Meter:
    """Measures speed between calls of `measure`, and shares of the time."""

    def __init__(
        self,
        budget: Budget,
        step: int = 0,
        *,
        peak: int | float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts the clock.

        Args:
            budget: cost of a step.
            step: completed steps.
            peak: peak FLOP/s of all devices; None: no "wall/mfu".
            clock: returns seconds.
        """
        self._budget = budget
        self._step = step
        self._peak = peak
        self._clock = clock
        self._since = clock()
        self._spent: dict[str, float] = {}

    def spend(self, name: str, seconds: float) -> None:
        """Counts `seconds` as spent on `name`, such as "data"."""
        self._spent[name] = self._spent.get(name, 0.0) + seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock within the block, such as during an evaluation."""
        start = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - start

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Logs and excludes the compilation of the first step."""
        logging.info("Compiling the step, once a start: large models take minutes ...")
        with self.paused():
            yield
        logging.info("The step is compiled.")

    def measure(self, step: int) -> dict[str, float]:
        """Returns the speed since the last call, under names that start with "wall/".

        "wall/<name>_share" is the share of the time counted by `spend(name)`; "wall/mfu" is the
        model FLOPs utilization.
        """
        now = self._clock()
        seconds = max(now - self._since, 1e-9)
        rate = (step - self._step) / seconds
        out = {
            "wall/steps_per_s": rate,
            "wall/examples_per_s": rate * self._budget.examples_trained,
        }
        out |= {f"wall/{name}_share": spent / seconds for name, spent in self._spent.items()}
        if self._peak:
            out["wall/mfu"] = rate * self._budget.flops / self._peak
        self._step, self._since = step, now
        self._spent = dict.fromkeys(self._spent, 0.0)
        return out


class Progress:
    """A progress line, updated in place on a terminal and printed periodically elsewhere."""

    def __init__(
        self,
        total_steps: int,
        *,
        name: str = "step",
        flops: int | float = 0,
        later_flops: int | float = 0,
        stream: TextIOBase | None = None,
        seconds: int | float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Opens the line.

        Args:
            total_steps: length of the phase.
            name: of the phase.
            flops: cost of a step. 0: not known.
            later_flops: cost of all later phases, which the ETA includes where `flops` is known.
            stream: output; None: standard error. Only process 0 prints.
            seconds: least time between two lines if `stream` is no terminal.
            clock: returns seconds.
        """
        self._total, self._name = total_steps, name
        self._later_steps = later_flops / flops if flops else 0.0  # in steps of this phase
        self._stream = (stream or sys.stderr) if jax.process_index() == 0 else None
        self._in_place = self._stream is not None and self._stream.isatty()
        self._seconds = 0.0 if self._in_place else seconds
        self._clock = clock
        self._shown = float("-inf")
        self._first: tuple[int, float] | None = None  # step and time of the first line
        self._width = 0

    def show(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows the step, the loss, and the values of a `Meter`."""
        now = self._clock()
        self._first = self._first or (step, now)
        if self._stream is None or (now - self._shown < self._seconds and step < self._total):
            return
        self._shown = now
        first_step, first_time = self._first
        # Includes evaluations and saves.
        pace = (now - first_time) / (step - first_step) if step > first_step else None
        eta = None if pace is None else (self._total - step + self._later_steps) * pace
        line = describe(step, self._total, values, eta, name=self._name)
        if self._in_place:
            self._stream.write(f"\r{line:<{self._width}}")
            self._width = len(line)
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the last line on the terminal."""
        if self._in_place and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def describe(
    step: int,
    total_steps: int,
    values: Mapping[str, Any],
    eta: float | None = None,
    *,
    name: str = "step",
) -> str:
    """The progress line. Values that are missing are left out.

    `eta`, if known, is the time to the end of all phases in seconds.
    """
    parts = [f"{name} {step:,}/{total_steps:,}"]
    if eta is not None:
        parts.append(f"ETA {datetime.timedelta(seconds=round(eta))}")
    formats = {
        "loss": "loss {:.4f}",
        "wall/examples_per_s": "{:,.0f} examples/s",
        "wall/data_share": "data wait {:.0%}",
        "wall/mfu": "MFU {:.1%}",
    }
    parts += [text.format(float(values[name])) for name, text in formats.items() if name in values]
    return "  ".join(parts)
