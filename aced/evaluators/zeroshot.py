"""Zero-shot classification by the similarity of an image to the prompts of each class."""

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import classification
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.models.base import ModelConfig

_SCALE = 100.0  # of the cosines, in ELEVATER's toolkit; a ranking within one image is the same


class ZeroShot:
    """Prompt ensembles as in CLIP (arXiv 2103.00020, section 3.1.4)."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        source = open_source(config.data)
        names = classification.class_names(config, source)
        if not names:
            raise ConfigError(
                f"Zero-shot classification needs class names, and {source.name} brings "
                "none; set class_names of the evaluation."
            )
        tokenizer = get_tokenizer(model.tokenizer)
        templates = classification.templates(config, source)
        self._prompts = classification.Prompts(names, templates, tokenizer)
        if repeated := self._prompts.repeated:
            logging.warning(
                "Classes of %s read alike to the model, so that the first of them gets all their "
                "pictures and the others none: %s. Give each a name of its own in class_names of "
                "the evaluation.",
                source.name,
                "; ".join(", ".join(map(repr, group)) for group in repeated),
            )
        self._config, self._name, self._names = config, source.name, names
        self._embed = Embedder(config, model, mesh)
        self._pictures = classification.Labelled(config, source, names, self._embed)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `classification.numbers` of all labelled images.

        Raises:
            ConfigError: the data set has no labels, or labels without a class name.
        """
        zimg, truth, group = self._pictures(params)
        scores = self._prompts.scores(self._embed, params, zimg)
        if truth.ndim == 1:
            scores, truth = self._among_classes(scores, truth)
        samples = self._config.bootstrap
        return classification.numbers(scores, truth, group, scale=_SCALE, samples=samples)

    def _among_classes(
        self, scores: Float[np.ndarray, "n classes"], truth: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n chosen"], Int[np.ndarray, " n"]]:
        """The scores of the classes to choose from, and the labels numbered among them."""
        occurring = chosen = np.unique(truth)
        if self._config.classes == "named":
            chosen = np.flatnonzero([name != "" for name in self._names])
        if len(occurring) < len(chosen) and self._config.max_examples is None:
            logging.warning(
                "%s has pictures of %d classes, and all %d named classes are candidates. "
                "If it is a subset whose labels are numbered in the longer list, as ImageNet-A and "
                "-R are of ImageNet, set classes = 'occurring' (aced.evaluate: "
                "--classes=occurring).",
                self._name,
                len(occurring),
                len(chosen),
            )
        return scores[:, chosen], np.searchsorted(chosen, truth)
