"""The picks of super-batches that were scored ahead, on their way from training to the readers.

A step scores a super-batch whose pictures it has seen small; the rows that it picks are read again
in full, and trained on in a later step.
"""

import contextlib
import threading
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from aced.data.reader import InputError

CANDIDATES = "candidates/"  # prefix of the stream that is scored
AHEAD = "picks_ahead"  # the output of a step with the `Picks` of the super-batch that it scored


class Picks(NamedTuple):
    """The picks of a super-batch [b], or of several [k b]. Fields are trees, as in `TrainState`."""

    rows: Any  # int32; their rows in the super-batch, ascending
    ids: Any  # int32; the examples that were scored there, perhaps in place of unusable ones


class PicksAhead(contextlib.AbstractContextManager):
    """Hands the picks of each super-batch to the threads that read them, which wait for them."""

    def __init__(self, start: int, ahead: int):
        """Waits for the picks of super-batch `start`.

        Args:
            start: completed steps.
            ahead: the number of super-batches whose picks are known before they are trained on.
        """
        self._next, self._ahead = start, ahead
        self._known: dict[int, Picks] = {}
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, picks: Picks) -> None:
        """Adds the picks of the next super-batch, whose arrays may still be computed.

        The batch that is `ahead` super-batches older must have been read.
        """
        with self._changed:
            self._known.pop(self._next - self._ahead, None)
            self._known[self._next] = picks
            self._next += 1
            self._changed.notify_all()

    def of(self, number: int) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """Rows and ids of the picks of a super-batch, once they are known.

        Raises:
            InputError: `close` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or number in self._known)
            if self._is_closed:
                raise InputError("No more picks will come, because the training has ended.")
            picks = self._known[number]
        return np.asarray(picks.rows), np.asarray(picks.ids)

    def close(self) -> None:
        """Ends the waiting of all threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def __exit__(self, *error: object) -> None:
        self.close()
