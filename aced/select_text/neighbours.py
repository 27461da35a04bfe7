"""Every image's k nearest sentences, of a stream of sentences: one step takes in one block.

The images lie on the devices, each with the best k that were seen so far. A block's sentences are
embedded where they are, by example; their embeddings, which are few, go to all devices; and every
device holds its own images against them, tile by tile. Nothing of the size images x sentences is
ever there, and nothing grows with the corpus.

Order is by similarity, and of equals by hash, so that it matters not in which order or in how many
blocks the sentences come. A sentence that is there already takes no second place: it is enough to
look at the k best of a tile, since one that belongs into the list has fewer than k better ones in
its tile, whether or not some of these are in the list.
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

_LAST = np.uint32(0xFFFFFFFF)  # both halves of the hash in a place that is empty


@flax.struct.dataclass
class Neighbours:
    """The best k sentences of each image, the nearest first; places without one have -inf.

    Of arrays, or of their shardings.
    """

    score: PyTree  # cosines, float32 [N k]
    upper: PyTree  # halves of the sentences' hashes, uint32 [N k]
    lower: PyTree
    broken: PyTree  # how many sentences had an embedding that was not finite, uint32 []


@flax.struct.dataclass
class Block:
    """m sentences: arrays, or what stands for them when the step is compiled."""

    text: PyTree  # ids, int32 [m l]
    hash: PyTree  # uint32 [m 2]
    valid: PyTree  # bool [m]; False: no sentence, to fill it up


@dataclasses.dataclass(frozen=True)
class Search:
    """The compiled search and the sizes that it is for."""

    mesh: Mesh
    k: int
    rows: int  # images, filled up so that the devices and their tiles have equal shares
    block: int  # m, ditto
    tile: int  # images that a device compares at once; divides its share of them
    step: Callable[..., Neighbours]  # (Neighbours, params, features, Block); donates the first

    def empty(self) -> Neighbours:
        """The lists before any sentence was seen."""
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
        """Where the parts of the state lie."""
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
    """Returns the search for `k` neighbours of so many images.

    Args:
        embed: (parameters, ids) -> L2-normalised embeddings, sharded by example.
        mesh: the devices; all but its tensor axis share the images.
        images: N, before it is filled up.
        k: length of the lists.
        block: sentences of a step; rounded up to what the devices can share.
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
        """Shows a device's own images all sentences of a block."""
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

            # The last slice overlaps its predecessor where the tile does not divide the block:
            # what is seen twice takes one place.
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
        # In the order of their hashes, top_k prefers the smaller one of equals.
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
    """Takes the best of m sentences into the lists of n images.

    Args:
        lists: scores, and halves of hashes.
        score: of the sentences with each image; -inf: not to be taken.
        upper: of the sentences' hashes, ascending with `lower`; those that may be taken differ.
        lower: ditto.
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
