"""Learning-rate schedules: a shape, times a linear warm-up, times a linear cool-down.

The formulas are those of big_vision's `create_learning_rate_schedule`, so published settings carry
over.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal

import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array, Float, Int

from aced.bounds import Fraction, PositiveInt
from aced.config import Checked, ConfigError
from aced.optim import durations

# Adam and Lion move each weight by about the learning rate a step; weights are far below 1.
MAX_RATE = 100.0

Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Checked):
    """Learning rate over the run. At most one of the four forms of a duration may be set."""

    kind: Literal["cosine", "rsqrt", "linear", "constant"] = "cosine"
    # Learning rate after the warm-up (JEST, section 3).
    peak: Annotated[float, Interval(gt=0, le=MAX_RATE)] = 1e-3
    # Cosine and linear: learning rate at the end, as a share of the peak
    end_factor: Fraction = 0.0
    timescale_steps: PositiveInt = 10_000  # rsqrt: t in 1 / sqrt(1 + steps since warm-up / t)
    # Learning rate at the start of the warm-up, as a share of the shape
    start_factor: Fraction = 0.0
    # Linear warm-up; none set: no warm-up. `_percent` is a share of the run, 0 to 100.
    warmup_steps: int | None = None
    warmup_examples: int | None = None  # examples trained
    warmup_epochs: float | None = None
    warmup_percent: float | None = None
    # rsqrt and constant: linear cool-down to 0 at the end of the run; none set: no cool-down.
    cooldown_steps: int | None = None
    cooldown_examples: int | None = None  # examples trained
    cooldown_epochs: float | None = None
    cooldown_percent: float | None = None

    def _check(self) -> None:
        if self.end_factor and self.kind in ("rsqrt", "constant"):
            raise ConfigError(
                f"end_factor has no effect for kind='{self.kind}', which ends with its cool-down; "
                "set it to 0."
            )
        cooldowns = [getattr(self, f"cooldown_{suffix}") for suffix in durations.SUFFIXES]
        if self.kind in ("cosine", "linear") and any(cooldowns):
            raise ConfigError(
                f"kind='{self.kind}' already decays until the end of the run; a cooldown_* would "
                "decay it a second time. Remove it, or use kind='rsqrt' or 'constant'."
            )


def build(
    config: ScheduleConfig, *, total_steps: int, batch_size: int, data_size: int | None = None
) -> Schedule:
    """Returns the learning rate as a function of the number of completed updates.

    With a warm-up of w and a cool-down of c steps in a run of n, update number s (from 0) takes
    `shape(s) * min(1, f + (1 - f) s / w) * min(1, (n - s) / c)`: f = `start_factor` of the shape at
    s = 0, the peak at s = w, and with a cool-down 1/c of the shape at the last step s = n - 1.

    Args:
        config: the settings.
        total_steps: n.
        batch_size: examples trained on per step, for durations in examples or epochs.
        data_size: examples per epoch; None: unknown.

    Raises:
        ConfigError: a duration is set twice or cannot be resolved, or warm-up and cool-down do
            not fit into the run.
    """
    sizes = {"total_steps": total_steps, "batch_size": batch_size, "data_size": data_size}
    warmup = durations.steps(config, "warmup", **sizes, default=0)
    cooldown = durations.steps(config, "cooldown", **sizes, default=0)
    if warmup + cooldown > total_steps:
        raise ConfigError(
            f"A warm-up of {warmup} and a cool-down of {cooldown} steps do not fit into a run of "
            f"{total_steps} steps; shorten them."
        )

    def learning_rate(step: int | Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        if config.kind == "cosine":
            shape = _between(config.end_factor, 0.5 * (1.0 + jnp.cos(jnp.pi * progress)))
        elif config.kind == "linear":
            shape = _between(config.end_factor, 1.0 - progress)
        elif config.kind == "rsqrt":
            shape = (1.0 + jnp.maximum(step - warmup, 0.0) / config.timescale_steps) ** -0.5
        else:
            shape = jnp.ones(())
        if warmup:
            shape = shape * _between(config.start_factor, jnp.minimum(1.0, step / warmup))
        if cooldown:
            shape = shape * jnp.clip((total_steps - step) / cooldown, 0.0, 1.0)
        return config.peak * shape

    return learning_rate


def _between(end: float, share: Float[Array, ""]) -> Float[Array, ""]:
    """Interpolates from `end` at share 0 to 1 at share 1."""
    return end + (1.0 - end) * share
