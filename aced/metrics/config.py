"""Settings of the services that show a run."""

import dataclasses
from typing import Annotated

from aced.bounds import NonEmpty, NonNegativeFloat, NonNegativeInt, OneOf
from aced.config import Checked
from aced.metrics.sinks import SINKS


@dataclasses.dataclass(frozen=True)
class MetricsConfig(Checked):
    """Where metrics go besides metrics.jsonl and TensorBoard's files, and what goes with them."""

    to: tuple[Annotated[str, OneOf(SINKS)], ...] = ()  # "wandb", "mlflow"
    project: NonEmpty = "aced"  # of Weights & Biases; MLflow's experiment
    name: str = ""  # of the run there; empty: the last two folders of the workdir
    # A picture of chosen and rejected examples every so often, if the method selects; 0: none.
    # At most one of the two.
    pictures_steps: NonNegativeInt | None = None
    pictures_percent: NonNegativeFloat | None = 10.0


ONLY_FILES = MetricsConfig()  # and TensorBoard's
