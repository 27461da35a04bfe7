"""Runs a model over a whole data set, every example once, on any number of devices."""

import concurrent.futures
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int

from aced.data import pipeline
from aced.data.batch_spec import View
from aced.data.reader import Example, InputCounters, Reader
from aced.data.records import Source
from aced.data.sources import DataConfig
from aced.evaluators.config import EvalConfig
from aced.models.base import ModelConfig
from aced.parallel import mesh as meshes

Arrays = dict[str, jax.Array]


def rounded_batch(size: int, mesh: Mesh) -> int:
    """`size`, rounded up to a multiple of the number of devices that share a batch."""
    shards = meshes.example_shards(mesh)
    return -(-size // shards) * shards


def through(
    function: Callable[[Arrays], Arrays],
    source: Source,
    model: ModelConfig,
    mesh: Mesh,
    config: EvalConfig,
    *,
    captions: int = 1,
    pictures: int = 1,
) -> dict[str, np.ndarray]:
    """Applies `function` to the n readable examples of `source`. Logs those that cannot be read.

    Args:
        function: maps a batch of `pipeline.eval_batches`, sharded by example over `mesh`, to arrays
            with one row per example.
        source: the examples.
        model: determines preprocessing.
        mesh: the devices.
        config: batch size, threads and limits.
        captions: the maximal number of captions per image.
        pictures: images per example, 1 or 2.

    Returns:
        Host arrays in the order of the source, the same in every process: those of `function`
        [n ...], `id` [n], and `label` [n] and `group` [n] if the source has them.
    """
    size, view = rounded_batch(config.batch_size, mesh), View.of(model)
    if config.resize != "model":
        resize = dataclasses.replace(view.resize, mode=config.resize)
        view = dataclasses.replace(view, resize=resize)
    parts: dict[str, list[np.ndarray]] = {}
    batches = pipeline.eval_batches(
        source,
        view,
        batch_size=size,
        max_examples=config.max_examples,
        captions=captions,
        pictures=pictures,
        rows=meshes.local_rows(mesh, size),
        config=config.data,
        counters=InputCounters(on_skip=_log_skipped),
    )
    with batches:
        for local in batches:
            batch = meshes.global_batch(local, mesh)
            kept = {k: batch[k] for k in ("mask", "id", "label", "group") if k in batch}
            for name, value in (kept | function(batch)).items():
                parts.setdefault(name, []).append(to_host(value))
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    mask = whole.pop("mask")
    return {name: value[mask] for name, value in whole.items()}


def to_host(x: jax.Array) -> np.ndarray:
    """A global array as a host array, in every process."""
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _log_skipped(source: str, index: int, reason: str) -> None:
    logging.warning("An evaluation leaves out record %d of %s: %s", index, source, reason)


def captions_of(example: Example) -> tuple[str, ...]:
    """All captions of an example that pass the filters."""
    return tuple(example.texts[i] for i in example.captions)


def answers_of(example: Example) -> tuple[str, ...]:
    """People's answers to the question of an example."""
    return tuple(example.record.get("answers", ()))


class References:
    """Texts of examples, before tokenization: `captions_of` or `answers_of`. Each is read once."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        of: Callable[[Example], tuple[str, ...]] = captions_of,
    ):
        self._source, self._config, self._of = source, config, of
        self._texts: dict[int, tuple[str, ...]] = {}  # by id

    def __call__(self, ids: Int[np.ndarray, " n"]) -> list[tuple[str, ...]]:
        """The texts of each example; empty if it has none or cannot be read."""
        reader = Reader(self._source, self._config, InputCounters(), looks=[])

        def read(index: int) -> tuple[str, ...]:
            example = reader.read(index, need_caption=False)
            return self._of(example) if isinstance(example, Example) else ()

        new = [int(i) for i in ids if int(i) not in self._texts]
        with concurrent.futures.ThreadPoolExecutor(max(self._config.num_threads, 1)) as pool:
            self._texts |= dict(zip(new, pool.map(read, new), strict=True))
        return [self._texts[int(i)] for i in ids]
