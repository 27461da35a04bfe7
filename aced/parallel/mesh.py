"""The device mesh, and the sharding of a batch: its examples over `data` and `fsdp`.

The mesh has three axes, each possibly of length 1. `data` shards the examples; `fsdp` shards the
examples and the parameters (each layer is gathered before use); `tensor` shards the width of a
layer (all devices along the axis see the same examples).
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from aced.bounds import PositiveInt
from aced.config import Checked, ConfigError

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
EXAMPLES = (DATA, FSDP)  # the axes that share the examples, the slower one first


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
    """How the devices share the work. The axis `data` gets the remaining devices."""

    fsdp: PositiveInt = 1  # devices that share one copy of the parameters
    tensor: PositiveInt = 1  # devices that share the width of a layer, and its examples
    # (regex, axes) for the sharding of parameters, tried before those of `parallel.rules`.
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def _check(self) -> None:
        for pattern, axes in self.rules:
            unknown = {axis for axis in axes if axis is not None} - set(AXES)
            if unknown:
                raise ConfigError(
                    f"mesh.rules: '{pattern}' names the axes {sorted(unknown)}; there are "
                    f"{', '.join(AXES)}, and None."
                )


def make_mesh(
    devices: Sequence[jax.Device] | None = None, config: MeshConfig | None = None
) -> Mesh:
    """Returns a mesh of all devices (or of `devices`) with the axes `data`, `fsdp`, `tensor`.

    The axes are Auto, because Linen's convolutions and gathers do not trace under Explicit
    sharding. On TPUs neighbours in the mesh are neighbours in the network, and slices lie along
    `data`; elsewhere devices are ordered by process.

    Raises:
        ConfigError: fsdp * tensor does not divide the number of devices.
    """
    config = config or MeshConfig()
    devices = list(jax.devices() if devices is None else devices)
    inner = config.fsdp * config.tensor
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if len(devices) % (inner * slices):
        raise ConfigError(
            f"mesh.fsdp * mesh.tensor = {config.fsdp} * {config.tensor} does not divide the "
            f"{len(devices) // slices} devices{' of a slice' if slices > 1 else ''}; change one."
        )
    shape = (len(devices) // slices // inner, config.fsdp, config.tensor)
    if devices[0].platform != "tpu":
        devices.sort(key=lambda device: (device.process_index, device.id))
        grid = np.asarray(devices).reshape(shape[0] * slices, *shape[1:])
    elif slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(
            shape, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def by_example(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis counts examples."""
    return NamedSharding(mesh, PartitionSpec(EXAMPLES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def example_shards(mesh: Mesh) -> int:
    """The number of devices that share the examples of a batch."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def local_rows(mesh: Mesh, size: int) -> Int[np.ndarray, " n"]:
    """The rows of a global batch of `size` that this process's devices hold, ascending.

    Processes that share a `tensor` group hold the same rows. The example in row i does not depend
    on the mesh; see `aced.data.pipeline`.

    Raises:
        ConfigError: the devices cannot share the batch equally.
    """
    shards = example_shards(mesh)
    if size < 1 or size % shards:
        raise ConfigError(
            f"A batch of {size} examples cannot be shared equally by {shards} devices; make it a "
            "multiple of their number."
        )
    starts = _local_starts(mesh, size)
    return np.concatenate([np.arange(start, start + size // shards) for start in starts])


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Assembles the rows `local_rows` of every process into a global array per key."""
    sharding = by_example(mesh)
    shards = example_shards(mesh)

    def assemble(rows: np.ndarray) -> jax.Array:
        local = len(_local_starts(mesh, shards))
        share = len(rows) // local
        shape = (share * shards, *rows.shape[1:])
        places = sharding.addressable_devices_indices_map(shape)
        order = {start: k for k, start in enumerate(_local_starts(mesh, shape[0]))}
        first = [order[index[0].start or 0] * share for index in places.values()]
        pieces = jax.device_put([rows[k : k + share] for k in first], list(places))
        return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

    return {name: assemble(rows) for name, rows in batch.items()}


def local_batch(x: jax.Array) -> np.ndarray:
    """Returns the rows `local_rows` of a global array, the inverse of `global_batch`."""
    pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


@dataclasses.dataclass(frozen=True)
class Readers:
    """The division of a batch among readers: processes that hold the same rows are one reader."""

    count: int
    index: int  # of this process's reader
    is_first: bool  # whether this is the first process of its reader


def readers(mesh: Mesh) -> Readers:
    """Returns the reader of this process.

    Raises:
        ConfigError: processes share only a part of their rows.
    """
    shards = example_shards(mesh)
    held: dict[int, set[int]] = {}
    for device, index in by_example(mesh).devices_indices_map((shards,)).items():
        held.setdefault(device.process_index, set()).add(index[0].start or 0)
    groups = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, groups)) != shards:
        raise ConfigError(
            "The processes share parts of their examples, so they cannot be grouped into readers; "
            "make mesh.tensor a divisor or a multiple of the devices of a process."
        )
    local = held[jax.process_index()]
    peers = [process for process, rows in held.items() if rows == local]
    index = groups.index(tuple(sorted(local)))
    return Readers(len(groups), index, jax.process_index() == min(peers))


def _local_starts(mesh: Mesh, size: int) -> list[int]:
    """The first row of each shard of a batch on this process's devices."""
    places = by_example(mesh).addressable_devices_indices_map((size,))
    return sorted({index[0].start or 0 for index in places.values()})


def data_shards() -> int:
    """`example_shards` of the context mesh; 1 without a mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return shape.get(DATA, 1) * shape.get(FSDP, 1)


def everywhere(tree: PyTree) -> PyTree:
    """Replicates every leaf over the context mesh, if there is one."""
    if data_shards() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def constrain_by_example(tree: PyTree) -> PyTree:
    """Shards the first axis of every leaf by example, if there is a mesh.

    A leaf that the devices cannot share equally is left alone, such as the batch of one that
    parameters are initialised with.
    """
    shards = data_shards()
    if shards == 1:
        return tree

    def constrain(x: jax.Array) -> jax.Array:
        if x.shape[0] % shards:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(EXAMPLES))

    return jax.tree.map(constrain, tree)
