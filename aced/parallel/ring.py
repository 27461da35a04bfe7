"""Losses over all pairs of a batch, block by block, around the ring of devices.

A contrastive loss needs the logits of every image with every text, but no device needs to hold
them, nor all embeddings. Each keeps its own images, while the texts travel: a device meets one
block of texts, passes it on to its neighbour, and gets the next (the chunked loss of SigLIP, arXiv
2303.15343). With n devices that is n blocks of (N / n)^2 pairs, one at a time.

Gradients go around a second time, each block's computed anew: a gradient of texts travels with its
texts until it is home. Nothing is kept between the two tours but the inputs, which is why the
derivatives are written here and not left to JAX, which would keep every block.

The ring is the example axes of the context mesh (`jax.set_mesh`). Without a mesh, or with one shard
of examples, there is one block.
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
    """Numbers of all images and texts of a batch, or of those that meet in one block.

    Where image i and text i belong together, n = m. What travels may be images as well.
    """

    images: PyTree  # [n ...], which stay on their device
    texts: PyTree  # [m ...], which travel
    shared: PyTree  # without an example axis, the same on every device


_SPEC = Pairs(PartitionSpec(EXAMPLES), PartitionSpec(EXAMPLES), PartitionSpec())

# block(is_match, *pairs): the sum over one block of pairs. is_match [n m] is true where image i and
# text j are of the same example, if they are paired.
Block = Callable[..., Float[Array, ""]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def pair_sum(block: Block, trained: Pairs, *given: Pairs) -> Float[Array, ""]:
    """The sum over all images and texts of what `block` adds up.

    Args:
        block: called as `block(is_match, trained, *given)` with some images and some texts.
        trained: arrays of the precision in which their gradients are to be added up.
        given: what else the block needs; no gradient reaches it.

    Raises:
        ConfigError: the devices cannot share the examples equally.
    """

    def on_shard(*pairs: Pairs) -> Array:
        def visit(total, nothing, is_match, pairs):
            return total + block(is_match, *pairs), nothing

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

    Args:
        logits: of all images with all texts of a block.
        trained: as in `pair_sum`.

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
    """By d lse_i / d l_ij = exp(l_ij - lse_i), the gradient of a sum of logits with weights."""
    trained, (images, texts) = residuals

    def weighted(is_match, pairs, known):
        block = logits(pairs)
        (image_sums, image_g), (text_sums, text_g) = known.images, known.texts
        weights = image_g[:, None] * jnp.exp(block - image_sums[:, None])
        weights += text_g[None, :] * jnp.exp(block - text_sums[None, :])
        return (jax.lax.stop_gradient(weights) * block).sum()

    known = Pairs((images, cotangents[0]), (texts, cotangents[1]), ())
    return (_gradient(weighted, 1.0, trained, known),)


logsumexps.defvjp(_logsumexps_forward, _logsumexps_backward)


def _gradient(block: Block, cotangent, trained: Pairs, *given: Pairs) -> Pairs:
    """`cotangent` times the gradient of `pair_sum(block, trained, *given)` for `trained`."""

    def on_shard(*pairs: Pairs) -> Pairs:
        def visit(here, texts, is_match, pairs):
            gradient = jax.grad(block, argnums=1)(is_match, *pairs)
            here = jax.tree.map(jnp.add, here, (gradient.images, gradient.shared))
            return here, jax.tree.map(jnp.add, texts, gradient.texts)

        zero = jax.tree.map(jnp.zeros_like, pairs[0])
        (images, shared), texts = _tour(visit, (zero.images, zero.shared), zero.texts, pairs)
        return Pairs(images, texts, _sum_over_shards(shared))

    gradient = _on_shards(on_shard, _SPEC, trained, *given)
    return jax.tree.map(lambda g: cotangent * g, gradient)


def _tour(visit: Callable, here: PyTree, there: PyTree, pairs: tuple[Pairs, ...]) -> Any:
    """The accumulators `here` and `there` after all texts have visited this device.

    `here, there = visit(here, there, is_match, pairs)` takes in one block. `here` stays with the
    images; `there` belongs to the texts, travels with them, and is back with its own at the end.
    """
    shards = data_shards()

    def meet(here, there, texts, is_home):
        is_match = jnp.eye(*_counts(pairs[0]), dtype=bool) & is_home
        met = [p._replace(texts=t) for p, t in zip(pairs, texts, strict=True)]
        return visit(here, there, is_match, met)

    def step(carry, i):
        here, there, texts = carry
        following = _pass_on(texts)  # first, so that it can go on while the block is computed
        here, there = meet(here, there, texts, i == 0)
        return (here, _pass_on(there), following), None

    carry = here, there, [p.texts for p in pairs]
    if shards > 1:
        carry, _ = jax.lax.scan(step, carry, jnp.arange(shards - 1))
    here, there = meet(*carry, shards == 1)
    return here, _pass_on(there)


def _pass_on(tree: PyTree) -> PyTree:
    shards = data_shards()
    if shards == 1:
        return tree
    return jax.lax.ppermute(tree, EXAMPLES, [(i, (i + 1) % shards) for i in range(shards)])


def _sum_over_shards(tree: PyTree) -> PyTree:
    return tree if data_shards() == 1 else jax.lax.psum(tree, EXAMPLES)


def _on_shards(function: Callable, out_specs: PyTree, *pairs: Pairs) -> Any:
    """`function` of each device's own part of the examples."""
    shards = data_shards()
    if shards == 1:
        return function(*pairs)
    for examples in _counts(pairs[0]):
        if examples % shards:
            raise ConfigError(
                f"A batch of {examples} examples cannot be shared equally by {shards} devices; "
                "make it a multiple of their number."
            )
    # Nothing is differentiated through here, so JAX need not check what varies between devices.
    specs = (_SPEC,) * len(pairs)
    return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)(*pairs)


def _counts(pairs: Pairs) -> tuple[int, int]:
    """How many images and how many texts there are."""
    return tuple(jax.tree.leaves(side)[0].shape[0] for side in (pairs.images, pairs.texts))
