"""The settings of a run."""

import dataclasses
from typing import Any, Literal

from aced import evaluators, methods
from aced.cache.config import CacheConfig
from aced.checkpoints.checkpointer import CheckpointConfig
from aced.config import ConfigError, Settings, from_config
from aced.data import sources
from aced.evaluators import suites
from aced.methods.base import MethodConfig
from aced.methods.frozen import CheckpointOf
from aced.optim import durations
from aced.optim.optimizer import OptimizerConfig
from aced.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run. Exactly one of the `total_` durations is set."""

    seed: int = 0
    batch_size: int = 32_768  # b, the examples trained on per step over all devices
    total_steps: int | None = None
    total_examples: int | None = None  # examples trained
    total_epochs: float | None = None  # of examples read: B per step
    method: MethodConfig = dataclasses.field(
        default_factory=methods.ContrastiveConfig, metadata={"parse": methods.parse}
    )
    data: sources.DataConfig = sources.DataConfig()
    mesh: MeshConfig = MeshConfig()
    init: CheckpointOf = CheckpointOf()  # a trained model to go on from
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = 0.0  # 0: no moving average of the parameters
    evals: dict[str, evaluators.EvalConfig] = dataclasses.field(default_factory=dict)
    overlap: Literal["warn", "refuse", "allow"] = "warn"  # of evaluations' pictures with data's
    # Numbers of evaluations, EVALUATION/NUMBER, by the name of their average, suite/NAME, which is
    # there at steps with all of them
    suites: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_steps: int = 50  # a line of metrics every so many steps
    picks_steps: int = 100  # a line of picks.jsonl (ids trained on) every so many; 0: none
    max_skipped_in_a_row: int = 20  # non-finite steps that stop the run
    watchdog_minutes: float = 30.0  # without a step, an evaluation or a save end the run; 0: never
    before: dict[str, Any] = dataclasses.field(default_factory=dict)  # runs to finish first
    # Then embeddings to make, for caches that the method reads.
    before_caches: dict[str, CacheConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("batch_size", "log_steps", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be in [0, 2^32), got {self.seed}.")
        if self.watchdog_minutes and self.watchdog_minutes <= self.checkpoint.timeout_minutes:
            raise ConfigError(
                f"watchdog_minutes = {self.watchdog_minutes} must be 0 (no watchdog) or above "
                f"checkpoint.timeout_minutes = {self.checkpoint.timeout_minutes}, since saves are "
                "waited for."
            )
        suites.check(self.suites, tuple(self.evals))
        averages = {f"{suites.PREFIX}/{name}" for name in self.suites}
        best = self.checkpoint.best_metric
        if best is not None and best.partition("/")[0] not in self.evals and best not in averages:
            raise ConfigError(
                f"checkpoint.best_metric = {best!r} is no number of an evaluation; set it to "
                f"NAME/NUMBER, such as retrieval/mean_r1, with NAME one of {sorted(self.evals)}, "
                f"or to the average of one of config.suites: {sorted(averages)}."
            )
        taken = {"loss", "selection", "sources", "wall", suites.PREFIX} & set(self.evals)
        if taken:
            raise ConfigError(f"An evaluation may not be called {taken.pop()!r}; rename it.")


def parse(config: Settings) -> TrainConfig:
    """Returns the checked settings of a run and of all runs before it.

    Raises:
        ConfigError: a setting is unknown, wrong or missing; the message names its path.
    """
    settings = from_config(TrainConfig, config)
    method = settings.method.for_batch(settings.batch_size)
    settings = dataclasses.replace(settings, method=method)
    for name, evaluation in settings.evals.items():
        if method.evaluations and evaluation.kind not in method.evaluations:
            raise ConfigError(
                f"config.evals.{name}.kind is {evaluation.kind!r}, for which the method "
                f"{method.name!r} trains nothing; choose from {', '.join(method.evaluations)}."
            )
    # Both calls raise if sizes do not fit. The length of an epoch is only known with the data.
    candidates = settings.method.super_batch_size(settings.batch_size)
    sizes = {"batch_size": settings.batch_size, "data_size": candidates}
    if (total := durations.steps(settings, "total", **sizes)) < 1:
        raise ConfigError("The run has no steps; set total_steps (or _examples, _epochs) above 0.")
    for name, evaluation in settings.evals.items():
        try:
            durations.steps(evaluation, "every", **sizes, total_steps=total, default=total)
        except ConfigError as error:
            raise ConfigError(f"config.evals.{name}: {error}") from error
    for name, earlier in settings.before.items():
        try:
            parse(earlier)
        except ConfigError as error:
            raise ConfigError(f"In config.before.{name}: {error}") from error
    return settings
