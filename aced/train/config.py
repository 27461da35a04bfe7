"""The settings of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import ml_collections
from annotated_types import Interval

from aced import evaluators, methods
from aced.bounds import NonNegativeInt, NonNegativeOrInfinite, PositiveInt, ProperFraction
from aced.cache.config import CacheConfig
from aced.checkpoints.checkpointer import CheckpointConfig
from aced.config import Checked, ConfigError, MayChange, Settings, flatten, from_config, to_config
from aced.data import sources
from aced.evaluators import suites
from aced.methods.base import MethodConfig
from aced.methods.frozen import CheckpointOf
from aced.metrics.config import MetricsConfig
from aced.optim import durations
from aced.optim.optimizer import OptimizerConfig
from aced.parallel.mesh import MeshConfig
from aced.train.early_stop import EarlyStopConfig
from aced.train.profiling import ProfileConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """A whole run. Exactly one of the `total_` durations is set."""

    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    batch_size: PositiveInt = 32_768  # b, the examples trained on per step over all devices
    total_steps: MayChange[int | None] = None
    total_examples: MayChange[int | None] = None  # examples trained
    total_epochs: MayChange[float | None] = None  # of examples read: B per step
    method: MethodConfig = dataclasses.field(
        default_factory=methods.ContrastiveConfig, metadata={"parse": methods.parse}
    )
    data: sources.DataConfig = sources.DataConfig()
    mesh: MayChange[MeshConfig] = MeshConfig()
    init: MayChange[CheckpointOf] = CheckpointOf()  # a trained model to go on from
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: ProperFraction = 0.0  # 0: no moving average of the parameters
    evals: MayChange[dict[str, evaluators.EvalConfig]] = dataclasses.field(default_factory=dict)
    # Of evaluations' pictures with data's.
    overlap: MayChange[Literal["warn", "refuse", "allow"]] = "warn"
    # Numbers of evaluations, EVALUATION/NUMBER, by the name of their average, suite/NAME, which is
    # there at steps with all of them
    suites: MayChange[dict[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    early_stop: MayChange[EarlyStopConfig] = EarlyStopConfig()
    checkpoint: MayChange[CheckpointConfig] = CheckpointConfig()
    log_steps: MayChange[PositiveInt] = 50  # steps between two lines of metrics
    # Steps between two lines of picks.jsonl (ids trained on); 0: none.
    picks_steps: MayChange[NonNegativeInt] = 100
    metrics: MayChange[MetricsConfig] = MetricsConfig()  # the services that show the run
    profile: MayChange[ProfileConfig] = ProfileConfig()  # steps to trace
    max_skipped_in_a_row: MayChange[PositiveInt] = 20  # non-finite steps that stop the run
    # Without a step, an evaluation or a save end the run; 0: never.
    watchdog_minutes: MayChange[NonNegativeOrInfinite] = 30.0
    before: MayChange[dict[str, Any]] = dataclasses.field(default_factory=dict)  # finished first
    # Then embeddings to make, for caches that the method reads.
    before_caches: MayChange[dict[str, CacheConfig]] = dataclasses.field(default_factory=dict)

    def _check(self) -> None:
        if self.watchdog_minutes and self.watchdog_minutes <= self.checkpoint.timeout_minutes:
            raise ConfigError(
                f"watchdog_minutes = {self.watchdog_minutes} must be 0 (no watchdog) or above "
                f"checkpoint.timeout_minutes = {self.checkpoint.timeout_minutes}, since saves are "
                "waited for."
            )
        suites.check(self.suites, tuple(self.evals))
        averages = {f"{suites.PREFIX}/{name}" for name in self.suites}
        for setting, metric in (
            ("checkpoint.best_metric", self.checkpoint.best_metric),
            ("early_stop.metric", self.early_stop.metric),
        ):
            if metric and metric.partition("/")[0] not in self.evals and metric not in averages:
                raise ConfigError(
                    f"{setting} = {metric!r} is not a number of an evaluation; set it to "
                    "NAME/NUMBER, such as retrieval/mean_r1, with NAME one of "
                    f"{sorted(self.evals)}, or to the average of one of config.suites: "
                    f"{sorted(averages)}."
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
    method.check_data(settings.data)
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
    try:
        durations.steps(settings.metrics, "pictures", total_steps=total, default=0)
    except ConfigError as error:
        raise ConfigError(f"config.metrics: {error}") from error
    for name, earlier in settings.before.items():
        try:
            parse(earlier)
        except ConfigError as error:
            raise ConfigError(f"In config.before.{name}: {error}") from error
    return settings


def hyper_parameters(settings: TrainConfig) -> dict[str, Any]:
    """The settings that are not None by their dotted paths, without those of the runs before."""
    own = dataclasses.replace(settings, before={}, before_caches={})
    return {k: v for k, v in flatten(to_config(own).to_dict()).items() if v is not None}


def recorded(settings: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the settings of a run's record as a config file returns them.

    Raises:
        ConfigError: a setting is unknown or wrong; the message names its path.
    """
    config = to_config(from_config(TrainConfig, settings))
    config.before = {name: recorded(earlier) for name, earlier in settings["before"].items()}
    return config
