"""Answers that CoCa's decoder writes, word by word, after the question."""

from collections import Counter

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import PyTree

from aced.config import ConfigError
from aced.data.answers import answers_of, normalized, soft_accuracy
from aced.data.reader import Example
from aced.data.sources import open_source
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import bootstrap, classification, whole
from aced.evaluators.config import EvalConfig
from aced.models import generation
from aced.models.base import ModelConfig
from aced.models.coca import CoCaConfig

_SHOWN = 4  # answers that are logged


class WrittenAnswers:
    """Exact match and soft accuracy of answers to each example's first text."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        if not isinstance(model, CoCaConfig):
            raise ConfigError(
                "An evaluation of kind 'words' needs a CoCa model: two towers write nothing. "
                "Choose kind = 'zeroshot'."
            )
        generation.longest(model, config.generation)  # raises now rather than at the evaluation
        self._config, self._model, self._mesh = config, model, mesh
        self._source = open_source(config.data)
        self._tokenizer = get_tokenizer(model.tokenizer)
        model.check_tokenizer(self._tokenizer)
        names = classification.class_names(config, self._source)

        def of(example: Example) -> tuple[str, ...]:
            return answers_of(example.record, names)

        self._given = whole.References(self._source, config.data, of)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `exact` and `soft_accuracy` in [0, 1], `words` and `examples`.

        `exact` is the share of answers that equal the most frequent one of people's answers, or the
        name of the label, in VQA's normal form. `soft_accuracy` is VQA's, where people's answers
        come with the questions. `words` is the mean length of the answers. Examples without a
        question or an answer are left out, and their number is logged.

        Raises:
            ConfigError: no example has both.
        """

        def write(batch: whole.Arrays) -> whole.Arrays:
            texts = generation.generate(
                self._model, self._config.generation, params, batch["image"], prompt=batch["text"]
            )
            return {"ids": texts.ids, "texts_mask": batch["texts_mask"]}

        rows = whole.through(write, self._source, self._model, self._mesh, self._config)
        given = self._given(rows["id"])
        kept = [i for i, texts in enumerate(given) if texts and rows["texts_mask"][i, 0]]
        if not kept:
            raise ConfigError(
                f"An evaluation of kind 'words' needs questions with answers, and "
                f"{self._source.name} has none; prepare the data with --answers_column, or with "
                "labels that are names."
            )
        if len(kept) < len(given):
            logging.warning(
                "An evaluation leaves out %d of %d examples of %s: they have no question or no "
                "answer.",
                len(given) - len(kept),
                len(given),
                self._source.name,
            )
        written = self._tokenizer.decode(rows["ids"][kept])
        pairs = list(zip(written, [given[i] for i in kept], strict=True))
        if jax.process_index() == 0:
            for answer, texts in pairs[:_SHOWN]:
                logging.info("Answer: %r. Given: %r", answer, texts)
        statistics = {
            "exact": [normalized(x) == normalized(_usual(texts)) for x, texts in pairs],
            "words": [len(answer.split()) for answer, _ in pairs],
        }
        if any(len(texts) > 1 for _, texts in pairs):
            statistics["soft_accuracy"] = [soft_accuracy(x, texts) for x, texts in pairs]
        statistics = {name: bootstrap.mean(np.array(x)) for name, x in statistics.items()}
        numbers = bootstrap.numbers(statistics, len(pairs), self._config.bootstrap)
        return numbers | {"examples": float(len(pairs))}


def _usual(texts: tuple[str, ...]) -> str:
    """The most frequent text; of equally frequent ones, the first."""
    return Counter(texts).most_common(1)[0][0]
