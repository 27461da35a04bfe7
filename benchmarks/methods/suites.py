"""Which runs belong together: a suite is a list, whose first entries matter most."""

import itertools
import json
from collections.abc import Callable

from benchmarks.methods.runs import Run

SEEDS = (0, 1, 2)
NOISES = (0.5, 0.0, 0.25, 0.75)  # shares of wrong captions
MAIN = ("iid", "h_acid", "aced", "i_acid", "kd")


def settings(**changes: float | str) -> str:
    """Settings as a table keeps them: `settings(selection__gain=1.0)`."""
    return json.dumps({name.replace("__", "."): value for name, value in changes.items()})


def main() -> list[Run]:
    """The methods, by seed, noise and method: every seed is a whole comparison."""
    return [
        Run(method, wrong=wrong, seed=seed)
        for seed, wrong, method in itertools.product(SEEDS, NOISES, MAIN)
    ]


def equal_flops() -> list[Run]:
    """IID for as many steps as the FLOPs of H-ACID with a cached reference allow.

    That is 1 + (1 / 3) / (1 - f) steps for one, f = 0.8: a forward pass of the super-batch beside
    forward and backward of the sub-batch.
    """
    steps = round(Run("iid").steps * (1 + 1 / 3 / (1 - Run("iid").filter_ratio)))
    return [
        Run("iid", wrong=wrong, steps=steps, seed=seed)
        for seed, wrong in itertools.product(SEEDS, NOISES)
    ]


def rest() -> list[Run]:
    """What else the paper compares: ACED-IIDistill, hard learner, independent, other KD."""
    independent = settings(selection__method="independent")
    other = [
        ("aced_iid", "{}"),
        ("hard", "{}"),
        ("h_acid", independent),
        ("kd", settings(distillation__loss="sigmoid")),
        ("kd", settings(distillation__loss="feature")),
    ]
    return [
        Run(method, wrong=wrong, seed=seed, settings=changes)
        for seed, wrong, (method, changes) in itertools.product(SEEDS, NOISES, other)
    ]


def references() -> list[Run]:
    """References smaller than the learner, equal to it and larger."""
    return [
        Run(method, wrong=wrong, reference=size, seed=seed)
        for seed, wrong, size, method in itertools.product(
            SEEDS, (0.5, 0.0), ("1x32", "2x64", "6x192"), ("h_acid", "aced")
        )
    ]


def filter_ratios() -> list[Run]:
    """f = 0.5 and 0.9 beside 0.8."""
    return [
        Run("h_acid", wrong=wrong, filter_ratio=f, seed=seed)
        for seed, wrong, f in itertools.product(SEEDS, (0.5, 0.0), (0.5, 0.9))
    ]


SUITES: dict[str, Callable[[], list[Run]]] = {
    suite.__name__: suite for suite in (main, equal_flops, rest, references, filter_ratios)
}
