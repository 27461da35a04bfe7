"""Runs a function over a batch in pieces, with memory for one piece at a time.

The pieces are rematerialised: under `jax.grad` activations are recomputed piece by piece. A
contrastive loss of embeddings computed in pieces has the exact gradient of the whole batch (Gao et
al., arXiv 2101.06983): the embeddings are computed first, the loss and its gradients with respect
to embeddings, temperature and bias once, followed by one backward pass per piece.
"""

import functools
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from aced.config import ConfigError
from aced.parallel import mesh


def map_micro_batches(
    function: Callable[[PyTree], PyTree], batch: PyTree, size: int, key: str
) -> PyTree:
    """Returns `function(batch)`, computed for `size` examples at a time.

    Each device splits its own rows into pieces, so no example moves between devices.

    Args:
        function: maps a tree of arrays [n ...] to another, example by example.
        batch: tree of arrays [B ...], sharded by example if there is a mesh.
        size: examples per piece over all devices; 0, or at least B, runs the whole batch.
        key: the name of the setting of `size`, for the error.

    Raises:
        ConfigError: `size` does not divide B, or the number of devices does not divide `size`.
    """
    examples = jax.tree.leaves(batch)[0].shape[0]
    if size == 0 or size >= examples:
        return function(batch)
    shards = mesh.data_shards()
    check_pieces(examples, size, shards, key)
    pieces = examples // size

    def split(x: jax.Array) -> jax.Array:  # [B ...] -> [pieces size ...]
        x = x.reshape(shards, pieces, size // shards, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(pieces, size, *x.shape[3:])

    def join(x: jax.Array) -> jax.Array:  # [pieces size ...] -> [B ...]
        x = x.reshape(pieces, shards, size // shards, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(examples, *x.shape[3:])

    @functools.partial(jax.checkpoint, prevent_cse=False)  # the loop already prevents CSE
    def run(piece: PyTree) -> PyTree:
        return mesh.constrain_by_example(function(mesh.constrain_by_example(piece)))

    return mesh.constrain_by_example(
        jax.tree.map(join, jax.lax.map(run, jax.tree.map(split, batch)))
    )


def check_pieces(examples: int, size: int, shards: int, key: str) -> None:
    """Raises a ConfigError unless `size` divides the batch, and `shards` divides `size`."""
    if 0 < size < examples and (examples % size or size % shards):
        raise ConfigError(
            f"{key} = {size} must divide the batch of {examples} and be a multiple of the {shards} "
            "devices that share it; change it, or set it to 0 for one piece."
        )
