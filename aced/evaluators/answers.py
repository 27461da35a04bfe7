"""Accuracy of CoCa's answers: VQA, entailment, statements about two images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from aced.config import ConfigError
from aced.data.answers import soft_accuracy
from aced.data.sources import open_source
from aced.evaluators import bootstrap, classification, whole
from aced.evaluators.config import EvalConfig
from aced.models import coca
from aced.models.base import ModelConfig
from aced.models.coca import CoCaConfig


class Answers:
    """Accuracy where an example's first text is the question, and its label is the answer.

    Where people gave several answers to a question, also VQA's soft accuracy.
    """

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        if not isinstance(model, CoCaConfig) or not model.classes:
            raise ConfigError(
                "An evaluation of kind 'answers' needs a CoCa model with a head; set the model's "
                "classes to the number of answers, or choose kind = 'zeroshot'."
            )
        self._config, self._model, self._mesh = config, model, mesh
        self._source = open_source(config.data)
        self._names = classification.class_names(config, self._source)
        self._given = whole.References(self._source, config.data, whole.answers_of)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `accuracy` and `mean_per_class` in [0, 1], `loss`, `examples`.

        `loss` is the mean cross-entropy of the correct answers in nats. Examples without a question
        or an answer (label -1) are left out, and their number is logged.

        If people's answers come with the questions, also `soft_accuracy` in [0, 1], see
        `aced.data.answers`, and `questions`, the number with such answers. Then a question whose
        answer is none of the model's classes counts, as in the official evaluation.

        Raises:
            ConfigError: no example has both, or a label is outside the model's classes, or there
                are people's answers, but no names of classes to compare with them.
        """

        def judge(batch: whole.Arrays) -> whole.Arrays:
            if "label" not in batch:
                raise self._unlabelled()
            images, text = coca.inputs(self._model, batch)
            chosen, right, loss = _judged(self._model, params, images, text, batch["label"])
            judged = {"chosen": chosen, "right": right, "loss": loss}
            return judged | {"texts_mask": batch["texts_mask"]}

        rows = whole.through(
            judge,
            self._source,
            self._model,
            self._mesh,
            self._config,
            pictures=self._model.pictures,
        )
        asked = rows.pop("texts_mask")[:, 0]
        rows = {name: values[asked] for name, values in rows.items()}
        return self._numbers(rows, len(asked)) | self._soft(rows)

    def _numbers(self, rows: dict[str, np.ndarray], examples: int) -> dict[str, float]:
        name, classes = self._source.name, self._model.classes
        label = rows["label"]
        if label.max(initial=-1) >= classes:
            raise ConfigError(
                f"{name} has label {label.max()}, but the model has classes = {classes}; set that "
                "to the number of answers, or evaluate on the data set that it was trained for."
            )
        known = label >= 0
        if not known.any():
            raise self._unlabelled()
        if known.sum() < examples:
            logging.warning(
                "An evaluation leaves out %d of %d examples of %s: they have no question or no "
                "label.",
                examples - known.sum(),
                examples,
                name,
            )
        right, label = rows["right"][known], label[known]
        statistics = {
            "accuracy": bootstrap.mean(right),
            "mean_per_class": bootstrap.mean_of_groups(right, label),
            "loss": bootstrap.mean(rows["loss"][known]),
        }
        numbers = bootstrap.numbers(statistics, len(label), self._config.bootstrap)
        return numbers | {"examples": float(len(label))}

    def _soft(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Soft accuracy over the questions with answers; empty if there are none."""
        given = self._given(rows["id"])
        answered = [i for i, answers in enumerate(given) if answers]
        if not answered:
            return {}
        if len(self._names) != self._model.classes:
            raise ConfigError(
                f"{self._source.name} has people's answers, which are compared with the names of "
                f"the model's {self._model.classes} classes, but there are {len(self._names)} "
                "names; set class_names of the evaluation."
            )
        degrees = np.array(
            [
                soft_accuracy(self._names[rows["chosen"][i]], given[i])
                if rows["chosen"][i] >= 0
                else 0.0
                for i in answered
            ]
        )
        statistics = {"soft_accuracy": bootstrap.mean(degrees)}
        numbers = bootstrap.numbers(statistics, len(degrees), self._config.bootstrap)
        return numbers | {"questions": float(len(degrees))}

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
) -> tuple[Int[Array, " b"], Bool[Array, " b"], Float[Array, " b"]]:
    """The likeliest answers, whether each is correct, and the label's cross-entropy.

    The latter two are undefined for label -1. Ties and NaN count as wrong, so a constant model gets
    zero; they have no likeliest answer (-1).
    """
    logits = coca.answer(config, params, images, text)
    target = jnp.take_along_axis(logits, label[:, None], axis=1, mode="clip")
    right = (logits >= target).sum(axis=1) == 1
    nll = jax.nn.logsumexp(logits, axis=1) - target[:, 0]
    is_clear = (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) == 1
    chosen = jnp.where(is_clear, logits.argmax(axis=1), -1)
    return chosen, right & ~jnp.isnan(logits).any(axis=1), nll
