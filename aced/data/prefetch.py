"""Moves batches to the devices in advance, and measures how long devices wait for input."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from aced.parallel import mesh as meshes

_POLL = 0.002  # seconds; resolution of the measured idle time


class DevicePrefetch(contextlib.AbstractContextManager):
    """Batches as global arrays, `depth` of them ready on the devices."""

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, depth: int = 1):
        self._waited = 0.0
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(batches, mesh), daemon=True)
        self._thread.start()

    def next(self, running: PyTree) -> dict[str, jax.Array]:
        """Returns the next batch; raises the error of the input, and StopIteration at its end.

        The devices are idle once `running`, an output of the step in flight, is ready; None: no
        step is in flight.
        """
        idle_since = None
        while True:
            try:
                item = self._queue.get(timeout=_POLL)
                break
            except queue.Empty:
                if idle_since is None and (running is None or running.is_ready()):
                    idle_since = time.monotonic()
        if idle_since is not None:
            self._waited += time.monotonic() - idle_since
        if isinstance(item, BaseException):
            raise item
        return item

    def take_waited(self) -> float:
        """Seconds since the last call in which devices waited for a batch."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Stops the thread; the caller closes the input."""
        self._stop.set()
        self._thread.join()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, batches: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> None:
        try:
            for batch in batches:
                if not self._put(meshes.global_batch(batch, mesh)):
                    return
            self._put(StopIteration())
        except BaseException as error:  # raised by `next`
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Whether the item was queued before `close`."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.05)
            except queue.Full:
                continue
            return True
        return False
