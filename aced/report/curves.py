"""Curves of several runs over examples trained or over FLOPs, as SVG."""

import dataclasses
import io
import types
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from aced.config import ConfigError

AXES = {"examples_trained": "examples trained", "flops": "FLOPs, scoring included"}
_POINTS = 250  # the maximum of a curve: it is drawn on as many pixels
_SIZE = 5.4, 3.2  # inches, of 72 pixels
_WITH_MARKERS = 50  # the maximum of a curve with markers
_DECADES = 10  # runs that differ by more have a logarithmic axis
_LEAST_SHARE = 0.001  # of an axis of shares; smaller differences are those of rounding

Lines = Sequence[Mapping[str, int | float]]  # of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over a cost: of one run, or the mean of several with their lowest and highest."""

    x: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


def curve(runs: Sequence[Lines], cost: str, name: str) -> Curve | None:
    """The curve of a metric over a cost; None if no run has both.

    At each cost, the mean is over the runs that have reached it.
    """
    curves = [(x, y) for x, y in (points(lines, cost, name) for lines in runs) if len(x)]
    if not curves:
        return None
    if len(curves) == 1:
        ((x, y),) = curves
        return Curve(x, y, y, y)
    x = curves[0][0]
    if any(not np.array_equal(x, other) for other, _ in curves):
        ends = min(x[0] for x, _ in curves), max(x[-1] for x, _ in curves)
        x = np.linspace(*ends, min(_POINTS, max(len(x) for x, _ in curves)))
    values = np.stack([np.interp(x, at, y, left=np.nan, right=np.nan) for at, y in curves])
    x, values = x[~np.isnan(values).all(0)], values[:, ~np.isnan(values).all(0)]
    return Curve(x, np.nanmean(values, 0), np.nanmin(values, 0), np.nanmax(values, 0))


def points(
    lines: Lines, cost: str, name: str
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Costs and values of a metric; means of neighbours if there are too many points."""
    pairs = [(line[cost], line[name]) for line in lines if name in line and cost in line]
    xy = np.array(pairs, np.float64).reshape(-1, 2)
    xy = xy[np.isfinite(xy[:, 1])]
    if len(xy) > _POINTS:
        xy = np.stack([piece.mean(0) for piece in np.array_split(xy, _POINTS)])
    return xy[:, 0], xy[:, 1]


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, "#rrggbb".

    Raises:
        ConfigError: matplotlib is not installed.
    """
    mpl = _matplotlib()
    if len(labels) <= 10:
        table = mpl.colormaps["tab10"].colors
    else:
        table = mpl.colormaps["turbo"](np.linspace(0.02, 0.95, len(labels)))
    return {label: mpl.colors.to_hex(table[i]) for i, label in enumerate(labels)}


def draw(
    curves: Mapping[str, Curve],
    baselines: Mapping[str, Curve],
    colour: Mapping[str, str],
    cost: str,
    *,
    is_share: bool,
) -> bytes:
    """Plots curves over a cost, logarithmic if their lengths differ by more than ten times.

    Args:
        curves: by label.
        baselines: by label; dotted.
        colour: by label.
        cost: one of `AXES`.
        is_share: whether values are shares, to be shown in per cent.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    mpl = _matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    # Reproducible output, no random names of clip paths; texts stay texts, which are smaller.
    with mpl.rc_context({"svg.hashsalt": "aced", "svg.fonttype": "none"}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axis = figure.subplots()
        for label, item in curves.items():
            marker = "." if len(item.x) <= _WITH_MARKERS else None
            axis.plot(item.x, item.mean, marker=marker, linewidth=1.2, color=colour[label])
            if np.any(item.low < item.high):
                axis.fill_between(
                    item.x, item.low, item.high, color=colour[label], alpha=0.2, linewidth=0
                )
        for label, item in baselines.items():
            axis.plot(item.x, item.mean, linestyle=":", linewidth=1, color=colour[label])
        ends = [item.x[-1] for item in curves.values() if item.x[-1] > 0]
        if ends and max(ends) > _DECADES * min(ends):
            axis.set_xscale("log")
        if is_share:
            axis.yaxis.set_major_formatter(PercentFormatter(1.0))
            low, high = axis.get_ylim()
            if high - low < _LEAST_SHARE:
                middle = (low + high) / 2
                axis.set_ylim(middle - _LEAST_SHARE / 2, middle + _LEAST_SHARE / 2)
        axis.set_xlabel(AXES[cost])
        axis.grid(alpha=0.3)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _matplotlib() -> types.ModuleType:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError(f"Curves need `pip install '.[plots]'`: {error}") from error
    return mpl
