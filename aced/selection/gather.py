"""Gathers the chosen rows, without communication if strata align with devices.

`x[ids]` on a sharded batch compiles into an all-reduce of all chosen rows to every device. A
gather batched over the strata needs no communication if the number of strata is a multiple of the
number of devices that share the examples.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from aced.parallel.mesh import EXAMPLES, data_shards
from aced.selection.exchange import exchange


def take(
    tree: PyTree[Shaped[Array, "B ..."]], ids: Int[Array, " b"], strata: int
) -> PyTree[Shaped[Array, "b ..."]]:
    """The rows `ids` of every leaf, in that order, with an equal share on each device.

    The ids are from `select`: ascending, with the same number in each of the `strata` of its config
    (a number, see `SelectionConfig.for_batch`). If `strata` is a multiple of the number of devices
    that share the examples, no row moves; otherwise rows are exchanged, with the same result.

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


def evenly_spaced(candidates: int, size: int) -> Int[np.ndarray, " size"]:
    """Every `candidates / size`-th row: a uniform sample, with an equal share in each stratum.

    The first rows are not a uniform sample: some sources fill adjacent rows from the same files.
    """
    return (np.arange(size) * candidates // size).astype(np.int32)  # the product needs 64 bits


def local_parts(strata: int, candidates: int) -> int:
    """Number of contiguous equal parts of the super-batch that each lie on one device.

    The number of strata if these align with the devices, otherwise the number of devices. Work
    batched over the parts then needs no communication.
    """
    shards = data_shards()
    return strata if strata % shards == 0 or candidates % shards else shards


def take_strata(
    x: Shaped[Array, "strata rows *rest"], picks: Int[Array, "strata k"]
) -> Shaped[Array, "strata k *rest"]:
    """The rows `picks` of every stratum; positions are relative to the stratum."""
    return jax.vmap(lambda rows, p: rows.at[p].get(mode="promise_in_bounds"))(x, picks)


def gather_rows(x: Shaped[Array, "B *rest"], ids: Int[Array, " k"]) -> Shaped[Array, "k *rest"]:
    """The rows `ids`, replicated over the context mesh by a single all-reduce.

    Without this, XLA may fuse the gather with a product and pass rows from device to device, in as
    many messages as there are devices.
    """
    shards = data_shards()
    if shards == 1 or x.shape[0] % shards:
        return x[ids]

    def on_shard(shard: Shaped[Array, "rows *rest"], ids: Int[Array, " k"]):
        place = ids - jax.lax.axis_index(EXAMPLES) * len(shard)
        is_local = (place >= 0) & (place < len(shard))
        rows = shard[jnp.where(is_local, place, 0)]
        # One device adds the row and the others zeros, so the sum is exact.
        return jax.lax.psum(
            jnp.where(is_local.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0), EXAMPLES
        )

    return jax.shard_map(
        on_shard, in_specs=(PartitionSpec(EXAMPLES), PartitionSpec()), out_specs=PartitionSpec()
    )(x, ids)


def replicated(x: Shaped[Array, "*dims"]) -> Shaped[Array, "*dims"]:
    """`x`, replicated over the context mesh."""
    return x if data_shards() == 1 else jax.lax.with_sharding_constraint(x, PartitionSpec())
