"""The reference-shifted loss of DRRho-CLIP (arXiv 2505.06699).

    l_ij = t (<zimg_i, ztxt_j> - <uimg_i, utxt_j>)

with z of the learner and u of the reference. A pair that the reference also finds similar is not a
mistake of the learner, and one that it separates must be separated further. The formula is that of
the authors' code, in which the learner's scale multiplies both similarities. It differs from theirs
in two ways: a match is among its own negatives, as in the softmax loss, and there are no running
averages of the sums of each example (FastCLIP), so that only the batch provides negatives.
"""

import jax.numpy as jnp

from aced.outputs import Embeddings


def shifted(learner: Embeddings, reference: Embeddings) -> Embeddings:
    """Embeddings whose logits are shifted; a contrastive loss of them is the shifted loss.

    They are those of both models side by side, and not normalised. Widths may differ. The reference
    gets no gradient, and only its embeddings are read.
    """
    reference = reference.frozen()
    return learner.replace(
        zimg=jnp.concatenate([learner.zimg, reference.zimg], axis=1, dtype=jnp.float32),
        ztxt=jnp.concatenate([learner.ztxt, -reference.ztxt], axis=1, dtype=jnp.float32),
    )
