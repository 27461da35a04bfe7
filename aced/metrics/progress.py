"""Progress of a run: its speed, a progress line, and the parts of its start that take long."""

import contextlib
import datetime
import logging as stdlib_logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from io import TextIOBase
from typing import Any

import jax
import tqdm
from absl import logging

from aced import terminal
from aced.metrics.writer import Budget

_DATA_SHARE = 0.1
# Between lines in a file: 100 lines for an hour's run, and signs of life in a run of days.
_LINE_SECONDS, _LINE_SHARE, _RARE_LINE_SECONDS = 10.0, 0.01, 300.0
_REDRAW_SECONDS = 0.1  # a terminal through ssh shows no more
_BAR = "  {bar:16}  "


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
        """Announces the compilation of the first step, and starts the clock anew after it."""
        with announced("Compiling the step"):
            yield
        self._since = self._clock()
        self._spent.clear()

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
    """The progress line of one phase of a run.

    On a terminal it stays in place, below log lines. Elsewhere it is printed again, at least 10
    seconds and 1 % of the steps after the last time, and at the latest after 5 minutes.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        name: str = "step",
        start: int = 0,
        flops: int | float = 0.0,
        later_flops: int | float = 0.0,
        stream: TextIOBase | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Opens the line.

        Args:
            total_steps: length of the phase.
            name: of the phase, which begins the line.
            start: completed steps.
            flops: cost of a step.
            later_flops: cost of the phases after this one, which the ETA includes, at the FLOP/s
                of this phase.
            stream: output; None: standard error. Only process 0 prints.
            clock: returns seconds.
        """
        self._total = total_steps
        self._name = name
        self._later_steps = later_flops / flops if flops else 0.0
        self._stream = (stream or sys.stderr) if jax.process_index() == 0 else None
        self._clock = clock
        self._shown = (start, float("-inf"))  # step and time of the last line
        self._first: tuple[int, float] | None = None  # step and time of the first call
        self._values: dict[str, Any] = {}
        self._bar: tqdm.tqdm | None = None
        if self._stream is not None and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start,
                file=self._stream,
                ncols=_columns(),
                nrows=shutil.get_terminal_size().lines,  # tqdm hides a bar in a window of 0 lines
                bar_format=_escaped(_place(name, start, total_steps)) + _BAR,
                colour="green" if terminal.has_colours(self._stream) else None,
            )
            self._handler = logging.get_absl_handler().python_handler
            self._handler.emit = self._emit_above

    def show(
        self, step: int, values: Mapping[str, Any] | None = None, *, always: bool = False
    ) -> None:
        """Shows the step, the loss, and the values of a `Meter`.

        Args:
            step: completed steps.
            values: measured at this step. Without, a terminal shows the last ones.
            always: also if the last line is recent.
        """
        now = self._clock()
        self._first = self._first or (step, now)
        self._values |= values or {}
        if self._stream is None or not (always or self._is_due(step, now, bool(values))):
            return
        self._shown = (step, now)
        place = _place(self._name, step, self._total)
        measured = _measured(self._values, self._eta(step, now), self._stream)
        if self._bar is None:
            self._print(f"{place}  {measured}")
        else:
            self._bar.n = step
            self._bar.ncols = _columns()  # the window may have changed
            self._bar.bar_format = _escaped(place) + _BAR + _escaped(measured)
            self._bar.refresh()

    def write(self, step: int, text: str) -> None:
        """Prints a line about `step` that stays."""
        if self._stream is not None:
            self._print(f"{_place(self._name, step, self._total)}  {text}")

    def close(self) -> None:
        """Leaves the last line on the terminal."""
        if self._bar is not None:
            vars(self._handler).pop("emit")
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _is_due(self, step: int, now: float, measured: bool) -> bool:
        if step == self._total:
            return True
        last_step, last_time = self._shown
        if self._bar is not None:
            return now - last_time >= _REDRAW_SECONDS
        is_far = step - last_step >= _LINE_SHARE * self._total
        return measured and now - last_time >= (_LINE_SECONDS if is_far else _RARE_LINE_SECONDS)

    def _eta(self, step: int, now: float) -> float | None:
        """Seconds to the end of all phases, evaluations and saves included."""
        first_step, first_time = self._first
        steps_left = self._total - step + self._later_steps
        if step <= first_step or not steps_left:
            return None
        return (now - first_time) / (step - first_step) * steps_left

    def _print(self, line: str) -> None:
        tqdm.tqdm.write(terminal.stamped(line), file=self._stream)
        self._stream.flush()

    def _emit_above(self, record: stdlib_logging.LogRecord) -> None:
        """Prints a log line above the progress line."""
        with tqdm.tqdm.external_write_mode(file=self._stream):
            type(self._handler).emit(self._handler, record)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _escaped(text: str) -> str:
    """`text` within a format string."""
    return text.replace("{", "{{").replace("}", "}}")


def _place(name: str, step: int, total_steps: int) -> str:
    return f"{name} {step:,}/{total_steps:,} {step / total_steps:4.0%}"


def _measured(values: Mapping[str, Any], eta: float | None, stream: TextIOBase) -> str:
    """The values that are known. `eta` is the time to the end in seconds."""
    parts = [] if eta is None else [f"ETA {datetime.timedelta(seconds=round(eta))}"]
    formats = {
        "loss": "loss {:.4f}",
        "wall/examples_per_s": "{:,.0f} examples/s",
        "wall/mfu": "MFU {:.1%}",
    }
    parts += [text.format(float(values[name])) for name, text in formats.items() if name in values]
    if waits_for_data(values):
        share = f"data wait {values['wall/data_share']:.0%}"
        parts.append(terminal.painted(share, "yellow", stream))
    return "  ".join(parts)


def waits_for_data(values: Mapping[str, Any]) -> bool:
    """Whether the devices waited for data for more than a tenth of the time.

    Less is within what other work on the machine changes, and faster input would gain little.
    """
    return values.get("wall/data_share", 0.0) > _DATA_SHARE


@contextlib.contextmanager
def announced(part: str, seconds: float = 1.0) -> Iterator[None]:
    """Logs that `part` takes long, after `seconds` in the block, and its time at the end.

    Args:
        part: what the block does, such as "Building the program".
        seconds: a shorter block logs nothing.
    """
    start = time.perf_counter()
    late = threading.Timer(seconds, lambda: logging.info("%s ...", part))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()
        late.join()
    if (took := time.perf_counter() - start) > seconds:
        logging.info("%s took %.0f s.", part, took)
