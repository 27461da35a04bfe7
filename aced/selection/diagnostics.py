"""Diagnostics of a sub-batch compared with a uniform draw: variety, near copies, easy picks.

A sub-batch is a mask over the super-batch, so embeddings stay on their devices, which only sum
d x d matrices.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from aced.outputs import Embeddings
from aced.selection import scores
from aced.selection.config import SelectionConfig
from aced.selection.gather import evenly_spaced, gather_rows, replicated

NEAR_COPY = 0.95  # least cosine of both images and texts of near copies
_SAMPLE = 64  # picks that are compared with all others, to avoid a b x b matrix
LEAST_VARIETY, MOST_COPIES = 0.3, 0.5  # limits beyond which the user is warned
LEAST_CONCEPTS = 0.5  # of a pick, on average


def describe(
    ids: Int[Array, " b"], e: Embeddings, *, is_reference: bool
) -> dict[str, Float[Array, ""]]:
    """Diagnostics of the picks `ids`.

    "selection/variety": effective rank of the picks' images, divided by that of a uniform draw; far
    below 1 the picks are all alike. "selection/near_copies": share of picks with another pick whose
    image and text both have a cosine of at least `NEAR_COPY`. With a reference,
    "selection/easy_overlap": share of picks among the b likeliest pairs of the reference.

    Args:
        ids: positions in the super-batch.
        e: embeddings of the super-batch, the reference's if there is one.
        is_reference: whether `e` are the reference's.
    """
    n, size = e.zimg.shape[0], ids.shape[0]
    chosen, uniform = (
        jnp.zeros(n, bool).at[rows].set(True) for rows in (ids, evenly_spaced(n, size))
    )
    metrics = {
        "selection/variety": effective_rank(e.zimg, chosen) / effective_rank(e.zimg, uniform),
        "selection/near_copies": _near_copies(ids, e, chosen),
    }
    if is_reference:
        logits = replicated(scores.matching_logits(e))
        least = jnp.sort(logits)[n - size]
        metrics["selection/easy_overlap"] = (logits[ids] >= least).mean(dtype=jnp.float32)
    return metrics


def collapse(measured: Mapping[str, ArrayLike], config: SelectionConfig) -> str:
    """A warning if the sub-batch has collapsed to examples of one kind; empty: it has not."""
    variety, copies = (measured.get(f"selection/{name}") for name in ("variety", "near_copies"))
    if variety is None or (variety >= LEAST_VARIETY and copies <= MOST_COPIES):
        return ""
    if config.normalization == "perplexity":
        change = f"raise selection.perplexity_share (now {config.perplexity_share:g})"
    else:
        change = (
            f"lower selection.gain (now {config.gain:g}), or set "
            "selection.normalization='perplexity'"
        )
    return (
        f"The sub-batch has collapsed: the effective rank of its pictures is {variety:.0%} of a "
        f"uniform draw's, and {copies:.0%} of them have a near copy in it. The draw follows the "
        f"scores too sharply: {change}; or raise selection.reference_weight (now "
        f"{config.reference_weight:g})."
    )


def few_concepts(measured: Mapping[str, ArrayLike], config: SelectionConfig) -> str:
    """A warning if most picks have no concept, so that they are drawn at random; empty: they have.

    Candidates with a concept are chosen first, so then most candidates have none, either.
    """
    each = measured.get("selection/concepts_each")
    if each is None or each >= LEAST_CONCEPTS:
        return ""
    return (
        f"The picks have {each:.2g} concepts each on average, so most of them are drawn at random. "
        f"Few captions have an entry of {config.concepts} as whole words: list what the captions "
        "name, in their language and word forms, or choose another selection.score."
    )


def effective_rank(z: Float[Array, "n d"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """Participation ratio of the rows in `mask`: (tr C)^2 / tr C^2, with their covariance C.

    Between 1, if all rows lie on a line, and min(d, rows - 1).
    """
    weight = mask[:, None].astype(jnp.float32)
    count = weight.sum()
    centred = weight * (z - (weight * z).sum(axis=0) / count)
    covariance = centred.T @ centred / count
    square = (covariance**2).sum()
    return jnp.where(square > 0, jnp.trace(covariance) ** 2 / jnp.where(square > 0, square, 1), 1.0)


def _near_copies(
    ids: Int[Array, " b"], e: Embeddings, chosen: Bool[Array, " B"]
) -> Float[Array, ""]:
    """The share of a sample of the picks that have a near copy among all picks."""
    sample = ids[evenly_spaced(len(ids), min(len(ids), _SAMPLE))]  # of all chunks
    cosines = jnp.minimum(
        e.zimg @ gather_rows(e.zimg, sample).T, e.ztxt @ gather_rows(e.ztxt, sample).T
    )  # [B, sample]
    other = chosen[:, None] & (jnp.arange(len(chosen))[:, None] != sample)
    return jnp.any((cosines >= NEAR_COPY) & other, axis=0).mean(dtype=jnp.float32)
