"""What selection makes of each member of a mixture: how much of it is picked, and how it scores."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from aced.selection import scores


def by_source(
    names: Sequence[str],
    batch: dict[str, Array],
    chosen: dict[str, Array],
    terms: scores.Terms | None = None,
) -> dict[str, Float[Array, ""]]:
    """Metrics "sources/NAME/..." for every member of a mixture, by its number in `source`.

    `share` of the super-batch; `picked_share` of what is trained on; and with `terms` `score`, the
    mean score of its candidates by their matching pairs alone (the sigmoid loss of the pair,
    without negatives), as they are before anything is chosen.

    Args:
        names: of the members in their order; none where the data are no mixture.
        batch: the super-batch.
        chosen: the rows of it that are trained on.
        terms: what the score is made of, for all of `batch`.
    """
    if not names or "source" not in batch:
        return {}
    pair_scores = None
    if terms is not None:
        pair_scores = scores.combine(terms, [scores.sigmoid_nll(e) for _, e in terms])
    metrics = {}
    for number, name in enumerate(names):
        is_of = batch["source"] == number
        metrics[f"sources/{name}/share"] = is_of.mean(dtype=jnp.float32)
        picked = chosen["source"] == number
        metrics[f"sources/{name}/picked_share"] = picked.mean(dtype=jnp.float32)
        if pair_scores is not None:
            total = jnp.sum(jnp.where(is_of, pair_scores, 0.0))
            metrics[f"sources/{name}/score"] = total / jnp.maximum(is_of.sum(), 1)
    return metrics
