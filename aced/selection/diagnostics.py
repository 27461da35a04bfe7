"""What became of a sub-batch, beside a uniform draw's: its variety, its copies, its easy part.

The embeddings stay where they are: a sub-batch is a mask over the super-batch, and devices add up
matrices of d x d numbers.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from aced.outputs import Embeddings
from aced.selection import scores
from aced.selection.config import SelectionConfig
from aced.selection.gather import gather_rows, replicated

# Cosine from which two pictures, with their texts, count as copies; and how many picks are looked
# at, so that what is compared is far smaller than b x b.
NEAR_COPY, _LOOKED_AT = 0.95, 64
LEAST_VARIETY, MOST_COPIES = 0.3, 0.5  # from where on a user is warned


def describe(
    ids: Int[Array, " b"], seen: Embeddings, strata: int, *, is_reference: bool
) -> dict[str, Float[Array, ""]]:
    """Numbers of the picks `ids`.

    "selection/variety": effective rank of the picks' images over that of as many uniform ones; far
    below 1 the sub-batch is of one kind. "selection/near_copies": share of picks with another pick
    whose image and text both have a cosine of at least `NEAR_COPY`. With a reference,
    "selection/easy_overlap": share of picks among the b whose pairs the reference finds likeliest.

    Args:
        ids: positions in the super-batch.
        seen: a model's embeddings of the super-batch, the reference's if there is one.
        strata: contiguous equal parts of the super-batch, as it was chosen from.
        is_reference: whether `seen` is the reference's.
    """
    n, size = seen.zimg.shape[0], ids.shape[0]
    chosen = jnp.zeros(n, bool).at[ids].set(True)
    uniform = (jnp.arange(n) % (n // strata)) < size // strata  # candidates are in random order
    found = {
        "selection/variety": effective_rank(seen.zimg, chosen) / effective_rank(seen.zimg, uniform),
        "selection/near_copies": _near_copies(ids, seen, chosen),
    }
    if is_reference:
        likeliness = replicated(scores.matching_logits(seen))
        least = jnp.sort(likeliness)[n - size]
        found["selection/easy_overlap"] = (likeliness[ids] >= least).mean(dtype=jnp.float32)
    return found


def collapse(measured: Mapping[str, ArrayLike], config: SelectionConfig) -> str:
    """A sentence where a sub-batch with these numbers is of one kind; empty: it is not."""
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


def effective_rank(z: Float[Array, "n d"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """Participation ratio of the rows in `mask`: (tr C)^2 / tr C^2, C their covariance.

    Between 1, where all lie on a line, and min(d, rows - 1).
    """
    weight = mask[:, None].astype(jnp.float32)
    count = weight.sum()
    centred = weight * (z - (weight * z).sum(axis=0) / count)
    covariance = centred.T @ centred / count
    square = (covariance**2).sum()
    return jnp.where(square > 0, jnp.trace(covariance) ** 2 / jnp.where(square > 0, square, 1), 1.0)


def _near_copies(
    ids: Int[Array, " b"], seen: Embeddings, chosen: Bool[Array, " B"]
) -> Float[Array, ""]:
    """The share, among the first picks in `ids`, of those with a near copy among all picks."""
    some = ids[:_LOOKED_AT]
    alike = jnp.minimum(
        seen.zimg @ gather_rows(seen.zimg, some).T, seen.ztxt @ gather_rows(seen.ztxt, some).T
    )  # [B, some]
    other = chosen[:, None] & (jnp.arange(len(chosen))[:, None] != some)
    return jnp.any((alike >= NEAR_COPY) & other, axis=0).mean(dtype=jnp.float32)
