"""Quality of CoCa's captions, compared with human references.

Captions and references are compared as lower-case words, split at white space, punctuation and
symbols. Published numbers for COCO use the Penn Treebank tokenizer of the official evaluation,
which needs Java; they differ slightly, and are `cider_ptb` and `bleu4_ptb`.
"""

import functools
import itertools
import unicodedata
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import bleu, bootstrap, penn_treebank, whole
from aced.evaluators.bootstrap import Statistic
from aced.evaluators.cider import cider_by_image
from aced.evaluators.config import EvalConfig
from aced.evaluators.whole import References
from aced.losses import captioning
from aced.models import coca, generation
from aced.models.base import ModelConfig
from aced.models.coca import CoCaConfig

_SHOWN = 4  # captions that are logged

Pairs = Sequence[tuple[str, Sequence[str]]]  # a caption and its references


class Captioning:
    """Scores of generated captions, and the likelihood of the first reference."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        if not isinstance(model, CoCaConfig):
            raise ConfigError(
                "An evaluation of kind 'captioning' needs a CoCa model: two towers write nothing. "
                "Choose kind = 'retrieval'."
            )
        generation.longest(model, config.generation)  # raises now rather than at the evaluation
        if config.penn_treebank:
            penn_treebank.check()
        self._config, self._model, self._mesh = config, model, mesh
        self._source = open_source(config.data)
        self._tokenizer = get_tokenizer(model.tokenizer)
        model.check_tokenizer(self._tokenizer)
        self._references = References(self._source, config.data)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `cider`, `bleu4`, `exact`, `loss`, `words` and `examples`.

        `cider` is CIDEr-D; `bleu4` is in [0, 1]; `exact` is the share of captions that equal one of
        their references; `loss` is the cross-entropy of the first references in nats per word, end
        of text included; `words` is the mean length of captions. With `penn_treebank`, also
        `cider_ptb` and `bleu4_ptb`, of the words of that tokenizer. Images without a reference are
        left out, and their number is logged. There is no interval of `loss`.

        Raises:
            ConfigError: no image has a reference.
        """
        losses = []

        def write(batch: whole.Arrays) -> whole.Arrays:
            image, text, has_text = batch["image"], batch["text"], batch["texts_mask"]
            losses.append(_word_loss(self._model, params, image, text, has_text))
            texts = generation.generate(self._model, self._config.generation, params, image)
            return {"ids": texts.ids}

        rows = whole.through(write, self._source, self._model, self._mesh, self._config)
        captions = self._tokenizer.decode(rows["ids"])
        references = [texts[: self._config.captions] for texts in self._references(rows["id"])]
        pairs = list(zip(captions, references, strict=True))
        pairs = self._referenced(pairs)
        statistics = compared(pairs, words_of_all)
        if self._config.penn_treebank:
            treebank = compared(pairs, penn_treebank.words_of_all)
            statistics |= {f"{name}_ptb": treebank[name] for name in ("cider", "bleu4")}
        numbers = bootstrap.numbers(statistics, len(pairs), self._config.bootstrap)
        total, words = np.sum(np.array(losses, np.float64), axis=0)
        return numbers | {"loss": float(total / words), "examples": float(len(pairs))}

    def _referenced(self, pairs: Pairs) -> Pairs:
        """The pairs with references. Logs some of them, and the number of the others."""
        kept = [(caption, texts) for caption, texts in pairs if texts]
        if not kept:
            raise ConfigError(f"Captioning needs references, and {self._source.name} has none.")
        if len(kept) < len(pairs):
            logging.warning(
                "An evaluation leaves out %d of %d pictures of %s: they have no caption.",
                len(pairs) - len(kept),
                len(pairs),
                self._source.name,
            )
        if jax.process_index() == 0:
            for caption, texts in kept[:_SHOWN]:
                logging.info("Caption: %r. Reference: %r", caption, texts[0])
        return kept


def compared(
    pairs: Pairs, split: Callable[[Sequence[str]], list[list[str]]]
) -> dict[str, Statistic]:
    """`cider`, `bleu4`, `exact` and `words` of captions and references that `split` tokenizes."""
    captions = split([caption for caption, _ in pairs])
    words = iter(split([text for _, texts in pairs for text in texts]))
    references = [list(itertools.islice(words, len(texts))) for _, texts in pairs]
    same = [caption in texts for caption, texts in zip(captions, references, strict=True)]
    return {
        "cider": bootstrap.mean(cider_by_image(captions, references)),
        "bleu4": bleu.statistic_of(captions, references),
        "exact": bootstrap.mean(np.array(same)),
        "words": bootstrap.mean(np.array([len(caption) for caption in captions])),
    }


def words_of_all(texts: Sequence[str]) -> list[list[str]]:
    """`words_of` of each text."""
    return [words_of(text) for text in texts]


def words_of(text: str) -> list[str]:
    """Lower-cased words, split at white space, punctuation and symbols of any script.

    "it's" equals "it 's", which tokenizers that split at punctuation decode to.
    """
    return "".join(" " if unicodedata.category(c)[0] in "PS" else c for c in text.lower()).split()


@functools.partial(jax.jit, static_argnames="config")
def _word_loss(
    config: CoCaConfig,
    params: PyTree,
    image: UInt8[Array, "b h w 3"],
    text: Int[Array, "b l"],
    has_text: Bool[Array, "b 1"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of the cross-entropies of a batch's words, and the number of words."""
    output = coca.forward(config, params, image, text)
    losses = captioning.word_losses(output.words, text, output.real & has_text)
    return losses.cross_entropy * losses.words, losses.words
