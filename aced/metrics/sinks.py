"""The services that show runs: TensorBoard, Weights & Biases and MLflow; one line adds another.

A sink receives the lines of metrics.jsonl, and pictures.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence

from aced.config import ConfigError
from aced.metrics.background import Background
from aced.metrics.mlflow import MLflow
from aced.metrics.shown import RunCard, Sink
from aced.metrics.wandb import WeightsAndBiases

ALWAYS = ("tensorboard",)  # written without being asked for


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of sink."""

    build: Callable[[RunCard], Sink | None]  # None: it cannot show this run
    package: str = ""  # imported by it, and the name of its extra; empty: none


def _tensorboard(card: RunCard) -> Sink | None:
    from aced.metrics.tensorboard import open_events  # tensorboardX is slow to import

    return open_events(card)


SINKS = {  # by the names that `metrics.to` may have
    "tensorboard": Kind(_tensorboard),
    "wandb": Kind(functools.partial(Background, "wandb", WeightsAndBiases), "wandb"),
    "mlflow": Kind(functools.partial(Background, "mlflow", MLflow), "mlflow"),
}


def check(names: Sequence[str]) -> None:
    """Checks that the packages of these sinks are installed, without importing them.

    Raises:
        ConfigError: one is missing; the message has the command that installs it.
    """
    for name in names:
        package = SINKS[name].package
        if package and not _is_installed(package):
            raise ConfigError(
                f"metrics.to has {name!r}, which needs the package {package}: "
                f"pip install '.[{package}]', or take {name!r} out of metrics.to."
            )


def _is_installed(package: str) -> bool:
    """Whether Python finds the package; a folder of its name, such as ./wandb, has no loader."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.loader is not None


def build(names: Sequence[str], card: RunCard) -> dict[str, Sink]:
    """The sinks of a run by name: those in `ALWAYS`, and `names`."""
    built = {name: SINKS[name].build(card) for name in dict.fromkeys((*ALWAYS, *names))}
    return {name: sink for name, sink in built.items() if sink is not None}
