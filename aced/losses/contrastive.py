"""Contrastive losses: sigmoid (SigLIP, arXiv 2303.15343) and softmax (CLIP, arXiv 2103.00020)."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from aced.embeddings import Embeddings

# Accelerators multiply float32 matrices in bfloat16 passes unless told otherwise. A cosine rounded
# to 8 bits and multiplied by a scale of 10 to 100 is wrong by up to 0.4 in the logit, and these
# b x b x d products are too small a share of a step to be worth that.
PRECISION = "highest"


def logits(e: Embeddings, precision: str = PRECISION) -> Float[Array, "n n"]:
    """Float32 logits `l_ij = scale * <zimg_i, ztxt_j> + bias` of image i and text j.

    Args:
        e: embeddings of n pairs.
        precision: of the matrix product: "highest" (float32), "high" or "default" (TPU: bfloat16).
    """
    zimg, ztxt = e.zimg.astype(jnp.float32), e.ztxt.astype(jnp.float32)
    return e.scale * jnp.einsum("id,jd->ij", zimg, ztxt, precision=precision) + e.bias


def sigmoid_loss(e: Embeddings, precision: str = PRECISION) -> Float[Array, ""]:
    """Mean over images i of the sum over texts j of `-log sigmoid(s_ij l_ij)`.

    s is +1 for the n matching pairs and -1 for all others (SigLIP, algorithm 1).
    """
    is_match = jnp.eye(e.zimg.shape[0], dtype=jnp.float32)
    nll = optax.losses.sigmoid_binary_cross_entropy(logits(e, precision), is_match)
    return nll.sum(axis=1).mean()


def softmax_loss(e: Embeddings, precision: str = PRECISION) -> Float[Array, ""]:
    """Half the image-to-text plus half the text-to-image cross-entropy, averaged over the pairs."""
    scores = logits(e, precision)
    matches = jnp.arange(scores.shape[0])
    image_to_text = optax.losses.softmax_cross_entropy_with_integer_labels(scores, matches)
    text_to_image = optax.losses.softmax_cross_entropy_with_integer_labels(scores.T, matches)
    return (image_to_text.mean() + text_to_image.mean()) / 2


LOSSES: dict[str, Callable[..., Float[Array, ""]]] = {
    "sigmoid": sigmoid_loss,
    "softmax": softmax_loss,
}
