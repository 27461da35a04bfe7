"""The end of a run whose evaluation no longer improves."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from absl import logging
from etils import epath

from aced.bounds import NonNegativeFloat, PositiveInt
from aced.config import Checked
from aced.evaluators import suites
from aced.metrics import history
from aced.parallel import distributed


@dataclasses.dataclass(frozen=True)
class EarlyStopConfig(Checked):
    """When a run ends before its last step. The learning rate has not decayed by then."""

    # The number to go by: EVALUATION/NUMBER, or suite/NAME. None: the run does not end early.
    metric: str | None = None
    mode: Literal["max", "min"] = "max"  # whether higher or lower values are better
    patience: PositiveInt = 3  # evaluations in a row without a better value that end the run
    min_delta: NonNegativeFloat = 0.0  # a better value is better by more than this


class EarlyStop:
    """Counts the evaluations in a row without a better value."""

    def __init__(self, config: EarlyStopConfig, values: Iterable[float] = ()):
        """Starts with the values of the evaluations so far, in their order."""
        self._config = config
        self._best = -math.inf
        self._without = 0
        for value in values:
            self._count(value)

    @classmethod
    def resumed(cls, config: EarlyStopConfig, folder: epath.Path, step: int | None) -> "EarlyStop":
        """Returns the state after `step` of the run in `folder`, from its metrics on process 0."""
        if config.metric is None or step is None:
            return cls(config)
        values = []
        # In a store there is no file before the first line.
        if jax.process_index() == 0 and (folder / history.FILE).exists():
            lines = history.read(folder)
            values = [x[config.metric] for x in lines if config.metric in x and x["step"] <= step]
        stop = cls(config, values)
        # As integers: without x64, JAX would round the best value, and another one could pass it.
        state = np.array([stop._best, stop._without], np.float64).view(np.int32)
        best, without = distributed.from_first(state).view(np.float64).tolist()
        stop._best, stop._without = best, int(without)
        return stop

    @property
    def reached(self) -> bool:
        """Whether there are as many as the run's patience."""
        return self._without >= self._config.patience

    def update(self, measured: Mapping[str, Any]) -> None:
        """Takes the numbers of evaluations into account, if the metric is among them."""
        metric = self._config.metric
        if metric is None:
            return
        evaluation = metric.partition("/")[0]
        names = [name for name in measured if name.partition("/")[0] == evaluation]
        if metric in measured:
            self._count(float(measured[metric]))
            if self.reached:
                logging.warning(
                    "%s has not improved in %d evaluations, so the run ends here.",
                    metric,
                    self._without,
                )
        elif names and evaluation != suites.PREFIX:  # an average needs several evaluations
            logging.log_first_n(
                logging.ERROR,
                "early_stop.metric = %r is not measured, so the run does not end early. There are: "
                "%s",
                1,
                metric,
                ", ".join(names),
            )

    def _count(self, value: float) -> None:
        value = value if self._config.mode == "max" else -value
        if value > self._best + self._config.min_delta:  # false if the value is NaN
            self._best, self._without = value, 0
        else:
            self._without += 1
