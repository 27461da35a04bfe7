"""Progress bars on the terminal, for the runner in this process.

Beam's own counters can't be read before the embedded runner ends, so its steps advance these bars.
Workers elsewhere have no bar; the runner's own page shows the counts.
"""

import contextlib
from collections.abc import Iterator

import tqdm

_STEPS = {"examine": "1/2 examined", "write": "2/2 written"}
_bars: dict[str, tqdm.tqdm] | None = None  # by step; None: bars are off


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows a bar for each step on a terminal."""
    global _bars
    _bars = {}
    try:
        yield
    finally:
        for bar in _bars.values():
            bar.close()
        _bars = None


def expect(step: str, count: int) -> None:
    """Adds `count` images to the total of `step`, "examine" or "write"."""
    if _bars is not None:
        if step not in _bars:
            _bars[step] = tqdm.tqdm(desc=_STEPS[step], total=0, unit=" images", disable=None)
        if not _bars[step].disable:
            _bars[step].total += count


def advance(step: str, count: int = 1) -> None:
    """Advances the bar of `step` by `count` images."""
    if _bars is not None and step in _bars:
        _bars[step].update(count)
