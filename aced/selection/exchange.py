"""Moving the chosen rows, wherever they are, so that every device trains on its equal share.

`x[ids]` on a sharded batch compiles into an all-reduce of all chosen rows to every device, and
`ragged_all_to_all` is refused by TPU v5e. Here the rows travel along the ring of devices that the
batch is sharded over, buffer by buffer, and nobody holds more than its own share and one buffer.

Slot j of the result is row ids[j]. The ids ascend, so what each of the n devices owns and what it
must end up with are both contiguous: device k owns the slots [s_k, s_{k+1}), where s_k counts the
ids below k B/n, and ends up with [k m, (k+1) m), where m = b/n. Of a shuffled super-batch, s_k
differs from k m by about half the root of b, so that most rows move by no more than one device.
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
    """The rows `ids` of every leaf, in that order, sharded by example over the context's mesh.

    Args:
        tree: arrays with the super-batch first, sharded by example.
        ids: ascending; the same on all devices.

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
        check_vma=False,  # the belts start empty on all devices alike, and do not end so
    )(tree, ids)


def _move(
    tree: PyTree[Shaped[Array, "owned ..."]], ids: Int[Array, " b"], *, shards: int, owned: int
) -> PyTree[Shaped[Array, "m ..."]]:
    """What one of the devices does."""
    me = jax.lax.axis_index(EXAMPLES)
    share = len(ids) // shards

    def load(slots: Int[Array, " k"]) -> PyTree[Shaped[Array, "k ..."]]:
        """The rows of these slots; arbitrary ones where the slot is not this device's."""
        local = ids.at[slots].get(mode="clip") - me * owned
        return jax.tree.map(lambda x: x.at[local].get(mode="clip"), tree)

    first = jnp.searchsorted(ids, owned * jnp.arange(shards + 1)).astype(jnp.int32)  # s_k
    begin = share * jnp.arange(shards, dtype=jnp.int32)
    end = begin + share
    out = load(share * me + jnp.arange(share))  # what stays is in its place
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

    At every tick a device whose buffer is empty fills it, all buffers move on by one device, and
    each device copies what is its own. A buffer stays full until its last row has arrived. Which
    slots [low_k, high_k) are in whose buffer follows from the ids alone, so all devices keep the
    same books, of all of them, and agree on when to stop.

    Args:
        out: tree of this device's share of the result; the slots that do not move are in place.
        load: slots to their rows, of those that this device owns.
        start: of every device.
        stop: ditto; not above `start` where device k has nothing for this direction.
        step: 1 or -1, the neighbour that buffers go to.
        share: m.
        me: k.
    """
    n = len(start)
    size = max(1, share // 4)  # of a buffer: memory against padding and the number of ticks
    here = share * jnp.arange(n, dtype=jnp.int32)  # the first slot that belongs to each device
    hops = [(k, k + step) for k in range(n) if 0 <= k + step < n]

    def is_going_on(books):
        next_, low, high, _, _ = books
        return jnp.any(next_ < stop) | jnp.any(low < high)

    def tick(books):
        next_, low, high, buffer, out = books
        # Fill. Where there is nothing to fill it with, high <= low, and the buffer stays empty.
        empty = low >= high
        low = jnp.where(empty, next_, low)
        high = jnp.where(empty, jnp.minimum(next_ + size, stop), high)
        next_ = jnp.where(empty, jnp.maximum(next_, high), next_)
        fresh = load(low[me] + jnp.arange(size))
        buffer = jax.tree.map(lambda new, old: jnp.where(empty[me], new, old), fresh, buffer)
        # Move.
        buffer = jax.tree.map(lambda x: jax.lax.ppermute(x, EXAMPLES, hops), buffer)
        low, high = jnp.roll(low, step), jnp.roll(high, step)
        # Copy: by a gather, since XLA for v5e never finished a scatter of rows in a while loop.
        position = here[me] + jnp.arange(share) - low[me]
        mine = (position >= 0) & (position < high[me] - low[me])
        out = jax.tree.map(
            lambda x, y: _where(mine, y.at[position].get(mode="clip"), x), out, buffer
        )
        # Whatever has arrived lies at the near end of the buffer, so the far end tells.
        arrived = high <= here + share if step > 0 else low >= here
        return next_, low, jnp.where(arrived, low, high), buffer, out

    nothing = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), out)
    zero = jnp.zeros_like(start)
    return jax.lax.while_loop(is_going_on, tick, (start, zero, zero, nothing, out))[-1]


def _where(
    mask: Bool[Array, " k"], x: Shaped[Array, "k *rest"], y: Shaped[Array, "k *rest"]
) -> Shaped[Array, "k *rest"]:
    """The rows of `x` where `mask`, those of `y` elsewhere."""
    return jnp.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y)
