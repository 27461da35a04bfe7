"""A watchdog that ends a hanging run and prints where it hangs.

A collective whose peer has died, or a read from a dead file system, may block forever without an
exception, while the machines keep costing money.
"""

import faulthandler
import sys
import time

from absl import logging

_START = 3.0  # factor on the first timeout, which includes compilation
_REARM_SECONDS = 1.0  # least time between resets, since each starts a thread


class Watchdog:
    """Within the `with` block, `alive` must be called at least every `minutes`.

    Otherwise the stacks of all threads are printed to standard error, under "Timeout", and the
    process exits with code 1, even if it hangs in native code.
    """

    def __init__(self, minutes: float):
        """Sets the timeout; 0: no watchdog."""
        self._seconds = 60.0 * minutes
        self._armed = 0.0

    def alive(self) -> None:
        """Resets the timeout: a step, an evaluation or a checkpoint is done."""
        if self._seconds and time.monotonic() - self._armed >= min(_REARM_SECONDS, self._seconds):
            self._arm(self._seconds)

    def _arm(self, seconds: float) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            logging.log_first_n(  # every run before this one has a watchdog, too
                logging.DEBUG,
                "A step, evaluation or checkpoint that takes more than %.1f minutes (the first "
                "step: %.1f) ends the process: watchdog_minutes.",
                1,
                self._seconds / 60,
                _START * self._seconds / 60,
            )
            self._arm(_START * self._seconds)
        return self

    def __exit__(self, *error: object) -> None:
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
