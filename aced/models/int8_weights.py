"""Weights stored in 8-bit integers, which take a quarter of the memory of float32.

A matrix has one float32 scale for each output channel, and an embedding table one for each row.
The weights become floating-point numbers where they are used, within the loop over layers, and
activations keep their own type. (In `int8` activations are quantised as well.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.core import meta
from jaxtyping import Array, Float, PyTree

from aced.models import int8


@struct.dataclass
class Int8Weights(meta.AxisMetadata):
    """An array of weights as integers; flax calls `unbox` where a module uses the parameter."""

    values: Any  # int8 [...]; Any, since JAX also fills nodes of trees with its own objects
    scale: Any  # float32, of length 1 along the axis that shares a scale

    def unbox(self) -> Float[Array, "..."]:
        """The weights in float32."""
        return self.values.astype(jnp.float32) * self.scale

    def replace_boxed(self, val: Array) -> Any:
        """Returns weights that a module changes, which are no longer integers."""
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Int8Weights":
        """Returns the same weights, since they have no names of axes."""
        del index, params
        return self

    remove_axis = add_axis


def quantized(params: PyTree) -> PyTree:
    """Returns `params` with all matrices and embedding tables as `Int8Weights`.

    Each weight is off by at most half of its scale, 1/254 of the largest magnitude that shares it.
    Vectors and positions are left as they are.
    """

    def store(path: tuple, x: Array) -> Array | Int8Weights:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        axis = {"kernel": -2, "token": -1}.get(name)  # kernels are [... input output]
        return x if axis is None else Int8Weights(*int8.quantize(x, axis))

    return jax.tree.map_with_path(store, params)
