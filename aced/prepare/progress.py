"""Progress of a preparation, on standard error.

Beam's own counters cannot be read before the embedded runner ends, so its steps advance these bars.
On a terminal a bar is redrawn in place; elsewhere it is a line every few seconds. Workers of Dask
send their counts to the process with the bars; other runners show counts on a page of their own.
"""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from io import TextIOBase

import tqdm

_STEPS = {  # in their order
    "read": "1/3 Reading the table",
    "examine": "2/3 Examining, then finding copies",
    "write": "3/3 Writing",
}
_SECONDS = 10.0  # between lines, where the output is no terminal
# Gets the step, the images done and the images expected; None: this process counts nothing.
_receiver: Callable[[str, int, int], None] | None = None


class _Lines:
    """A stream for tqdm, which turns each drawing in place into a line."""

    def __init__(self, stream: TextIOBase):
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


class Bars:
    """A bar for each step."""

    def __init__(self):
        self._bars: dict[str, tqdm.tqdm] = {}
        self._counts: dict[str, dict[str, tuple[int, int]]] = {}  # by step and source

    def add(self, step: str, done: int, expected: int) -> None:
        """Adds to the images of `step` that are done, and to those expected."""
        bar = self._bar(step)
        if expected:
            bar.total = (bar.total or 0) + expected
        bar.update(done)

    def put(self, source: str, step: str, done: int, expected: int) -> None:
        """Replaces the counts that `source`, a task on some worker, had sent before."""
        before = self._counts.setdefault(step, {}).get(source, (0, 0))
        self._counts[step][source] = done, expected
        self.add(step, done - before[0], expected - before[1])

    def close(self) -> None:
        """Leaves the bars on the screen."""
        for bar in self._bars.values():
            bar.close()

    def _bar(self, step: str) -> tqdm.tqdm:
        """The bar of `step`; the first call closes those of earlier steps."""
        if step not in self._bars:
            self.close()
            in_place = sys.stderr.isatty()
            self._bars[step] = tqdm.tqdm(
                desc=_STEPS[step],
                unit=" images",
                file=sys.stderr if in_place else _Lines(sys.stderr),
                mininterval=0.1 if in_place else _SECONDS,
                maxinterval=_SECONDS,
                miniters=1,
                delay=1e-9,  # no line before the first count
                ncols=shutil.get_terminal_size((100, 24)).columns,
            )
        return self._bars[step]


@contextlib.contextmanager
def shown() -> Iterator[Bars]:
    """Shows a bar for each step within the block, of the counts of this process."""
    bars = Bars()
    send_to(bars.add)
    try:
        yield bars
    finally:
        send_to(None)
        bars.close()


def send_to(receiver: Callable[[str, int, int], None] | None) -> None:
    """Gives the counts of this process to `receiver`: step, images done, images expected."""
    global _receiver
    _receiver = receiver


def expect(step: str, count: int) -> None:
    """Adds `count` images to the total of `step`, one of "read", "examine" and "write"."""
    if _receiver is not None:
        _receiver(step, 0, count)


def advance(step: str, count: int = 1) -> None:
    """Adds `count` to the images of `step` that are done."""
    if _receiver is not None:
        _receiver(step, count, 0)
