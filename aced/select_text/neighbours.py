"""Every image's k nearest sentences in a stream of sentences, block by block.

The images are sharded over the devices, each with its best k sentences so far. A block's sentences
are embedded by example and their embeddings gathered on all devices, where each device compares its
own images with them tile by tile. The matrix of images x sentences never exists, and the memory
does not grow with the corpus.

Sentences are sorted by similarity, then by hash, so the result does not depend on their order or
on the blocks. A sentence takes only one place in a list. It is enough to look at the k best of a
tile: a sentence that belongs in the list has fewer than k better ones in its tile.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt32

from aced.parallel import mesh as meshes
from aced.parallel.mesh import EXAMPLES

_LAST = np.uint32(0xFFFFFFFF)  # both halves of the hash in an empty place


@flax.struct.dataclass
class Neighbours:
    """The best k sentences of each image, the nearest first; empty places have -inf.

    A tree of arrays or of their shardings.
    """

    score: PyTree  # cosines, float32 [N k]
    upper: PyTree  # halves of the sentences' hashes, uint32 [N k]
    lower: PyTree
    broken: PyTree  # number of sentences with a non-finite embedding, uint32 []


@flax.struct.dataclass
class Block:
    """m sentences, as arrays or abstract arrays."""

    text: PyTree  # ids, int32 [m l]
    hash: PyTree  # uint32 [m 2]
    valid: PyTree  # bool [m]; False for padding


@dataclasses.dataclass(frozen=True)
class Search:
    """The compiled search and the sizes that it is for."""

    mesh: Mesh
    k: int
    rows: int  # images plus padding, a multiple of the devices and their tiles
    block: int  # m plus padding, a multiple of the devices
    tile: int  # images that a device compares at once; divides its number of images
    step: Callable[..., Neighbours]  # (Neighbours, params, features, Block); donates the first

    def empty(self) -> Neighbours:
        """Empty lists."""
        shape = (self.rows, self.k)
        places = self.shardings

        def full(place: NamedSharding, shape: tuple, value: Any) -> jax.Array:
            return jax.make_array_from_callback(
                shape, place, lambda index: np.full(_shape(shape, index), value)
            )

        return Neighbours(
            score=full(places.score, shape, np.float32(-np.inf)),
            upper=full(places.upper, shape, _LAST),
            lower=full(places.lower, shape, _LAST),
            broken=full(places.broken, (), np.uint32(0)),
        )

    @property
    def shardings(self) -> Neighbours:
        """Shardings of the state."""
        images = meshes.by_example(self.mesh)
        return Neighbours(images, images, images, meshes.replicated(self.mesh))


def build(
    embed: Callable[[PyTree, Int[Array, "m l"]], Float[Array, "m d"]],
    mesh: Mesh,
    *,
    images: int,
    k: int,
    block: int,
    tile: int,
) -> Search:
    """Returns the search for the `k` nearest sentences of each image.

    Args:
        embed: (parameters, ids) -> L2-normalised embeddings, sharded by example.
        mesh: the devices; all but its tensor axis share the images.
        images: N, without padding.
        k: length of the lists.
        block: sentences per step; rounded up to a multiple of the shards.
        tile: images and sentences that a device compares at once.
    """
    shards = meshes.example_shards(mesh)
    share = -(-images // shards)
    tile_rows = min(tile, share)
    rows = shards * -(-share // tile_rows) * tile_rows
    block = -(-block // shards) * shards
    width = min(tile, block)
    spec = PartitionSpec(EXAMPLES)
    state = Neighbours(spec, spec, spec, PartitionSpec())

    def meet(found: Neighbours, z: Float[Array, "n d"], ztxt, upper, lower, valid) -> Neighbours:
        """Compares a device's images with all sentences of a block."""
        lists = (found.score, found.upper, found.lower)
        tiled = [x.reshape(-1, tile_rows, x.shape[-1]) for x in (*lists, z)]

        def one_tile(rows):
            *lists, z = rows

            def take(lists, start):
                part = [jax.lax.dynamic_slice_in_dim(x, start, width) for x in (upper, lower)]
                texts = jax.lax.dynamic_slice_in_dim(ztxt, start, width)
                ok = jax.lax.dynamic_slice_in_dim(valid, start, width)
                score = jnp.einsum("nd,md->nm", z, texts, precision="highest")
                score = jnp.where(ok, score, -jnp.inf)
                return merge(tuple(lists), score, *part), None

            # The last slice overlaps the one before if the tile does not divide the block, which is
            # harmless, since repeated sentences take one place.
            starts = np.minimum(np.arange(0, block, width), block - width)
            return jax.lax.scan(take, tuple(lists), jnp.asarray(starts))[0]

        out = jax.lax.map(one_tile, tuple(tiled))
        score, high, low = (x.reshape(-1, x.shape[-1]) for x in out)
        return found.replace(score=score, upper=high, lower=low)

    def step(found: Neighbours, params: PyTree, features: Float[Array, "N d"], texts: Block):
        ztxt = embed(params, texts.text)
        everywhere = PartitionSpec()
        ztxt, hashes, valid = jax.lax.with_sharding_constraint(
            (ztxt, texts.hash, texts.valid), everywhere
        )
        finite = jnp.isfinite(ztxt).all(axis=1)
        broken = jnp.sum(valid & ~finite, dtype=jnp.uint32)
        # Sorted by hash, since top_k prefers the first of equals.
        out, high, low, order = jax.lax.sort(
            (~(valid & finite), hashes[:, 0], hashes[:, 1], jnp.arange(block)), num_keys=3
        )
        again = jnp.append(False, (high[1:] == high[:-1]) & (low[1:] == low[:-1]))
        found = jax.shard_map(
            meet,
            in_specs=(state, spec, *[everywhere] * 4),
            out_specs=state,
            check_vma=False,  # a scan's carry varies over the devices, its constants do not
        )(found, features, ztxt[order], high, low, ~(out | again))
        return found.replace(broken=found.broken + broken)

    search = Search(mesh, k, rows, block, tile_rows, step)
    return dataclasses.replace(
        search, step=jax.jit(step, donate_argnums=0, out_shardings=search.shardings)
    )


def merge(
    lists: tuple[Float[Array, "n k"], UInt32[Array, "n k"], UInt32[Array, "n k"]],
    score: Float[Array, "n m"],
    upper: UInt32[Array, " m"],
    lower: UInt32[Array, " m"],
) -> tuple[Float[Array, "n k"], UInt32[Array, "n k"], UInt32[Array, "n k"]]:
    """Merges the best of m sentences into n lists of scores and of both halves of hashes.

    A score of -inf excludes a sentence. The hashes of the sentences ascend and, unless excluded,
    are distinct.
    """
    k = lists[0].shape[1]
    best, at = jax.lax.top_k(score, min(k, score.shape[1]))
    new = (best, upper[at], lower[at])
    same = (lists[1][:, None] == new[1][:, :, None]) & (lists[2][:, None] == new[2][:, :, None])
    known = jnp.any(same & (lists[0] > -jnp.inf)[:, None], axis=2)
    free = known | (best == -jnp.inf)
    new = (
        jnp.where(free, -jnp.inf, new[0]),
        jnp.where(free, _LAST, new[1]),
        jnp.where(free, _LAST, new[2]),
    )
    both = [jnp.concatenate([old, fresh], axis=1) for old, fresh in zip(lists, new, strict=True)]
    negative, high, low = jax.lax.sort((-both[0], *both[1:]), dimension=1, num_keys=3)
    return -negative[:, :k], high[:, :k], low[:, :k]


def _shape(shape: tuple[int, ...], index: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True))
