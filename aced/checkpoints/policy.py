"""When checkpoints are written, and which are kept."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from aced.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from aced.config import Checked, ConfigError


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Checked):
    """When checkpoints are written, and which are kept."""

    every_steps: PositiveInt = 1000  # a checkpoint is also written at the end of the run
    keep_last: PositiveInt = 2  # number of newest checkpoints to keep
    keep_best: NonNegativeInt = 0  # number of best checkpoints, by `best_metric`, to keep as well
    best_metric: str | None = None  # a name in the metrics passed to `save`
    best_mode: Literal["max", "min"] = "max"
    # Checkpoints are also written at multiples of this, and these are never removed.
    keep_every_steps: PositiveInt | None = None
    compress: bool = False  # zstd: a tenth smaller, several times slower on weights
    # Failed saves in a row after which the run stops; at its end it stops after one.
    max_failed_saves: PositiveInt = 3
    timeout_minutes: PositiveFloat = 20.0  # a save that takes longer has failed

    def _check(self) -> None:
        if self.keep_best and not self.best_metric:
            raise ConfigError("keep_best needs best_metric, the name of a metric.")

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due at `step`, unless it is the last step anyway."""
        periods = self.every_steps, self.keep_every_steps
        return any(step % period == 0 for period in periods if period)


@dataclasses.dataclass(frozen=True)
class Preserve:
    """A preservation policy for Orbax."""

    config: CheckpointConfig

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Called when a save starts; the result is applied when it is complete."""
        del context
        config = self.config
        keep = {checkpoint.step for checkpoint in checkpoints[-config.keep_last :]}
        if config.keep_every_steps:
            keep |= {c.step for c in checkpoints if c.step % config.keep_every_steps == 0}
        if config.keep_best:
            metrics = {c.step: c.metrics or {} for c in checkpoints}
            keep |= set(ranked(metrics, config.best_metric, config.best_mode)[: config.keep_best])
        return [checkpoint.step in keep for checkpoint in checkpoints]


def ranked(metrics: Mapping[int, Mapping[str, float]], name: str, mode: str) -> list[int]:
    """Steps with the metric, best first; ties go to the later step."""
    sign = 1.0 if mode == "max" else -1.0
    having = [(sign * values[name], step) for step, values in metrics.items() if name in values]
    return [step for _, step in sorted(having, reverse=True)]
