"""Zero-shot classification: the class whose prompts are most similar to the picture."""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.models.kinds import ModelConfig


class ZeroShot:
    """Prompt ensembles as in CLIP (arXiv 2103.00020, section 3.1.4)."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        self._config = config
        self._source = open_source(config.data)
        self._names = config.class_names or tuple(getattr(self._source, "class_names", None) or ())
        if not self._names:
            raise ConfigError(
                f"Zero-shot classification needs class names, and {self._source.name} brings "
                "none; set class_names of the evaluation."
            )
        self._embed = Embedder(config, model, mesh)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `top1` and `top5` accuracy, `mean_per_class` (all in [0, 1]), and `examples`.

        Raises:
            ConfigError: the data set has no labels, or labels beyond the class names.
        """
        weights = self._class_weights(params)
        found = self._embed.data_set(params, self._source, captions=0)
        label = found.get("label", np.zeros(0, int))
        known = label >= 0
        if not known.any():
            raise ConfigError(f"Zero-shot classification: {self._source.name} has no labels.")
        if label.max() >= len(self._names):
            raise ConfigError(
                f"{self._source.name} has label {label.max()}, but there are only "
                f"{len(self._names)} class names; set class_names to all of them."
            )
        return accuracy(found["zimg"][known] @ weights.T, label[known])

    def _class_weights(self, params: PyTree) -> Float[np.ndarray, "classes d"]:
        """Mean of the normalised prompt embeddings of each class, normalised again."""
        templates = self._config.templates
        prompts = [template.replace("{}", name) for name in self._names for template in templates]
        ztxt = self._embed.texts(params, prompts)
        mean = ztxt.reshape(len(self._names), len(templates), -1).mean(axis=1)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def accuracy(scores: Float[np.ndarray, "n classes"], label: np.ndarray) -> dict[str, float]:
    """Accuracies of the classes ordered by `scores`; ties count as wrong."""
    scores = np.nan_to_num(scores, nan=-np.inf)  # a broken model finds nothing
    own = scores[np.arange(len(label)), label][:, None]
    rank = np.sum(scores >= own, axis=1) - 1
    right = rank == 0
    classes = np.unique(label)
    return {
        "top1": float(right.mean()),
        "top5": float(np.mean(rank < 5)),
        "mean_per_class": float(np.mean([right[label == c].mean() for c in classes])),
        "examples": float(len(label)),
    }
