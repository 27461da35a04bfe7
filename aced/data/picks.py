"""The picks of super-batches that were scored ahead, on their way from training to the readers.

A step scores a super-batch whose pictures it has seen small; the rows that it picks are read again
in full, and trained on in a later step.

Picks of a super-batch are int32 [2 b]: their rows in it, ascending, and the ids of the examples
that were scored there, perhaps in place of unusable ones.
"""

import contextlib
import threading

import numpy as np
from jaxtyping import Array, Int

from aced.data.reader import InputError

CANDIDATES = "candidates/"  # prefix of the stream that is scored
AHEAD = "picks_ahead"  # the output of a step with the picks from what it scored


class PicksAhead(contextlib.AbstractContextManager):
    """Hands the picks of each super-batch to the threads that read them, which wait for them."""

    def __init__(self, start: int, ahead: int):
        """Waits for the picks of super-batch `start`.

        Args:
            start: completed steps.
            ahead: the number of super-batches whose picks are known before they are trained on.
        """
        self._next, self._ahead = start, ahead
        self._known: dict[int, Array | np.ndarray] = {}
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, picks: Int[Array | np.ndarray, "2 b"]) -> None:
        """Adds the picks of the next super-batch, which may still be in computation.

        The batch that is `ahead` super-batches older must have been read.
        """
        with self._changed:
            self._known.pop(self._next - self._ahead, None)
            self._known[self._next] = picks
            self._next += 1
            self._changed.notify_all()

    def of(self, number: int) -> Int[np.ndarray, "2 b"]:
        """Rows and ids of the picks of a super-batch, once they are known.

        Raises:
            InputError: `close` was called.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or number in self._known)
            if self._is_closed:
                raise InputError("No more picks will come, because the training has ended.")
            picks = self._known[number]
        return np.asarray(picks)

    def close(self) -> None:
        """Ends the waiting of all threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def __exit__(self, *error: object) -> None:
        self.close()
