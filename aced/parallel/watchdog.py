"""A watchdog: a run that hangs is ended, and shows where it hung.

A collective whose peer died unnoticed never returns, and neither does a read from a file system
that is gone; no exception comes of it, and the machines go on costing.
"""

import faulthandler
import sys
import time

from absl import logging

_START = 3.0  # so many times as long until the first sign of life: compilation is before it
_REARM_SECONDS = 1.0  # at most so often; setting the alarm starts a thread


class Watchdog:
    """While the `with` block runs, `alive` must be called every `minutes`.

    If it is not, the stacks of all threads go to standard error, under "Timeout", and the process
    ends with code 1. The alarm does not need the interpreter: it also ends a process that hangs
    in native code.
    """

    def __init__(self, minutes: float):
        """Takes the longest time between two signs of life; 0: no watchdog."""
        self._seconds = 60.0 * minutes
        self._armed = 0.0

    def alive(self) -> None:
        """Sets the alarm anew: a step, an evaluation or a checkpoint is done."""
        if self._seconds and time.monotonic() - self._armed >= min(_REARM_SECONDS, self._seconds):
            self._arm(self._seconds)

    def _arm(self, seconds: float) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            logging.info(
                "A step, evaluation or checkpoint that takes more than %.1f minutes (the first "
                "step: %.1f) ends the process: watchdog_minutes.",
                self._seconds / 60,
                _START * self._seconds / 60,
            )
            self._arm(_START * self._seconds)
        return self

    def __exit__(self, *error: object) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
