"""Accuracy of CoCa's answers: VQA, entailment, statements about two images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.evaluators import whole
from aced.evaluators.config import EvalConfig
from aced.models import coca
from aced.models.base import ModelConfig
from aced.models.coca import CoCaConfig


class Answers:
    """Accuracy where an example's first text is the question, and its label is the answer."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        if not isinstance(model, CoCaConfig) or not model.classes:
            raise ConfigError(
                "An evaluation of kind 'answers' needs a CoCa model with a head; set the model's "
                "classes to the number of answers, or choose kind = 'zeroshot'."
            )
        self._config, self._model, self._mesh = config, model, mesh
        self._source = open_source(config.data)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `accuracy` and `mean_per_class` in [0, 1], `loss`, `examples`.

        `loss` is the mean cross-entropy of the correct answers in nats. Examples without a question
        or an answer (label -1) are left out, and their number is logged.

        Raises:
            ConfigError: no example has both, or a label is outside the model's classes.
        """

        def judge(batch: whole.Arrays) -> whole.Arrays:
            if "label" not in batch:
                raise self._unlabelled()
            images, text = coca.inputs(self._model, batch)
            right, loss = _judged(self._model, params, images, text, batch["label"])
            return {"right": right, "loss": loss, "texts_mask": batch["texts_mask"]}

        rows = whole.through(
            judge,
            self._source,
            self._model,
            self._mesh,
            self._config,
            pictures=self._model.pictures,
        )
        return self._numbers(rows)

    def _numbers(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        name, classes = self._source.name, self._model.classes
        label = rows["label"]
        if label.max(initial=-1) >= classes:
            raise ConfigError(
                f"{name} has label {label.max()}, but the model has classes = {classes}; set that "
                "to the number of answers, or evaluate on the data set that it was trained for."
            )
        known = (label >= 0) & rows["texts_mask"][:, 0]
        if not known.any():
            raise self._unlabelled()
        if not known.all():
            logging.warning(
                "An evaluation leaves out %d of %d examples of %s: they have no question or no "
                "label.",
                (~known).sum(),
                len(known),
                name,
            )
        right, label = rows["right"][known], label[known]
        return {
            "accuracy": float(right.mean()),
            "mean_per_class": float(np.mean([right[label == c].mean() for c in np.unique(label)])),
            "loss": float(rows["loss"][known].mean(dtype=np.float64)),
            "examples": float(len(label)),
        }

    def _unlabelled(self) -> ConfigError:
        return ConfigError(
            "An evaluation of kind 'answers' needs texts with labels, and "
            f"{self._source.name} has none."
        )


@functools.partial(jax.jit, static_argnames="config")
def _judged(
    config: CoCaConfig,
    params: PyTree,
    images: tuple[UInt8[Array, "b h w 3"], ...],
    text: Int[Array, "b l"],
    label: Int[Array, " b"],
) -> tuple[Bool[Array, " b"], Float[Array, " b"]]:
    """Whether each answer is correct, and the label's cross-entropy; undefined for label -1.

    Ties and NaN count as wrong, so a constant model gets zero.
    """
    logits = coca.answer(config, params, images, text)
    target = jnp.take_along_axis(logits, label[:, None], axis=1, mode="clip")
    right = (logits >= target).sum(axis=1) == 1
    nll = jax.nn.logsumexp(logits, axis=1) - target[:, 0]
    return right & ~jnp.isnan(logits).any(axis=1), nll
