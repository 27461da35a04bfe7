"""Runs a function over a batch in pieces, so that it needs memory for one piece only.

The pieces are rematerialised: under `jax.grad` their activations are computed again, piece by
piece, from the gradient of what they gave. So a contrastive loss of embeddings that were made in
pieces has, in every leaf, the gradient of the whole batch (Gao et al., arXiv 2101.06983): the
embeddings come first, the loss and its gradients by embeddings, temperature and bias are taken
once, and one backward pass per piece follows.
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
    """Returns `function(batch)`, computed `size` examples at a time and joined again.

    Args:
        function: maps a tree of arrays [n ...] to another, example by example.
        batch: tree of arrays [B ...], sharded by example where there is a mesh.
        size: examples per piece over all devices; 0, or more than B, runs the batch whole.
        key: of the setting that `size` comes from, for the error.

    Each device cuts its own rows into pieces, so no example changes its device.

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

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a loop hides the passes from CSE
    def run(piece: PyTree) -> PyTree:
        return mesh.constrain_by_example(function(mesh.constrain_by_example(piece)))

    return mesh.constrain_by_example(
        jax.tree.map(join, jax.lax.map(run, jax.tree.map(split, batch)))
    )


def check_pieces(examples: int, size: int, shards: int, key: str) -> None:
    """Raises a ConfigError unless a batch can be cut into pieces of `size`, as above."""
    if 0 < size < examples and (examples % size or size % shards):
        raise ConfigError(
            f"{key} = {size} must divide the batch of {examples} and be a multiple of the {shards} "
            "devices that share it; change it, or set it to 0 for one piece."
        )
