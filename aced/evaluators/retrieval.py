"""Image-text retrieval: R@1, R@5 and R@10 in both directions."""

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from aced.config import ConfigError
from aced.data.sources import open_source
from aced.evaluators import bootstrap
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.models.base import ModelConfig

KS = (1, 5, 10)
_BLOCK = 1024  # queries compared with all candidates at once


class Retrieval:
    """The protocol of COCO and Flickr: an image has one or more captions, a caption one image."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        self._config = config
        self._source = open_source(config.data)
        self._embed = Embedder(config, model, mesh)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Returns `i2t_r1` ... `t2i_r10` in [0, 1], `mean_r1`, and numbers of `images`, `captions`.

        Raises:
            ConfigError: no example has a caption.
        """
        rows = self._embed.data_set(params, self._source, captions=self._config.captions)
        if not len(rows["ztxt"]):
            kinds = ", ".join(self._config.data.caption_weights)
            wanted = f" of the kinds in data.caption_weights ({kinds})" if kinds else ""
            raise ConfigError(
                f"Retrieval needs captions, and {self._source.name} has none{wanted}; correct the "
                "data of the evaluation."
            )
        samples = self._config.bootstrap
        return recall(rows["zimg"], rows["ztxt"], rows["owner"], samples=samples)


def recall(
    zimg: Float[np.ndarray, "n d"],
    ztxt: Float[np.ndarray, "m d"],
    owner: Int[np.ndarray, " m"],
    *,
    samples: int = 0,
) -> dict[str, float]:
    """R@k: the share of queries with a match among the k most similar candidates.

    Args:
        zimg: image embeddings.
        ztxt: caption embeddings.
        owner: the image that each caption belongs to. Images without captions are not queries.
        samples: of the bootstrap; 0: no intervals. Images are drawn, with all their captions, as
            queries; the candidates stay the same. See `bootstrap.numbers`.

    Ties count against the match, so a constant model gets zero.
    """
    queries = np.unique(owner)
    text_ranks = np.concatenate(
        [_ranks(zimg[rows] @ ztxt.T, owner[None] == rows[:, None]) for rows in _blocks(queries)]
    )
    image_ranks = np.concatenate(
        [
            _ranks(ztxt[rows] @ zimg.T, owner[rows][:, None] == np.arange(len(zimg)))
            for rows in _blocks(np.arange(len(ztxt)))
        ]
    )
    statistics = {}
    for name, ranks, of in (("i2t", text_ranks, queries), ("t2i", image_ranks, owner)):
        statistics |= {f"{name}_r{k}": bootstrap.mean(ranks < k, of) for k in KS}
    i2t, t2i = statistics["i2t_r1"], statistics["t2i_r1"]
    statistics["mean_r1"] = lambda counts: (i2t(counts) + t2i(counts)) / 2
    sizes = {"images": float(len(queries)), "captions": float(len(ztxt))}
    return sizes | bootstrap.numbers(statistics, len(zimg), samples)


def _blocks(rows: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " b"]]:
    return [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]


def _ranks(similarity: np.ndarray, is_match: np.ndarray) -> Int[np.ndarray, " q"]:
    """How many wrong candidates are at least as similar as the best match; [q c] each."""
    similarity = np.nan_to_num(similarity, nan=-np.inf)  # NaN never matches
    best = np.where(is_match, similarity, -np.inf).max(axis=1, keepdims=True)
    return np.sum(~is_match & (similarity >= best), axis=1)
