"""Products of activations and weights in 8-bit integers, for forward passes without a gradient.

Symmetric dynamic quantisation: activations are scaled by token, weights by output channel, so that
the largest magnitude is 127; products are summed exactly, in 32 bits. Accelerators multiply 8-bit
integers faster than bfloat16 (TPU v5e: twice as fast).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int8

_LARGEST = 127  # a symmetric range, without -128


def quantize(x: Float[Array, "..."], axis: int) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """Returns integers and float32 scales, whose product approximates `x`; zeros stay zeros.

    The elements along `axis` share a scale.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / _LARGEST
    return jnp.round(x / scale).astype(jnp.int8), scale


@jax.custom_jvp
def dot(x: Float[Array, "*b n"], kernel: Float[Array, "n d"]) -> Float[Array, "*b d"]:
    """Returns approximately x @ kernel, in the dtype of `x`.

    Raises:
        TypeError: on differentiation, since rounding would silently give zero gradients.
    """
    x8, token_scale = quantize(x, -1)
    kernel8, channel_scale = quantize(kernel, 0)
    contract_last_with_first = (((x.ndim - 1,), (0,)), ((), ()))
    total = lax.dot_general(x8, kernel8, contract_last_with_first, preferred_element_type=jnp.int32)
    return (total.astype(jnp.float32) * token_scale * channel_scale[0]).astype(x.dtype)


@dot.defjvp
def _refuse(primals, tangents):
    raise TypeError(
        "A model computed in int8 has no gradient; train it in its own precision, or stop the "
        "gradient at its parameters."
    )


def dot_general(x, kernel, dimension_numbers, precision=None, preferred_element_type=None) -> Array:
    """`dot` with the signature of `lax.dot_general`, for `flax.linen.Dense`."""
    return dot(x, kernel)
