"""Moves the chosen rows between devices, so that every device gets an equal share.

`x[ids]` on a sharded batch compiles into an all-reduce of all chosen rows to every device, and
TPU v5e does not support `ragged_all_to_all`. Here rows travel along the ring of devices in buffers,
and a device holds no more than its own share and one buffer.

Slot j of the result is row ids[j]. The ids ascend, so the slots that device k owns at first and
those that it must end up with are both contiguous: it owns [s_k, s_{k+1}), where s_k counts the ids
below k B/n, and ends up with [k m, (k+1) m), where m = b/n. In a shuffled super-batch s_k differs
from k m by about sqrt(b) / 2, so most rows move by at most one device.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from aced.config import ConfigError
from aced.parallel.mesh import EXAMPLES, data_shards


def exchange(
    tree: PyTree[Shaped[Array, "B ..."]], ids: Int[Array, " b"]
) -> PyTree[Shaped[Array, "b ..."]]:
    """The rows `ids` of every leaf, in that order, sharded by example over the context mesh.

    Leaves are sharded by example; ids ascend and are the same on all devices.

    Raises:
        ConfigError: the devices cannot share B or b equally.
    """
    leaves = jax.tree.leaves(tree)
    shards, candidates = data_shards(), leaves[0].shape[0]
    if shards == 1:
        return jax.tree.map(lambda x: x.at[ids].get(mode="promise_in_bounds"), tree)
    for name, size in (("super-batch", candidates), ("sub-batch", len(ids))):
        if size % shards:
            raise ConfigError(
                f"The {name} of {size} cannot be shared equally by {shards} devices; change the "
                f"batch size or selection.filter_ratio, or use other devices."
            )
    by_example = PartitionSpec(EXAMPLES)
    move = functools.partial(_move, shards=shards, owned=candidates // shards)
    return jax.shard_map(
        move,
        in_specs=(by_example, PartitionSpec()),
        out_specs=by_example,
        check_vma=False,  # the buffers start replicated and end device-dependent
    )(tree, ids)


def _move(
    tree: PyTree[Shaped[Array, "owned ..."]], ids: Int[Array, " b"], *, shards: int, owned: int
) -> PyTree[Shaped[Array, "m ..."]]:
    """`exchange` on one device."""
    me = jax.lax.axis_index(EXAMPLES)
    share = len(ids) // shards

    def load(slots: Int[Array, " k"]) -> PyTree[Shaped[Array, "k ..."]]:
        """The rows of these slots; arbitrary rows for slots of other devices."""
        local = ids.at[slots].get(mode="clip") - me * owned
        return jax.tree.map(lambda x: x.at[local].get(mode="clip"), tree)

    first = jnp.searchsorted(ids, owned * jnp.arange(shards + 1)).astype(jnp.int32)  # s_k
    begin = share * jnp.arange(shards, dtype=jnp.int32)
    end = begin + share
    out = load(share * me + jnp.arange(share))  # rows that stay are now in place
    right = jnp.maximum(first[:-1], end), first[1:]
    left = first[:-1], jnp.minimum(first[1:], begin)
    for step, (start, stop) in ((1, right), (-1, left)):
        out = _belt(out, load, start, stop, step=step, share=share, me=me)
    return out


def _belt(
    out: PyTree[Shaped[Array, "m ..."]],
    load: Callable[[Array], PyTree],
    start: Int[Array, " n"],
    stop: Int[Array, " n"],
    *,
    step: int,
    share: int,
    me: Int[Array, ""],
) -> PyTree[Shaped[Array, "m ..."]]:
    """Delivers the slots [start_k, stop_k) of each device k, which all lie in direction `step`.

    At every tick, devices with an empty buffer fill it, all buffers move to the next device, and
    each device copies its own rows. A buffer stays in use until its last row has arrived. The slots
    [low_k, high_k) in each buffer follow from the ids alone, so every device tracks all buffers,
    and all stop at the same tick.

    Args:
        out: this device's share of the result; slots that do not move are already in place.
        load: maps slots of this device to their rows.
        start: [n], of every device.
        stop: [n], of every device; at most `start` if there is nothing to send.
        step: 1 or -1, the neighbour that buffers go to.
        share: m.
        me: k, this device.
    """
    n = len(start)
    size = max(1, share // 4)  # rows of a buffer: trades memory against padding and ticks
    here = share * jnp.arange(n, dtype=jnp.int32)  # the first slot of each device's share
    hops = [(k, k + step) for k in range(n) if 0 <= k + step < n]

    def is_going_on(state):
        next_, low, high, _, _ = state
        return jnp.any(next_ < stop) | jnp.any(low < high)

    def tick(state):
        next_, low, high, buffer, out = state
        # Fill. With nothing to send, high <= low, and the buffer stays empty.
        empty = low >= high
        low = jnp.where(empty, next_, low)
        high = jnp.where(empty, jnp.minimum(next_ + size, stop), high)
        next_ = jnp.where(empty, jnp.maximum(next_, high), next_)
        fresh = load(low[me] + jnp.arange(size))
        buffer = jax.tree.map(lambda new, old: jnp.where(empty[me], new, old), fresh, buffer)
        # Move.
        buffer = jax.tree.map(lambda x: jax.lax.ppermute(x, EXAMPLES, hops), buffer)
        low, high = jnp.roll(low, step), jnp.roll(high, step)
        # Copy, by a gather: compiling a scatter in a while loop for v5e did not terminate.
        position = here[me] + jnp.arange(share) - low[me]
        is_own = (position >= 0) & (position < high[me] - low[me])
        out = jax.tree.map(
            lambda x, y: _where(is_own, y.at[position].get(mode="clip"), x), out, buffer
        )
        # Rows arrive in order, so a buffer is done when its far end has arrived.
        arrived = high <= here + share if step > 0 else low >= here
        return next_, low, jnp.where(arrived, low, high), buffer, out

    buffer = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), out)
    zero = jnp.zeros_like(start)
    return jax.lax.while_loop(is_going_on, tick, (start, zero, zero, buffer, out))[-1]


def _where(
    mask: Bool[Array, " k"], x: Shaped[Array, "k *rest"], y: Shaped[Array, "k *rest"]
) -> Shaped[Array, "k *rest"]:
    """The rows of `x` where `mask`, those of `y` elsewhere."""
    return jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y)
