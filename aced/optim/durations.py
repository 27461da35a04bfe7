"""Durations in steps, examples, epochs or per cent of the run, chosen by a setting's suffix."""

import math
from typing import Any

from aced.config import ConfigError

SUFFIXES = ("steps", "examples", "epochs", "percent")


def steps(
    config: Any,
    name: str,
    *,
    total_steps: int | None = None,
    batch_size: int | None = None,
    data_size: int | None = None,
    default: int | None = None,
) -> int:
    """Returns the duration `name` of `config` in steps.

    Reads `config.<name>_steps`, `_examples`, `_epochs` or `_percent`; exactly one of these may be
    set (not None). The result is rounded to the nearest step, but at least 1 unless the setting is
    0: 1 % of a run of 20 steps is one step.

    Args:
        config: an object with some of the four attributes.
        name: the duration, for example "warmup".
        total_steps: length of the run, 100 per cent.
        batch_size: examples per step, of the kind that `_examples` and `_epochs` count.
        data_size: examples per epoch.
        default: the result if none of the four is set; None: an error.

    Raises:
        ConfigError: none or more than one is set, the value is negative or above 100 per cent, or
            the size needed for the conversion is None.
    """
    names = [f"{name}_{suffix}" for suffix in SUFFIXES if hasattr(config, f"{name}_{suffix}")]
    given = {key: getattr(config, key) for key in names if getattr(config, key) is not None}
    if not given and default is not None:
        return default
    if len(given) != 1:
        listed = ", ".join(f"{key}={value}" for key, value in given.items()) or "none"
        raise ConfigError(
            f"Set exactly one of {', '.join(names)}; set are: {listed}. Set the others to None."
        )
    ((key, value),) = given.items()
    if value < 0:
        raise ConfigError(f"{key} must not be negative, got {value}.")
    suffix = key.removeprefix(f"{name}_")
    if suffix == "steps":
        return value
    if suffix == "percent":
        if value > 100:
            raise ConfigError(f"{key} must be at most 100 (the whole run), got {value}.")
        return _rounded(value * _known(total_steps, "total_steps", key) / 100)
    batch_size = _known(batch_size, "batch_size", key)
    if suffix == "examples":
        return _rounded(value / batch_size)
    return _rounded(value * _known(data_size, "data_size", key) / batch_size)


def _known(value: int | None, name: str, key: str) -> int:
    if not value:
        raise ConfigError(
            f"{key} cannot be converted to steps, because {name} is not known here (an endless "
            "data set has no size); give it in steps or examples."
        )
    return value


def _rounded(exact: float) -> int:
    return max(1, math.floor(exact + 0.5)) if exact > 0 else 0
