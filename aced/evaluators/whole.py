"""A whole data set through a model, every example once, with any number of devices."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from aced.data import pipeline
from aced.data.batch_spec import View
from aced.data.records import Source
from aced.evaluators.config import EvalConfig
from aced.models.base import ModelConfig
from aced.parallel import mesh as meshes

Arrays = dict[str, jax.Array]


def rounded_batch(size: int, mesh: Mesh) -> int:
    """`size`, or the next number that the devices can share equally."""
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
    """What `function` says of the n examples of `source` that can be read, in order, on the host.

    Those that cannot be read are logged, by number and reason.

    Args:
        function: from a batch as `pipeline.eval_batches` gives it, sharded by example over `mesh`,
            to arrays with one row per example.
        source: the examples.
        model: what it sees of them.
        mesh: the devices.
        config: batch size, threads and limits.
        captions: the most captions of one picture that are wanted.
        pictures: of each example, 1 or 2.

    Returns:
        `function`'s arrays [n ...], the same in every process; `id` [n]; and `label` [n] where the
        source has labels.
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
        counters=pipeline.InputCounters(on_skip=_log_skipped),
    )
    with batches:
        for local in batches:
            batch = meshes.global_batch(local, mesh)
            out = {k: batch[k] for k in ("mask", "id", "label") if k in batch} | function(batch)
            for name, value in out.items():
                parts.setdefault(name, []).append(to_host(value))
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    mask = whole.pop("mask")
    return {name: value[mask] for name, value in whole.items()}


def to_host(x: jax.Array) -> np.ndarray:
    """A global array, whole, in every process."""
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _log_skipped(source: str, index: int, reason: str) -> None:
    logging.warning("An evaluation leaves out record %d of %s: %s", index, source, reason)
