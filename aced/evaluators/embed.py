"""Embeds a whole data set, every example once, with any number of devices."""

from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float, PyTree

from aced.data import pipeline
from aced.data.records import Source
from aced.data.tokenizers import get_tokenizer
from aced.evaluators.config import EvalConfig
from aced.models.two_tower import TwoTower, TwoTowerConfig
from aced.parallel import mesh as meshes


class Embedder:
    """The two towers, compiled for batches that are sharded by example over a mesh."""

    def __init__(self, model: TwoTowerConfig, mesh: Mesh, batch_size: int):
        self._config, self._mesh = model, mesh
        shards = meshes.example_shards(mesh)
        self._batch_size = -(-batch_size // shards) * shards
        tower = TwoTower(model)
        self._image = jax.jit(
            lambda params, x: tower.apply({"params": params}, x, method="encode_image")
        )
        self._text = jax.jit(
            lambda params, x: tower.apply({"params": params}, x, method="encode_text")
        )

    def data_set(
        self, params: PyTree, source: Source, config: EvalConfig, *, captions: int
    ) -> dict[str, np.ndarray]:
        """Embeds the examples of `source`; the n that can be read, on the host, in order.

        Those that cannot be read are logged, by number and reason.

        Returns:
            `zimg` [n d]; `id` [n]; `label` [n] where the source has labels; and, for captions > 0,
            `ztxt` [m d] of all captions and `owner` [m], the row in `zimg` that each belongs to.
        """
        parts: dict[str, list[np.ndarray]] = {}
        counters = pipeline.InputCounters(on_skip=_log_skipped)
        batches = pipeline.eval_batches(
            source,
            pipeline.View.of(self._config),
            batch_size=self._batch_size,
            max_examples=config.max_examples,
            captions=max(captions, 1),
            rows=meshes.local_rows(self._mesh, self._batch_size),
            config=config.data,
            counters=counters,
        )
        with batches:
            for local in batches:
                batch = meshes.global_batch(local, self._mesh)
                out = {"zimg": self._image(params, batch["image"])}
                if captions:
                    ids = batch["texts"]  # [b k l]
                    ztxt = self._text(params, ids.reshape(-1, ids.shape[-1]))
                    out["ztxt"] = ztxt.reshape(*ids.shape[:2], -1)
                    out["texts_mask"] = batch["texts_mask"]
                out |= {k: batch[k] for k in ("mask", "id", "label") if k in batch}
                for name, value in out.items():
                    parts.setdefault(name, []).append(_to_host(value))
        whole = {name: np.concatenate(values) for name, values in parts.items()}
        kept = {name: value[whole["mask"]] for name, value in whole.items()}
        del kept["mask"]
        if captions:
            has_text = kept.pop("texts_mask")
            kept["ztxt"] = kept["ztxt"][has_text]
            kept["owner"] = np.nonzero(has_text)[0]
        return kept

    def texts(self, params: PyTree, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Embeds `texts`, in batches of the same size, the last one padded."""
        ids = get_tokenizer(self._config.tokenizer)(texts)
        n, size = len(texts), self._batch_size
        ids = np.concatenate([ids, np.zeros((-n % size, ids.shape[1]), ids.dtype)])
        rows = meshes.local_rows(self._mesh, size)
        parts = []
        for i in range(0, len(ids), size):
            batch = meshes.global_batch({"text": ids[i : i + size][rows]}, self._mesh)
            parts.append(_to_host(self._text(params, batch["text"])))
        return np.concatenate(parts)[:n]


def _log_skipped(source: str, index: int, reason: str) -> None:
    logging.warning("An evaluation leaves out record %d of %s: %s", index, source, reason)


def _to_host(x: jax.Array) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
