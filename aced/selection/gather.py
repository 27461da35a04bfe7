"""Taking the chosen rows, stratum by stratum where that keeps every row on its device.

`x[ids]` on a sharded batch compiles into an all-reduce of all chosen rows to every device. A
gather that is batched over the strata says that no row leaves its own, so that nothing moves
while the number of strata is a multiple of the number of devices that share the examples.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from aced.parallel.mesh import EXAMPLES, data_shards
from aced.selection.exchange import exchange


def take(
    tree: PyTree[Shaped[Array, "B ..."]], ids: Int[Array, " b"], strata: int
) -> PyTree[Shaped[Array, "b ..."]]:
    """The rows `ids` of every leaf, in that order, each device with an equal share.

    Where `strata` is a multiple of the number of devices that share the examples, nothing moves;
    otherwise the rows are exchanged. The result is the same.

    Args:
        tree: arrays with the super-batch first: pixels, tokens, embeddings.
        ids: ascending; the same number of each stratum, as `select` chooses them.
        strata: as in the config that `select` had; a number, see `SelectionConfig.for_batch`.

    Raises:
        ConfigError: the devices cannot share B or b equally.
    """
    if strata % data_shards():
        return exchange(tree, ids)
    picks = ids.reshape(strata, -1)

    def rows(x: Shaped[Array, "B *rest"]) -> Shaped[Array, "b *rest"]:
        size = x.shape[0] // strata
        offsets = size * jnp.arange(strata)[:, None]
        chosen = take_strata(x.reshape(strata, size, *x.shape[1:]), picks - offsets)
        return chosen.reshape(-1, *x.shape[1:])

    return jax.tree.map(rows, tree)


def local_parts(strata: int, candidates: int) -> int:
    """Number of contiguous equal parts of the super-batch, each of which is on one device.

    The strata, where these are; otherwise as many as there are devices, so that work which is
    batched over the parts stays where the candidates are, though the draws are over the strata.
    """
    shards = data_shards()
    return strata if strata % shards == 0 or candidates % shards else shards


def take_strata(
    x: Shaped[Array, "strata rows *rest"], picks: Int[Array, "strata k"]
) -> Shaped[Array, "strata k *rest"]:
    """Of every stratum of `x`, the rows `picks`, which are positions within that stratum."""
    return jax.vmap(lambda one, p: one.at[p].get(mode="promise_in_bounds"))(x, picks)


def gather_rows(x: Shaped[Array, "B *rest"], ids: Int[Array, " k"]) -> Shaped[Array, "k *rest"]:
    """The rows `ids`, whole on every device of the context's mesh, by one message of their size.

    Said outright: in the midst of a product XLA would pass the rows on from device to device, in as
    many messages as there are devices.
    """
    shards = data_shards()
    if shards == 1 or x.shape[0] % shards:
        return x[ids]

    def of_mine(mine: Shaped[Array, "rows *rest"], ids: Int[Array, " k"]):
        place = ids - jax.lax.axis_index(EXAMPLES) * len(mine)
        is_mine = (place >= 0) & (place < len(mine))
        rows = mine[jnp.where(is_mine, place, 0)]
        # One device adds the row and the others zeros, so that the sum is exact.
        return jax.lax.psum(
            jnp.where(is_mine.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0), EXAMPLES
        )

    return jax.shard_map(
        of_mine, in_specs=(PartitionSpec(EXAMPLES), PartitionSpec()), out_specs=PartitionSpec()
    )(x, ids)


def replicated(x: Shaped[Array, "*dims"]) -> Shaped[Array, "*dims"]:
    """The same array, whole on every device of the context's mesh."""
    return x if data_shards() == 1 else jax.lax.with_sharding_constraint(x, PartitionSpec())
