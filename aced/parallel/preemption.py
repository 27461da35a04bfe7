"""SIGTERM and Ctrl-C as a question: who stops a run gives it the time to save."""

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
    """While the `with` block runs, `reached` tells when to save and stop.

    In one process that is after the step in which SIGTERM or Ctrl-C comes; a second one ends the
    process at once. Outside the main thread, where Python delivers no signals, it never comes.

    Of several processes it is enough that one gets SIGTERM: JAX, which catches it from
    `jax.distributed.initialize` on, has them all stop after the same step, within a few.
    """

    # JAX wants a number that only grows, on all processes alike, and checkpoints ask it, too, by
    # the step. Steps begin anew in a run that comes after another one in this process.
    _asked = 0
    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.exit_code = EXIT_CODE
        self._requested = False
        self._before: dict[int, Any] = {}

    def reached(self, step: int) -> bool:
        """Whether to stop here. Every process asks once after each step."""
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
