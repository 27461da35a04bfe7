"""Suites: averages of evaluations, and the choice of evaluations that are stable over seeds.

StableEval (arXiv 2411.18674), as summarised in secondary sources: repeat the same pretraining with
different seeds, sort the evaluations by their variance over seeds, and keep the first k of this
order such that their average varies least; ties go to the largest k. The paper keeps 27 of 34
evaluations, which are not public.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from aced.config import ConfigError

PREFIX = "suite"  # of the names of averages
_ROUNDING = 1e-12  # relative tolerance for equal spreads

Suites = Mapping[str, Sequence[str]]  # numbers of evaluations, such as "retrieval/mean_r1"


def check(suites: Suites, evaluations: Sequence[str]) -> None:
    """Checks the configured suites.

    Raises:
        ConfigError: a suite is empty, repeats a number, or has a number of no evaluation.
    """
    for name, numbers in suites.items():
        if not numbers or len(set(numbers)) < len(numbers):
            raise ConfigError(f"suites.{name} must have some numbers, each once; got {numbers}.")
        for number in numbers:
            if number.rpartition("/")[0] not in evaluations:
                raise ConfigError(
                    f"suites.{name} has {number!r}, which is not a number of an evaluation; write "
                    f"EVALUATION/NUMBER, with one of {sorted(evaluations)}."
                )


def averages(found: Mapping[str, float], suites: Suites) -> dict[str, float]:
    """The mean of each suite whose evaluations have all just run, as "suite/NAME".

    Args:
        found: numbers by name, of the evaluations that were due.
        suites: numbers by the suite's name. A suite with a number that its evaluation does not
            return is left out with a warning, rather than ending the run.
    """
    made = {name.rpartition("/")[0] for name in found}
    out = {}
    for name, numbers in suites.items():
        if not made.issuperset(number.rpartition("/")[0] for number in numbers):
            continue
        if missing := [number for number in numbers if number not in found]:
            logging.warning(
                "suites.%s is left out: its evaluation does not give %r. There are: %s.",
                name,
                missing[0],
                ", ".join(found),
            )
            continue
        out[f"{PREFIX}/{name}"] = float(np.mean([found[number] for number in numbers]))
    return out


@dataclasses.dataclass(frozen=True)
class Stability:
    """Variance of evaluations over seeds, and the stable ones."""

    order: Int[np.ndarray, " e"]  # of the evaluations, by ascending variance
    variance: Float[np.ndarray, " e"]  # of each over the seeds, in that order
    spread: Float[np.ndarray, " e"]  # standard deviation of the average of the first k = 1, ..., e
    kept: int  # k


def stability(scores: Float[np.ndarray, "s e"]) -> Stability:
    """Applies the rule of StableEval.

    Args:
        scores: of e evaluations in s runs that differ only in the seed; on one scale, since they
            are averaged.

    Raises:
        ConfigError: fewer than two runs, no evaluations, or scores that are not finite.
    """
    scores = np.asarray(scores, np.float64)
    if not np.isfinite(scores).all():
        raise ConfigError("Scores that are not finite have no variance; leave these runs out.")
    if len(scores) < 2 or not scores.shape[1]:
        raise ConfigError(
            f"{len(scores)} runs with {scores.shape[1]} evaluations in common tell nothing about "
            "how these vary; give at least two runs that differ in their seed."
        )
    variance = scores.var(axis=0, ddof=1)
    order = np.argsort(variance, kind="stable")
    means = np.cumsum(scores[:, order], axis=1) / np.arange(1, scores.shape[1] + 1)
    spread = means.std(axis=0, ddof=1)
    least = spread.min() + _ROUNDING * np.abs(scores).max()
    kept = int(np.flatnonzero(spread <= least)[-1]) + 1
    return Stability(order, variance[order], spread, kept)
