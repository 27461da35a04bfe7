"""Losses over all pairs of a batch, block by block, around the ring of devices.

A contrastive loss needs the logits of all images with all texts, but no device needs to hold all
logits or embeddings. Each device keeps its images while blocks of texts travel around the ring (the
chunked loss of SigLIP, arXiv 2303.15343). With n devices these are n blocks of (N / n)^2 pairs, one
at a time.

The gradient is a second tour that recomputes each block: the gradient of a block of texts travels
with the texts until they return. Only the inputs are kept between the two tours. JAX's automatic
derivative would keep every block, so the derivatives are written by hand.

The ring consists of the example axes of the context mesh (`jax.set_mesh`). Without a mesh, or with
one shard of examples, there is one block.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree

from aced.config import ConfigError
from aced.parallel.mesh import EXAMPLES, data_shards


class Pairs(NamedTuple):
    """Arrays of all images and texts of a batch, or of one block.

    n = m if image i is paired with text i. `texts` may also hold images.
    """

    images: PyTree  # [n ...], stay on their device
    texts: PyTree  # [m ...], travel
    shared: PyTree  # without an example axis, replicated


_SPEC = Pairs(PartitionSpec(EXAMPLES), PartitionSpec(EXAMPLES), PartitionSpec())

# block(is_match, *pairs): the sum over one block of pairs. is_match [n m] is true if image i and
# text j are of the same example.
Block = Callable[..., Float[Array, ""]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair_sum(block: Block, trained: Pairs, *given: Pairs) -> Float[Array, ""]:
    """The sum of `block` over all pairs of images and texts.

    Args:
        block: called as `block(is_match, trained, *given)` for one block of images and texts.
        trained: differentiable arrays; gradients are accumulated in their dtype.
        given: further arguments of `block`, without gradient.

    Raises:
        ConfigError: the devices cannot share the examples equally.
    """

    def on_shard(*pairs: Pairs) -> Array:
        def visit(total, empty, is_match, pairs):
            return total + block(is_match, *pairs), empty

        return _sum_over_shards(_tour(visit, jnp.zeros(()), (), pairs)[0])

    return _on_shards(on_shard, PartitionSpec(), trained, *given)


def _pair_sum_forward(block, trained, *given):
    return pair_sum(block, trained, *given), (trained, *given)


def _pair_sum_backward(block, pairs, cotangent):
    return _gradient(block, cotangent, *pairs), *(None for _ in pairs[1:])


pair_sum.defvjp(_pair_sum_forward, _pair_sum_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def logsumexps(
    logits: Callable[[Pairs], Float[Array, "n m"]], trained: Pairs
) -> tuple[Float[Array, " N"], Float[Array, " M"]]:
    """Log-sum-exp of each image's logits with all texts, and of each text's with all images.

    `logits` computes those of a block from `trained`, as in `pair_sum`.

    Raises:
        ConfigError: the devices cannot share the examples equally.
    """

    def on_shard(trained: Pairs) -> tuple[Array, Array]:
        def visit(images, texts, is_match, pairs):
            block = logits(*pairs)
            images = jnp.logaddexp(images, jax.nn.logsumexp(block, axis=1))
            return images, jnp.logaddexp(texts, jax.nn.logsumexp(block, axis=0))

        images, texts = (jnp.full(count, -jnp.inf) for count in _counts(trained))
        return _tour(visit, images, texts, (trained,))

    return _on_shards(on_shard, (_SPEC.images, _SPEC.texts), trained)


def _logsumexps_forward(logits, trained):
    sums = logsumexps(logits, trained)
    return sums, (trained, sums)


def _logsumexps_backward(logits, residuals, cotangents):
    """As d lse_i / d l_ij = exp(l_ij - lse_i), this is the gradient of a weighted sum of logits."""
    trained, (images, texts) = residuals

    def weighted(is_match, pairs, given):
        block = logits(pairs)
        (image_sums, image_g), (text_sums, text_g) = given.images, given.texts
        weights = image_g[:, None] * jnp.exp(block - image_sums[:, None])
        weights += text_g[None, :] * jnp.exp(block - text_sums[None, :])
        return (jax.lax.stop_gradient(weights) * block).sum()

    given = Pairs((images, cotangents[0]), (texts, cotangents[1]), ())
    return (_gradient(weighted, 1.0, trained, given),)


logsumexps.defvjp(_logsumexps_forward, _logsumexps_backward)


def _gradient(block: Block, cotangent, trained: Pairs, *given: Pairs) -> Pairs:
    """`cotangent` times the gradient of `pair_sum(block, trained, *given)` w.r.t. `trained`."""

    def on_shard(*pairs: Pairs) -> Pairs:
        def visit(local, texts, is_match, pairs):
            gradient = jax.grad(block, argnums=1)(is_match, *pairs)
            local = jax.tree.map(jnp.add, local, (gradient.images, gradient.shared))
            return local, jax.tree.map(jnp.add, texts, gradient.texts)

        zero = jax.tree.map(jnp.zeros_like, pairs[0])
        (images, shared), texts = _tour(visit, (zero.images, zero.shared), zero.texts, pairs)
        return Pairs(images, texts, _sum_over_shards(shared))

    gradient = _on_shards(on_shard, _SPEC, trained, *given)
    return jax.tree.map(lambda g: cotangent * g, gradient)


def _tour(visit: Callable, local: PyTree, moving: PyTree, pairs: tuple[Pairs, ...]) -> Any:
    """The accumulators `local` and `moving` after all texts have visited this device.

    `local, moving = visit(local, moving, is_match, pairs)` processes one block. `local` stays with
    the images; `moving` travels with the texts, and returns with them at the end.
    """
    shards = data_shards()

    def meet(local, moving, texts, is_home):
        is_match = jnp.eye(*_counts(pairs[0]), dtype=bool) & is_home
        block = [p._replace(texts=t) for p, t in zip(pairs, texts, strict=True)]
        return visit(local, moving, is_match, block)

    def step(carry, i):
        local, moving, texts = carry
        following = _pass_on(texts)  # first, so that it overlaps with the block's computation
        local, moving = meet(local, moving, texts, i == 0)
        return (local, _pass_on(moving), following), None

    carry = local, moving, [p.texts for p in pairs]
    if shards > 1:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(shards - 1))
    local, moving = meet(*carry, shards == 1)
    return local, _pass_on(moving)


def _pass_on(tree: PyTree) -> PyTree:
    shards = data_shards()
    if shards == 1:
        return tree
    return jax.lax.ppermute(tree, EXAMPLES, [(i, (i + 1) % shards) for i in range(shards)])


def _sum_over_shards(tree: PyTree) -> PyTree:
    return tree if data_shards() == 1 else jax.lax.psum(tree, EXAMPLES)


def _on_shards(function: Callable, out_specs: PyTree, *pairs: Pairs) -> Any:
    """Applies `function` to each device's shard of the examples."""
    shards = data_shards()
    if shards == 1:
        return function(*pairs)
    for examples in _counts(pairs[0]):
        if examples % shards:
            raise ConfigError(
                f"A batch of {examples} examples cannot be shared equally by {shards} devices; "
                "make it a multiple of their number."
            )
    # Nothing is differentiated through shard_map, so JAX need not check replication.
    specs = (_SPEC,) * len(pairs)
    return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)(*pairs)


def _counts(pairs: Pairs) -> tuple[int, int]:
    """The number of images, and of texts."""
    return tuple(jax.tree.leaves(side)[0].shape[0] for side in (pairs.images, pairs.texts))
