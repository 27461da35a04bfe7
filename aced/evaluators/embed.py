"""Embeds a whole data set, on any number of devices."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from aced.data.records import Source
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import whole
from aced.evaluators.config import EvalConfig
from aced.models.base import ModelConfig
from aced.parallel import mesh as meshes


class Embedder:
    """Embeds images and texts in batches that are sharded by example over a mesh."""

    def __init__(self, config: EvalConfig, model: ModelConfig, mesh: Mesh):
        self._config, self._model, self._mesh = config, model, mesh
        self._image, self._text = (_encoder(model, f"encode_{kind}") for kind in ("image", "text"))

    def data_set(self, params: PyTree, source: Source, *, captions: int) -> dict[str, np.ndarray]:
        """Embeds the n readable examples of `source`, in order. Logs those that cannot be read.

        Returns:
            Host arrays: `zimg` [n d]; `id` [n]; `label` [n] if the source has labels; and, for
            captions > 0, `ztxt` [m d] of all captions and `owner` [m], their rows in `zimg`.
        """

        def embed(batch: whole.Arrays) -> whole.Arrays:
            out = {"zimg": self._image(params, batch["image"])}
            if captions:
                ids = batch["texts"]  # [b k l]
                ztxt = self._text(params, ids.reshape(-1, ids.shape[-1]))
                out["ztxt"] = ztxt.reshape(*ids.shape[:2], -1)
                out["texts_mask"] = batch["texts_mask"]
            return out

        captions_read = max(captions, 1)
        rows = whole.through(
            embed, source, self._model, self._mesh, self._config, captions=captions_read
        )
        if captions:
            has_text = rows.pop("texts_mask")
            rows["ztxt"] = rows["ztxt"][has_text]
            rows["owner"] = np.nonzero(has_text)[0]
        return rows

    def texts(self, params: PyTree, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embeds `texts`, in equal batches, with the last one padded."""
        ids = get_tokenizer(self._model.tokenizer)(texts)
        n, size = len(texts), whole.rounded_batch(self._config.batch_size, self._mesh)
        ids = np.concatenate([ids, np.zeros((-n % size, ids.shape[1]), ids.dtype)])
        rows = meshes.local_rows(self._mesh, size)
        parts = []
        for i in range(0, len(ids), size):
            batch = meshes.global_batch({"text": ids[i : i + size][rows]}, self._mesh)
            parts.append(whole.to_host(self._text(params, batch["text"])))
        return np.concatenate(parts)[:n]


@functools.cache  # so that evaluations of one model share compiled functions
def _encoder(model: ModelConfig, method: str) -> Callable[[PyTree, jax.Array], jax.Array]:
    module = model.build()
    return jax.jit(lambda params, x: module.apply({"params": params}, x, method=method))
