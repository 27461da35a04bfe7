"""Where parameters lie: regex rules from a parameter's name to the mesh axes of its dimensions.

A rule's regex has to match the whole name, such as 'image/blocks/mlp/fc1/kernel'; the first rule
that matches decides; a parameter that none matches is an error. Optimizer state and averages are
laid like the parameter that they belong to.
"""

import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from aced.config import ConfigError
from aced.parallel.mesh import FSDP, TENSOR

Rules = tuple[tuple[str, tuple[str | None, ...]], ...]

# `tensor` cuts a layer where no sum crosses it but one (arXiv 1909.08053, section 3): q, k, v and
# fc1 by their outputs, that is by attention heads and MLP channels; out and fc2 by their inputs.
# `fsdp` cuts the other dimension (arXiv 1910.02054, stage 3). The axes are those of the last
# dimensions: blocks are stacked, so that most kernels have an axis of layers in front.
RULES: Rules = (
    (r"(.*/)?(q|k|v|fc1)/kernel", (FSDP, TENSOR)),
    (r"(.*/)?(out|fc2)/kernel", (TENSOR, FSDP)),
    (r"(.*/)?(q|k|v|fc1)/bias", (TENSOR,)),
    (r"(.*/)?(patch|head|merge)/kernel", (None, FSDP)),
    (r"(.*/)?token", (None, FSDP)),
    (r"(.*/)?classifier/kernel", (FSDP, None)),  # any number of classes
    # The output softmax by its words, so that logits are shared, too.
    (r"(.*/)?softmax/kernel", (FSDP, TENSOR)),
    # Vectors and positions, too small to be worth a message; and distillation's projections.
    (r"(.*/)?(bias|scale|position|start|cls|probe|t)", ()),
    (r"projections/.*", ()),
)


def name_of(path: tuple) -> str:
    """The name of a leaf: the keys on the way to it, joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shardings(params: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """The sharding of every parameter.

    Args:
        params: a nested dict of parameters or of their shapes.
        mesh: with the axes that the rules name.
        rules: tried before `RULES`.

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
    """The parameters without the sharing over `fsdp`, for code in a loop that would gather anew.

    Under jit, in the context of a mesh; without one, they are as they were. So are those that
    `RULES` cannot cut: a run's own rules say where they lie.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get(FSDP, 1) == 1:
        return params

    def one(path: tuple, x: jax.Array) -> jax.Array:
        try:
            spec = _sharding(name_of(path), x, mesh, ()).spec
        except ConfigError:
            return x
        kept = PartitionSpec(*(axis if axis == TENSOR else None for axis in spec))
        return jax.lax.with_sharding_constraint(x, kept)

    return jax.tree.map_with_path(one, params)


def state_shardings(state: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """The sharding of every leaf of a train state.

    A leaf that belongs to a parameter (its moments, its average) is told by its name, which ends
    in the parameter's, and by its shape; factored moments, counters and keys are on every device.

    Args:
        state: the shapes of a `TrainState`.
        mesh: with the axes that the rules name.
        rules: tried before `RULES`.

    Raises:
        ConfigError: as `shardings`.
    """
    shapes = {name_of(path): x.shape for path, x in jax.tree.leaves_with_path(state.params)}
    places = jax.tree.leaves_with_path(shardings(state.params, mesh, rules))
    places = {name_of(path): sharding for path, sharding in places}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def one(path: tuple, x: Any) -> NamedSharding:
        for start in range(len(path)):
            name = name_of(path[start:])
            if shapes.get(name) == x.shape:
                return places[name]
        return everywhere

    return jax.tree.map_with_path(one, state)
