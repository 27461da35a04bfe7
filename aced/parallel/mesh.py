"""The device mesh, and the one sharding that a batch has: its examples over `data` and `fsdp`.

Three axes, any of which may have length 1: `data` shares the examples, `fsdp` shares the examples
and the parameters (each layer is gathered when it is used), `tensor` shares the width of a layer
(every device of the axis sees the same examples).
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
    """How the devices share the work. `data` gets the devices that the others leave."""

    fsdp: PositiveInt = 1  # devices that share one copy of the parameters
    tensor: PositiveInt = 1  # devices that share the width of a layer, and its examples
    # (regex, axes): where a parameter lies; they go before those of `parallel.rules`.
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

    The axes are Auto: Linen's convolutions and gathers do not trace under Explicit sharding. On
    TPUs neighbours in the mesh are neighbours in the network, and slices share `data`; elsewhere
    the devices are in the order of their processes.

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
    """Number of parts into which the examples of a batch are cut."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def local_rows(mesh: Mesh, size: int) -> Int[np.ndarray, " n"]:
    """The rows of a global batch of `size` that this process's devices hold, ascending.

    Processes that share a `tensor` group hold the same rows. Which example is row i does not
    depend on any of this: see `aced.data.pipeline`.

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
    """Returns the rows `local_rows` of every process as one global array per key."""
    sharding = by_example(mesh)
    shards = example_shards(mesh)

    def one(rows: np.ndarray) -> jax.Array:
        local = len(_local_starts(mesh, shards))
        share = len(rows) // local
        shape = (share * shards, *rows.shape[1:])
        places = sharding.addressable_devices_indices_map(shape)
        order = {start: k for k, start in enumerate(_local_starts(mesh, shape[0]))}
        first = [order[index[0].start or 0] * share for index in places.values()]
        pieces = jax.device_put([rows[k : k + share] for k in first], list(places))
        return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

    return {name: one(rows) for name, rows in batch.items()}


def local_batch(x: jax.Array) -> np.ndarray:
    """Returns the rows `local_rows` of a global array, the inverse of `global_batch`."""
    pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


@dataclasses.dataclass(frozen=True)
class Readers:
    """Who reads what of a batch: processes that hold the same rows are one reader."""

    count: int
    index: int  # of the reader that this process is, or is a part of
    is_first: bool  # of that reader's processes


def readers(mesh: Mesh) -> Readers:
    """Returns this process's part in the reading of batches.

    Raises:
        ConfigError: some processes share a part of their rows only.
    """
    shards = example_shards(mesh)
    held: dict[int, set[int]] = {}
    for device, index in by_example(mesh).devices_indices_map((shards,)).items():
        held.setdefault(device.process_index, set()).add(index[0].start or 0)
    groups = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, groups)) != shards:
        raise ConfigError(
            "The processes share parts of their examples, so that none can read for itself; make "
            "mesh.tensor a divisor or a multiple of the devices of a process."
        )
    mine = held[jax.process_index()]
    same = [process for process, rows in held.items() if rows == mine]
    index = groups.index(tuple(sorted(mine)))
    return Readers(len(groups), index, jax.process_index() == min(same))


def _local_starts(mesh: Mesh, size: int) -> list[int]:
    """The first row of each part of a batch that a device of this process holds."""
    places = by_example(mesh).addressable_devices_indices_map((size,))
    return sorted({index[0].start or 0 for index in places.values()})


def data_shards() -> int:
    """Number of parts of a batch in the mesh of the current context (1 without a mesh)."""
    shape = jax.sharding.get_abstract_mesh().shape
    return shape.get(DATA, 1) * shape.get(FSDP, 1)


def everywhere(tree: PyTree) -> PyTree:
    """Keeps every leaf whole on every device, where there is a mesh."""
    if data_shards() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def constrain_by_example(tree: PyTree) -> PyTree:
    """Keeps the first axis of every leaf shared as examples are, where there is a mesh.

    A leaf that the devices cannot share equally is left alone: parameters are initialised with a
    batch of one.
    """
    shards = data_shards()
    if shards == 1:
        return tree

    def one(x: jax.Array) -> jax.Array:
        if x.shape[0] % shards:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(EXAMPLES))

    return jax.tree.map(one, tree)
