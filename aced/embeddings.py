"""What a two-tower model says about a batch: the one thing that losses and selection need."""

import jax
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
        """The same numbers, through which no gradient flows."""
        return jax.lax.stop_gradient(self)
