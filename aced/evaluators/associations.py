"""Associations: which of several candidate pictures belong to a cue, as in WinoGAViL."""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from aced.config import ConfigError
from aced.data.reader import known_fields
from aced.data.sources import open_source
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.models.base import ModelConfig


class Associations:
    """Chooses for each cue the most similar pictures, as many as belong to it."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        self._source = open_source(config.data)
        if not {"label", "group"} <= set(known_fields(self._source, config.data)):
            raise ConfigError(
                "An evaluation of kind 'associations' needs pictures with a cue, a label (whether "
                f"they belong to it) and a group, which {self._source.name} does not have; set "
                "data.source = 'candidates'."
            )
        self._embed = Embedder(config, model, mesh)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns the numbers of `jaccard`.

        Raises:
            ConfigError: no picture has a cue.
        """
        rows = self._embed.data_set(params, self._source, captions=1)
        owner = rows["owner"]
        if not len(owner):
            raise ConfigError(f"Associations need cues, and {self._source.name} has none.")
        scores = np.sum(rows["zimg"][owner] * rows["ztxt"], axis=1)
        return jaccard(scores, rows["label"][owner], rows["group"][owner])


def jaccard(
    scores: Float[np.ndarray, " n"], label: Int[np.ndarray, " n"], group: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """The mean Jaccard index of the chosen pictures and those that belong to the cue.

    Args:
        scores: the similarity of each picture to its cue.
        label: 1 if the picture belongs to the cue, else 0.
        group: the number of the cue.

    Returns:
        `jaccard` over all cues, `jaccard_5_6` over those with at most six pictures and
        `jaccard_10_12` over those with at least ten, if there are any; and `cues`.
    """
    values, sizes = [], []
    for number in np.unique(group):
        own = group == number
        belongs = label[own] == 1
        chosen = np.zeros(own.sum(), bool)
        chosen[np.argsort(-scores[own], kind="stable")[: belongs.sum()]] = True
        either = np.sum(belongs | chosen)
        values.append(np.sum(belongs & chosen) / either if either else 0.0)
        sizes.append(own.sum())
    values, sizes = np.array(values), np.array(sizes)
    out = {"jaccard": float(values.mean()), "cues": float(len(values))}
    for name, of_size in (("jaccard_5_6", sizes <= 6), ("jaccard_10_12", sizes >= 10)):
        if of_size.any():
            out[name] = float(values[of_size].mean())
    return out
