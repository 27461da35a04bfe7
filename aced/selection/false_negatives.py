"""Damping of false negatives: other pairs that are as similar as the true pair, by the reference.

If captions repeat, an image also matches the texts of other pairs. The learner's loss of such a
pair is high and stays high, so joint selection would collect these pairs. The score therefore
leaves out pairs whose cosine by the reference is at least that of the candidate's own pair, minus
a margin: neither the learner's loss nor the reference's loss of such a pair counts.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from aced.outputs import Embeddings


def limits(reference: Embeddings, margin: float) -> Float[Array, " B"]:
    """The least cosine of a false negative, for the image and for the text of each candidate."""
    return jnp.sum(reference.zimg * reference.ztxt, axis=1, dtype=jnp.float32) - margin


def alike(
    left: Float[Array, "parts n d"],
    right: Float[Array, "k d"],
    limit: Float[Array, "parts n"],
    precision: str,
) -> Bool[Array, "parts n k"]:
    """Whether a candidate and a chosen example are a false negative, in one direction.

    Args:
        left: the reference's images of candidates, or their texts.
        right: the reference's texts, or images, of the chosen examples.
        limit: from `limits`, of the candidates.
        precision: of the matrix product.
    """
    return jnp.einsum("sid,kd->sik", left, right, precision=precision) >= limit[..., None]
