"""Which answers CoCa's head chooses: questions, entailment, statements about two pictures."""

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
    """An example's first text is the question, its label the answer's number."""

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

        `loss` is the mean cross-entropy of the right answers in nats. Examples without a question
        or an answer (label -1) are left out, and their number is logged.

        Raises:
            ConfigError: no example has both, or a label is beyond the model's classes.
        """

        def judge(batch: whole.Arrays) -> whole.Arrays:
            if "label" not in batch:
                raise self._unlabelled()
            images, text = coca.inputs(self._model, batch)
            right, loss = _judged(self._model, params, images, text, batch["label"])
            return {"right": right, "loss": loss, "texts_mask": batch["texts_mask"]}

        found = whole.through(
            judge,
            self._source,
            self._model,
            self._mesh,
            self._config,
            pictures=self._model.pictures,
        )
        return self._numbers(found)

    def _numbers(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        name, classes = self._source.name, self._model.classes
        label = found["label"]
        if label.max(initial=-1) >= classes:
            raise ConfigError(
                f"{name} has label {label.max()}, but the model has classes = {classes}; set that "
                "to the number of answers, or evaluate on the data set that it was trained for."
            )
        known = (label >= 0) & found["texts_mask"][:, 0]
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
        right, label = found["right"][known], label[known]
        return {
            "accuracy": float(right.mean()),
            "mean_per_class": float(np.mean([right[label == c].mean() for c in np.unique(label)])),
            "loss": float(found["loss"][known].mean(dtype=np.float64)),
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
    """Whether each answer is the label, and the label's cross-entropy; anything for no label.

    Among equal logits the wrong answers count as chosen, so that a model that says the same of
    everything gets nothing; so does one that says NaN.
    """
    scores = coca.answer(config, params, images, text)
    own = jnp.take_along_axis(scores, label[:, None], axis=1, mode="clip")
    right = (scores >= own).sum(axis=1) == 1
    return right & ~jnp.isnan(scores).any(axis=1), jax.nn.logsumexp(scores, axis=1) - own[:, 0]
