"""The device mesh, and the one sharding that a batch has: its examples over the `data` axis."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

DATA = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of all devices (or of `devices`) along the `data` axis.

    The axis is Auto: Linen's convolutions and gathers do not trace under Explicit sharding. The
    devices are in the order of their processes, so that the rows of a batch are, too: row i is
    the same example on any topology. `jax.make_mesh` would order them by their links.
    """
    devices = jax.devices() if devices is None else devices
    in_order = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(in_order), (DATA,), axis_types=(AxisType.Auto,))


def by_example(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis counts examples."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns each process's own rows as one global array per key, sharded by example."""
    sharding = by_example(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def data_shards() -> int:
    """Number of devices along `data` in the mesh of the current context (1 without a mesh)."""
    return jax.sharding.get_abstract_mesh().shape.get(DATA, 1)


def constrain_by_example(tree: PyTree) -> PyTree:
    """Keeps the first axis of every leaf sharded over `data`, where there is a mesh to do so."""
    if data_shards() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(DATA)), tree)
