"""A state that is sharded over the processes of a run."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SHAPE = (4, 256, 256)


def sharding() -> NamedSharding:
    """Over four devices, by rows."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("x"))


def state(seed: int) -> dict[str, jax.Array]:
    """Random numbers, the same for the same seed."""
    rows = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    return {"params": jax.make_array_from_callback(SHAPE, sharding(), lambda i: rows[i])}


def abstract() -> dict[str, jax.ShapeDtypeStruct]:
    """What a state looks like."""
    return {"params": jax.ShapeDtypeStruct(SHAPE, np.float32, sharding=sharding())}
