"""SIGTERM as a flag: a machine that is taken away gives a run the time to save."""

import signal
import threading
from types import FrameType

from absl import logging

EXIT_CODE = 42  # everything is saved; start the same command again


class Preemption:
    """While the `with` block runs, `requested` tells whether SIGTERM has come.

    A second SIGTERM ends the process at once. Outside the main thread, where Python delivers no
    signals, it stays False.
    """

    requested = False

    def __enter__(self) -> "Preemption":
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        logging.warning("SIGTERM: the run stops after this step and saves.")
        self.requested = True
        signal.signal(number, self._before)
