"""Curves of several runs, at equal examples trained and at equal FLOPs, as SVG."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from aced.config import ConfigError

AXES = {"examples_trained": "examples trained", "flops": "FLOPs, scoring included"}
_POINTS = 1000  # of a curve; more are not seen
_SIZE = 11.0, 3.2  # inches
_WITH_MARKERS = 50  # points up to which each is marked

Run = Sequence[Mapping[str, int | float]]  # lines of metrics.jsonl


def draw(name: str, runs: Mapping[str, Run]) -> bytes:
    """Returns one metric of all runs that have it, over both costs.

    Args:
        name: of the metric.
        runs: their lines, by the name that the legend gives them.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"Curves need `pip install '.[plots]'`: {error}") from error
    # The same page from the same runs: no date, no random names of clip paths.
    with mpl.rc_context({"svg.hashsalt": "aced"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        for axis, (cost, title) in zip(figure.subplots(1, 2), AXES.items(), strict=True):
            for label, lines in runs.items():
                x, y = points(lines, cost, name)
                if len(x):
                    marker = "." if len(x) <= _WITH_MARKERS else None
                    axis.plot(x, y, marker=marker, linewidth=1.2, label=_plain(label))
            axis.set_xlabel(title)
            axis.grid(alpha=0.3)
        figure.axes[0].set_title(_plain(name), loc="left")
        figure.axes[0].legend(fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def points(lines: Run, cost: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a run was by its cost, [n] and [n]; of many points the means of neighbours."""
    found = [(line[cost], line[name]) for line in lines if name in line and cost in line]
    found = np.array(found, np.float64).reshape(-1, 2)
    found = found[np.isfinite(found[:, 1])]
    several = -(-len(found) // _POINTS)
    if several > 1:
        pieces = np.array_split(found, _POINTS)
        found = np.stack([piece.mean(0) for piece in pieces])
    return found[:, 0], found[:, 1]


def _plain(text: str) -> str:
    """Without matplotlib's own language, and what a legend would leave out."""
    return text.replace("$", r"\$").lstrip("_")
