"""Progress of a preparation in this process, on standard error.

Beam's own counters cannot be read before the embedded runner ends, so its steps advance these bars.
On a terminal a bar is redrawn in place; elsewhere it is a line every few seconds. Workers of other
runners have no bar; the runner's own page shows the counts.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from io import TextIOBase

import tqdm

_STEPS = {  # in their order
    "read": "1/3 Reading the table",
    "examine": "2/3 Examining, then finding copies",
    "write": "3/3 Writing",
}
_SECONDS = 10.0  # between lines, where the output is no terminal
_bars: dict[str, tqdm.tqdm] | None = None  # by step; None: bars are off


class _Lines:
    """A stream for tqdm, which turns each drawing in place into a line."""

    def __init__(self, stream: TextIOBase):
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows a bar for each step within the block."""
    global _bars
    _bars = {}
    try:
        yield
    finally:
        for bar in _bars.values():
            bar.close()
        _bars = None


def expect(step: str, count: int) -> None:
    """Adds `count` images to the total of `step`, one of "read", "examine" and "write"."""
    if _bars is not None:
        bar = _bar(step)
        bar.total = (bar.total or 0) + count


def advance(step: str, count: int = 1) -> None:
    """Advances the bar of `step` by `count` images."""
    if _bars is not None:
        _bar(step).update(count)


def _bar(step: str) -> tqdm.tqdm:
    """The bar of `step`; the first call closes those of earlier steps."""
    if step not in _bars:
        for bar in _bars.values():
            bar.close()
        in_place = sys.stderr.isatty()
        _bars[step] = tqdm.tqdm(
            desc=_STEPS[step],
            unit=" images",
            file=sys.stderr if in_place else _Lines(sys.stderr),
            mininterval=0.1 if in_place else _SECONDS,
            maxinterval=_SECONDS,
            miniters=1,
            delay=1e-9,  # no line before the first count
            ncols=shutil.get_terminal_size((100, 24)).columns,
        )
    return _bars[step]
