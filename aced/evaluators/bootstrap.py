"""Numbers of an evaluation, and their confidence intervals by resampling the examples.

A number is a function of how often each example counts. Its value has every example once; the
bootstrap evaluates the same function where examples are drawn with replacement.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int, Shaped

# Maps how often each example counts, in r samples, to the number of each sample; NaN where the
# number is undefined.
Statistic = Callable[[Float[np.ndarray, "r n"]], Float[np.ndarray, " r"]]

_PERCENTILES = {"low": 2.5, "high": 97.5}
_ENTRIES = 1 << 20  # of an array [r n]: 8 MB, so that it stays in a cache


def numbers(
    statistics: Mapping[str, Statistic], examples: int, samples: int = 0
) -> dict[str, float]:
    """The value of each statistic and, with `samples`, its 95 % interval as NAME_low, NAME_high.

    The interval lies between the percentiles 2.5 and 97.5 over the samples. The draws depend only
    on `examples` and `samples`: the same call gives the same numbers, and models are compared on
    the same draws. Samples in which a number is undefined are left out: an area under the ROC
    curve, for instance, needs examples of both classes.

    Args:
        statistics: functions by the name of their number.
        examples: n.
        samples: how many times n examples are drawn; 0: no intervals.
    """
    whole = np.ones((1, examples))
    out = {name: float(statistic(whole)[0]) for name, statistic in statistics.items()}
    rng, size = np.random.default_rng(0), max(1, _ENTRIES // examples)
    by_name: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for start in range(0, samples, size):
        draws = rng.integers(examples, size=(min(size, samples - start), examples))
        counts = np.stack([np.bincount(draw, minlength=examples) for draw in draws])
        for name, statistic in statistics.items():
            by_name[name].append(statistic(counts.astype(np.float64)))
    if samples:
        for name, parts in by_name.items():
            values = np.concatenate(parts)
            values = values[~np.isnan(values)]
            for end, percentile in _PERCENTILES.items():
                value = np.percentile(values, percentile) if len(values) else np.nan
                out[f"{name}_{end}"] = float(value)
    return out


def mean(values: Shaped[np.ndarray, " m"], owner: Int[np.ndarray, " m"] | None = None) -> Statistic:
    """The mean of `values`; `owner` has the example of each, None: one value per example."""
    values = values.astype(np.float64)

    def statistic(counts: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        weights = counts if owner is None else counts[:, owner]
        return ratio(weights @ values, weights.sum(axis=1))

    return statistic


def mean_of_groups(values: Shaped[np.ndarray, " n"], group: Int[np.ndarray, " n"]) -> Statistic:
    """The mean over the groups that occur of the mean of `values` in each; -1: in no group."""
    means = _means_of_groups(values, group)
    return lambda counts: mean_of_known(means(counts))


def worst_of_groups(values: Shaped[np.ndarray, " n"], group: Int[np.ndarray, " n"]) -> Statistic:
    """The least mean of `values` in a group that occurs; -1: in no group."""
    means = _means_of_groups(values, group)
    return lambda counts: np.fmin.reduce(means(counts), axis=1)  # ignores NaN


def _means_of_groups(
    values: Shaped[np.ndarray, " n"], group: Int[np.ndarray, " n"]
) -> Callable[[Float[np.ndarray, "r n"]], Float[np.ndarray, "r g"]]:
    """The mean of `values` in each group; NaN where no example of the group counts."""
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    values = values[order].astype(np.float64)

    def means(counts: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r g"]:
        counts = counts[:, order]
        sums = np.add.reduceat(counts * values, starts, axis=1)
        return ratio(sums, np.add.reduceat(counts, starts, axis=1))

    return means


def mean_of_known(x: Float[np.ndarray, "r c"]) -> Float[np.ndarray, " r"]:
    """The mean of each row without its NaN; NaN for a row without others."""
    known = ~np.isnan(x)
    return ratio(np.where(known, x, 0).sum(axis=1), known.sum(axis=1))


def ratio(x: Float[np.ndarray, "*d"], y: Shaped[np.ndarray, "*d"]) -> Float[np.ndarray, "*d"]:
    """x / y, and NaN where y is 0."""
    return np.divide(x, y, out=np.full(np.shape(x), np.nan), where=y != 0)
