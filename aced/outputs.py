"""The outputs of models, which losses and selection read."""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class Embeddings:
    """L2-normalised embeddings of paired images and texts, with their model's own logit scale.

    The logits of image i and text j are `scale * <zimg_i, ztxt_j> + bias`.
    """

    zimg: Float[Array, "n d"]
    ztxt: Float[Array, "n d"]
    scale: Float[Array, ""]  # t, the inverse temperature itself, not its logarithm
    bias: Float[Array, ""]  # zero for softmax models

    def frozen(self) -> "Embeddings":
        """The same values, with gradients stopped."""
        return jax.lax.stop_gradient(self)


@struct.dataclass
class Words:
    """States of a decoder, one per word, with the kernel of the output softmax."""

    states: Float[Array, "b l d"]  # in the compute dtype; state i is about word i
    kernel: Float[Array, "d v"]  # see `word_logits`

    def frozen(self) -> "Words":
        """The same values, with gradients stopped."""
        return jax.lax.stop_gradient(self)


def word_logits(states: Float[Array, "*b d"], kernel: Float[Array, "d v"]) -> Float[Array, "*b v"]:
    """Float32 logits of all words; products in the dtype of `states`, summed in float32."""
    return jnp.einsum(
        "...d,dv->...v",
        states,
        kernel.astype(states.dtype),
        preferred_element_type=jnp.float32,
    )
