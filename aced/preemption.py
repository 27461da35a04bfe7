"""SIGTERM as a question: a machine that is taken away gives a run the time to save."""

import signal
import threading
from types import FrameType

import jax
from absl import logging
from jax.experimental import multihost_utils

EXIT_CODE = 42  # everything is saved; start the same command again


class Preemption:
    """While the `with` block runs, `reached` tells when to save and stop.

    In one process that is after the step in which SIGTERM comes; a second SIGTERM ends the process
    at once. Outside the main thread, where Python delivers no signals, it never comes.

    Of several processes it is enough that one gets the signal: JAX, which catches it from
    `jax.distributed.initialize` on, has them all stop after the same step, within a few.
    """

    # JAX wants a number that only grows, on all processes alike, and checkpoints ask it, too, by
    # the step. Steps begin anew in a run that comes after another one in this process.
    _asked = 0

    def __init__(self):
        self._requested = False
        self._installed = False

    def reached(self, step: int) -> bool:
        """Whether to stop here. Every process asks once after each step."""
        if jax.process_count() == 1:
            return self._requested
        Preemption._asked = max(step, Preemption._asked + 1)
        return multihost_utils.reached_preemption_sync_point(Preemption._asked)

    def __enter__(self) -> "Preemption":
        in_main = threading.current_thread() is threading.main_thread()
        self._installed = in_main and jax.process_count() == 1
        if self._installed:
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        logging.warning("SIGTERM: the run stops after this step and saves.")
        self._requested = True
        signal.signal(number, self._before)
