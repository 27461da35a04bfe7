"""Parameter sharding: regex rules from a parameter's name to the mesh axes of its dimensions.

A regex has to match the whole name, such as 'image/blocks/mlp/fc1/kernel'. The first match applies;
a parameter without a match is an error. Optimizer state and averages are sharded like their
parameter.
"""

import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from aced.config import ConfigError
from aced.parallel.mesh import FSDP, TENSOR

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]

# `tensor` splits a layer such that one sum over devices suffices (arXiv 1909.08053, section 3): q,
# k, v and fc1 by their outputs, that is by attention heads and MLP channels; out and fc2 by their
# inputs. `fsdp` splits the other dimension (arXiv 1910.02054, stage 3). Axes refer to the last
# dimensions, since stacked blocks have a leading axis of layers.
RULES: Rules = (
    (r"(.*/)?(q|k|v|fc1)/kernel", (FSDP, TENSOR)),
    (r"(.*/)?(out|fc2)/kernel", (TENSOR, FSDP)),
    (r"(.*/)?(q|k|v|fc1)/bias", (TENSOR,)),
    (r"(.*/)?(patch|head|merge)/kernel", (None, FSDP)),
    (r"(.*/)?token", (None, FSDP)),
    (r"(.*/)?classifier/kernel", (FSDP, None)),  # any number of classes
    # The output softmax by words, so that logits are sharded as well.
    (r"(.*/)?softmax/kernel", (FSDP, TENSOR)),
    # Vectors, positions and distillation's projections are too small to shard.
    (r"(.*/)?(bias|scale|position|start|cls|probe|t)", ()),
    (r"projections/.*", ()),
)


def name_of(path: tuple) -> str:
    """The name of a leaf: its path, joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(params: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """The sharding on `mesh` of every parameter, given a nested dict of parameters or their shapes.

    `rules` are tried before `RULES`.

    Raises:
        ConfigError: no rule matches a parameter, or its axes do not fit its dimensions.
    """
    return jax.tree.map_with_path(lambda path, x: _sharding(name_of(path), x, mesh, rules), params)


def _sharding(name: str, x: Any, mesh: Mesh | AbstractMesh, rules: Rules) -> NamedSharding:
    axes = next((axes for regex, axes in (*rules, *RULES) if re.fullmatch(regex, name)), None)
    if axes is None:
        raise ConfigError(
            f"No sharding rule matches the parameter '{name}'; add one to mesh.rules, such as "
            f"('{re.escape(name)}', ())."
        )
    if len(axes) > len(x.shape):
        raise ConfigError(f"mesh.rules give '{name}' the axes {axes}, but its shape is {x.shape}.")
    axes = (None,) * (len(x.shape) - len(axes)) + tuple(axes)
    for size, axis in zip(x.shape, axes, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise ConfigError(
                f"mesh.{axis} = {mesh.shape[axis]} does not divide a dimension of the parameter "
                f"'{name}', of shape {x.shape}; choose another number, or add a rule to "
                "mesh.rules that leaves this dimension whole."
            )
    return NamedSharding(mesh, PartitionSpec(*axes))


def gathered(params: PyTree) -> PyTree:
    """The parameters gathered over `fsdp`, for loops that would gather them in each iteration.

    For use under jit. Without a context mesh nothing changes, nor for parameters that `RULES` do
    not fit, whose sharding follows from a run's own rules.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get(FSDP, 1) == 1:
        return params

    def gather(path: tuple, x: jax.Array) -> jax.Array:
        try:
            spec = _sharding(name_of(path), x, mesh, ()).spec
        except ConfigError:
            return x
        kept = PartitionSpec(*(axis if axis == TENSOR else None for axis in spec))
        return jax.lax.with_sharding_constraint(x, kept)

    return jax.tree.map_with_path(gather, params)


def state_shardings(state: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """The sharding of every leaf of a `TrainState`, given as shapes; see `shardings`.

    A leaf whose name ends in a parameter's name and that has its shape (a moment, an average) is
    sharded like the parameter; factored moments, counters and keys are replicated.
    """
    shapes = {name_of(path): x.shape for path, x in jax.tree.leaves_with_path(state.params)}
    leaves = jax.tree.leaves_with_path(shardings(state.params, mesh, rules))
    of_param = {name_of(path): sharding for path, sharding in leaves}
    replicated = NamedSharding(mesh, PartitionSpec())

    def of_leaf(path: tuple, x: Any) -> NamedSharding:
        for start in range(len(path)):
            name = name_of(path[start:])
            if shapes.get(name) == x.shape:
                return of_param[name]
        return replicated

    return jax.tree.map_with_path(of_leaf, state)
