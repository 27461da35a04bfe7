"""Contrastive losses: sigmoid (SigLIP, arXiv 2303.15343) and softmax (CLIP, arXiv 2103.00020).

Each loss is written once, for a block of images and texts, and has two forms. "full" is one block
of all N^2 pairs. "ring" computes the same value and gradients in blocks that travel around the
devices of the context mesh; see `aced.parallel.ring`.
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from aced.outputs import Embeddings
from aced.parallel import ring
from aced.parallel.ring import Pairs

# Accelerators multiply float32 matrices in bfloat16 by default. A cosine rounded to 8 bits, times a
# scale of 10 to 100, gives an error of up to 0.4 in the logit. These b x b x d products are a small
# share of a step, so full precision is cheap.
PRECISION = "highest"

Form = Literal["full", "ring"]


def sigmoid_loss(
    e: Embeddings, precision: str = PRECISION, form: Form = "full"
) -> Float[Array, ""]:
    """Mean over images i of the sum over texts j of `-log sigmoid(s_ij l_ij)`.

    s is +1 for the n matching pairs and -1 for all others (SigLIP, algorithm 1).
    """

    def nll(is_match: Bool[Array, "n n"], model: Pairs) -> Float[Array, ""]:
        scores = block_logits(model, precision)
        return optax.losses.sigmoid_binary_cross_entropy(scores, is_match).sum()

    return pair_sum(form, nll, pairs(e)) / e.zimg.shape[0]


def softmax_loss(
    e: Embeddings, precision: str = PRECISION, form: Form = "full"
) -> Float[Array, ""]:
    """Half the image-to-text plus half the text-to-image cross-entropy, averaged over the pairs.

    `-l_ii + (logsumexp_j l_ij + logsumexp_j l_ji) / 2`, averaged over i.
    """
    model = with_logsumexps(form, pairs(e), precision)
    (zimg, image_to_text), (ztxt, text_to_image), (scale, bias) = model
    matches = scale * (zimg * ztxt).sum(axis=1) + bias
    return ((image_to_text + text_to_image) / 2 - matches).mean()


# Building blocks of all pairwise losses, in either form.


def pairs(e: Embeddings) -> Pairs:
    """The embeddings as float32 `Pairs`: [zimg], [ztxt], [scale, bias]."""
    e = jax.tree.map(lambda x: x.astype(jnp.float32), e)
    return Pairs([e.zimg], [e.ztxt], [e.scale, e.bias])


def block_logits(model: Pairs, precision: str) -> Float[Array, "n m"]:
    """Float32 logits `l_ij = scale * <zimg_i, ztxt_j> + bias` of a block's image i and text j."""
    zimg, ztxt, (scale, bias) = model.images[0], model.texts[0], model.shared
    return scale * jnp.einsum("id,jd->ij", zimg, ztxt, precision=precision) + bias


def pair_sum(form: Form, block: ring.Block, *models: Pairs) -> Float[Array, ""]:
    """The sum of `block(is_match, *models)` over all pairs; the first model is trained."""
    if form == "ring":
        return ring.pair_sum(block, *models)
    is_match = jnp.eye(len(models[0].images[0]), len(models[0].texts[0]), dtype=bool)
    return block(is_match, *models)


def with_logsumexps(form: Form, model: Pairs, precision: str) -> Pairs:
    """Adds the log-sum-exp of each image's logits over texts, and of each text's over images."""
    if form == "ring":
        logits = functools.partial(block_logits, precision=precision)
        image_to_text, text_to_image = ring.logsumexps(logits, model)
    else:
        scores = block_logits(model, precision)
        image_to_text, text_to_image = (jax.nn.logsumexp(scores, axis) for axis in (1, 0))
    return Pairs([*model.images, image_to_text], [*model.texts, text_to_image], model.shared)
