"""Graceful handling of SIGTERM and Ctrl-C: the run saves, then stops."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

EXIT_CODE = 42  # everything is saved; start the same command again
INTERRUPTED = 130  # by Ctrl-C, as shells have it


class Preemption:
    """Within the `with` block, `reached` returns whether to save and stop.

    In a single process that is after the step during which SIGTERM or Ctrl-C arrives; a second
    signal ends the process at once. Outside the main thread Python delivers no signals.

    In a multi-process run it is enough that one process gets SIGTERM. JAX handles it from
    `jax.distributed.initialize` on, and stops all processes after the same step.
    """

    # JAX needs a number that increases on all processes alike, and Orbax uses the step. Step
    # numbers restart if another run follows in this process.
    _asked = 0
    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.exit_code = EXIT_CODE
        self._requested = False
        self._before: dict[int, Any] = {}

    def reached(self, step: int) -> bool:
        """Whether to stop after this step. Every process must call this once per step."""
        if jax.process_count() == 1:
            return self._requested
        Preemption._asked = max(step, Preemption._asked + 1)
        return multihost_utils.reached_preemption_sync_point(Preemption._asked)

    def __enter__(self) -> "Preemption":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and jax.process_count() == 1:
            self._before = {n: signal.signal(n, self._on_signal) for n in self._SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        logging.warning("%s: the run stops after this step and saves; again: at once.", name)
        self._requested = True
        if number == signal.SIGINT:
            self.exit_code = INTERRUPTED
        signal.signal(number, self._before[number])
