"""Curves of several runs over examples trained and over FLOPs, as SVG."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from aced.config import ConfigError

AXES = {"examples_trained": "examples trained", "flops": "FLOPs, scoring included"}
_POINTS = 1000  # the maximum of a curve
_SIZE = 11.0, 3.2  # inches
_WITH_MARKERS = 50  # the maximum of a curve with markers

Run = Sequence[Mapping[str, int | float]]  # lines of metrics.jsonl


def draw(name: str, runs: Mapping[str, Run]) -> bytes:
    """Plots a metric of all runs that have it, over both costs.

    Args:
        name: of the metric.
        runs: lines of each run, by its name in the legend.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"Curves need `pip install '.[plots]'`: {error}") from error
    # Reproducible output: no date, no random names of clip paths.
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
    """Costs [n] and values [n] of a metric; means of neighbours if there are too many points."""
    pairs = [(line[cost], line[name]) for line in lines if name in line and cost in line]
    xy = np.array(pairs, np.float64).reshape(-1, 2)
    xy = xy[np.isfinite(xy[:, 1])]
    if len(xy) > _POINTS:
        xy = np.stack([piece.mean(0) for piece in np.array_split(xy, _POINTS)])
    return xy[:, 0], xy[:, 1]


def _plain(text: str) -> str:
    """Escapes mathtext, and the leading underscore that would hide a legend entry."""
    return text.replace("$", r"\$").lstrip("_")
