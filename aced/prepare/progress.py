"""A bar on the terminal with an ETA, where the pipeline runs in this process.

Beam's own counters can't be read before the embedded runner ends. Its steps run in this process
and advance this bar; a worker elsewhere has none, and the runner's own page shows the counts.
"""

import contextlib
from collections.abc import Iterator

import tqdm

_STEPS = {"examine": "1/2 examined", "write": "2/2 written"}
_bars: dict[str, tqdm.tqdm] | None = None  # those that are shown; None: no bar is wanted


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows a bar for each step on a terminal, meanwhile."""
    global _bars
    _bars = {}
    try:
        yield
    finally:
        for bar in _bars.values():
            bar.close()
        _bars = None


def expect(step: str, count: int) -> None:
    """Adds `count` to the images to be done in `step`, "examine" or "write", before it begins."""
    if _bars is not None:
        if step not in _bars:
            _bars[step] = tqdm.tqdm(desc=_STEPS[step], total=0, unit=" images", disable=None)
        if not _bars[step].disable:
            _bars[step].total += count


def advance(step: str, count: int = 1) -> None:
    """Tells that `count` images are done in `step`."""
    if _bars is not None and step in _bars:
        _bars[step].update(count)
