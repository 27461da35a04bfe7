"""Runs a function over a batch in pieces, so that scoring needs memory for one piece only."""

from collections.abc import Callable

import jax
from jaxtyping import PyTree

from aced.config import ConfigError
from aced.parallel import mesh


def map_micro_batches(function: Callable[[PyTree], PyTree], batch: PyTree, size: int) -> PyTree:
    """Returns `function(batch)`, computed `size` examples at a time and joined again.

    Args:
        function: maps a tree of arrays [n ...] to another, example by example.
        batch: tree of arrays [B ...], sharded by example where there is a mesh.
        size: examples per piece over all devices; 0, or more than B, runs the batch whole.

    Each device cuts its own rows into pieces, so no example changes its device.

    Raises:
        ConfigError: `size` does not divide B, or the number of devices does not divide `size`.
    """
    examples = jax.tree.leaves(batch)[0].shape[0]
    if size == 0 or size >= examples:
        return function(batch)
    shards = mesh.data_shards()
    if examples % size or size % shards:
        raise ConfigError(
            f"A scoring micro-batch of {size} must divide the super-batch of {examples} and be a "
            f"multiple of the {shards} devices; change method.score_micro_batch."
        )
    pieces = examples // size

    def split(x: jax.Array) -> jax.Array:  # [B ...] -> [pieces size ...]
        x = x.reshape(shards, pieces, size // shards, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(pieces, size, *x.shape[3:])

    def join(x: jax.Array) -> jax.Array:  # [pieces size ...] -> [B ...]
        x = x.reshape(pieces, shards, size // shards, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(examples, *x.shape[3:])

    def run(piece: PyTree) -> PyTree:
        return mesh.constrain_by_example(function(mesh.constrain_by_example(piece)))

    return mesh.constrain_by_example(
        jax.tree.map(join, jax.lax.map(run, jax.tree.map(split, batch)))
    )
