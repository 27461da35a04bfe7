"""Evaluations, run in the training loop or alone: one file each, chosen by `kind`."""

from collections.abc import Callable

from jax.sharding import Mesh
from jaxtyping import PyTree

from aced.evaluators.answers import Answers
from aced.evaluators.associations import Associations
from aced.evaluators.captioning import Captioning
from aced.evaluators.config import KINDS, EvalConfig
from aced.evaluators.linear_probe import LinearProbe
from aced.evaluators.retrieval import Retrieval
from aced.evaluators.words import WrittenAnswers
from aced.evaluators.zeroshot import ZeroShot
from aced.models.base import ModelConfig

__all__ = ["EvalConfig", "Evaluator", "build"]

Evaluator = Callable[[PyTree], dict[str, float]]
KINDS |= {
    "retrieval": Retrieval,
    "zeroshot": ZeroShot,
    "linear_probe": LinearProbe,
    "answers": Answers,
    "captioning": Captioning,
    "words": WrittenAnswers,
    "associations": Associations,
}


def build(config: EvalConfig, model: ModelConfig, mesh: Mesh) -> Evaluator:
    """Returns a function from a model's parameters to named numbers.

    Raises:
        ConfigError: the data set is empty, or data set or model lack what the evaluation needs.
    """
    return KINDS[config.kind](config, model, mesh)
