"""Zero-shot classification: the class whose prompts are most similar to the picture."""

from jax.sharding import Mesh
from jaxtyping import PyTree

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.evaluators import classification
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.models.kinds import ModelConfig


class ZeroShot:
    """Prompt ensembles as in CLIP (arXiv 2103.00020, section 3.1.4)."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        self._config = config
        self._source = open_source(config.data)
        self._names = classification.class_names(config, self._source)
        if not self._names:
            raise ConfigError(
                f"Zero-shot classification needs class names, and {self._source.name} brings "
                "none; set class_names of the evaluation."
            )
        self._embed = Embedder(config, model, mesh)
        self._pictures = classification.Labelled(config, self._source, self._names, self._embed)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns what `classification.numbers` says of all pictures whose class is known.

        Raises:
            ConfigError: the data set has no labels, or others than the class names.
        """
        weights = classification.class_weights(
            self._embed, params, self._names, self._config.templates
        )
        zimg, truth = self._pictures(params)
        return classification.numbers(zimg @ weights.T, truth)
