"""Taking the chosen rows, stratum by stratum.

`x[ids]` on a sharded batch compiles into an all-reduce of all chosen rows to every device. A
gather that is batched over the strata says that no row leaves its own, so that nothing moves
while the number of strata is a multiple of the number of devices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


def take(
    x: Shaped[Array, "B *rest"], ids: Int[Array, " b"], strata: int
) -> Shaped[Array, "b *rest"]:
    """The rows `ids` of `x`.

    Args:
        x: any array with the super-batch first: pixels, tokens, embeddings.
        ids: from `select`: the picks of stratum s at [s b / strata, (s + 1) b / strata).
        strata: as in the config that `select` had.
    """
    rows = x.shape[0] // strata
    offsets = rows * jnp.arange(strata)[:, None]
    chosen = take_strata(x.reshape(strata, rows, *x.shape[1:]), ids.reshape(strata, -1) - offsets)
    return chosen.reshape(-1, *x.shape[1:])


def take_strata(
    x: Shaped[Array, "strata rows *rest"], picks: Int[Array, "strata k"]
) -> Shaped[Array, "strata k *rest"]:
    """Of every stratum of `x`, the rows `picks`, which are positions within that stratum."""
    return jax.vmap(lambda one, p: one.at[p].get(mode="promise_in_bounds"))(x, picks)
