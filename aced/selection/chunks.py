"""Draws a sub-batch in chunks, each by scores that depend on the chunks drawn before.

Strata, contiguous equal parts of the super-batch, are our addition to JEST (arXiv 2406.17711): each
gives b / strata examples in all, so devices that hold whole strata train on their own candidates. A
chunk is drawn from the whole super-batch, except from strata that have given their share. Equal
quotas per chunk would be simpler, but cost more of the score: see
benchmarks/results/strata_quotas.csv.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from aced.selection.config import SelectionConfig
from aced.selection.gain import gain_of_draw, perplexity
from aced.selection.gather import replicated

# Adds a chunk of ids to what is chosen: (context, ids) -> (context, score of every candidate).
Extend = Callable[[PyTree, Int[Array, " k"]], tuple[PyTree, Float[Array, " B"]]]


class _Carry(NamedTuple):
    """State before the draw of a chunk."""

    context: PyTree  # what the scores depend on, of the examples chosen so far
    available: Bool[Array, " B"]
    left: Int[Array, " strata"]  # picks that each stratum still has to give
    score: Float[Array, " B"]


def draw_chunks(
    noise: Float[Array, "chunks B"],
    context: PyTree,
    score: Float[Array, " B"],
    extend: Extend,
    config: SelectionConfig,
    *,
    gain: float,
    size: int,
    pairs: int = 0,
) -> tuple[Int[Array, " b"], dict[str, Float[Array, ""]]]:
    """Ids of the chosen candidates and scalar metrics; see `aced.selection.select`.

    Args:
        noise: standard Gumbel noise. The k largest of `logit + noise` are a sample without
            replacement in proportion to exp(logit), and no exp() overflows.
        context: of an empty set of chosen examples.
        score: of every candidate before the first draw.
        extend: see `Extend`.
        config: settings that passed `config.check(B, size)`, with a number of strata.
        gain: the factor on the scores, in the unit `config.normalization`.
        size: b.
        pairs: pairwise losses that a chosen example adds to a score, for the unit "terms".
    """
    strata, chunk = config.strata, size // config.chunks
    n, share = noise.shape[1], size // config.strata
    rows = n // strata

    def draw(carry: _Carry, noise: Float[Array, " B"]):
        # XLA does not partition top_k, so the B scores are gathered; the embeddings are not.
        score, candidates = replicated(carry.score), carry.available.sum()
        summed = 1 + pairs * (n - candidates)
        factor = gain_of_draw(score, carry.available, summed, config, gain=gain)
        logits = jnp.where(carry.available, factor * score + noise, -jnp.inf)
        best, place = jax.lax.top_k(logits.reshape(strata, rows), min(share, chunk))
        best = jnp.where(jnp.arange(best.shape[1]) < carry.left[:, None], best, -jnp.inf)
        picks = jax.lax.top_k(best.reshape(-1), chunk)[1]
        stratum = picks // best.shape[1]
        ids = rows * stratum + place.reshape(-1)[picks]
        numbers = (
            carry.score[ids].mean(),
            jnp.mean(carry.score, where=carry.available),
            perplexity(factor * score, carry.available) / candidates,
        )
        return ids, carry.left.at[stratum].add(-1), numbers

    def step(carry: _Carry, noise: Float[Array, " B"]):
        ids, left, numbers = draw(carry, noise)
        context, score = extend(carry.context, ids)
        available = carry.available.at[ids].set(False)
        return _Carry(context, available, left, score), (ids, numbers)

    carry = _Carry(context, jnp.ones(n, bool), jnp.full(strata, share), score)
    carry, (ids, numbers) = jax.lax.scan(step, carry, noise[:-1])
    # Nothing is drawn after the last chunk, so it is not added to the context.
    last, _, last_numbers = draw(carry, noise[-1])
    ids = jnp.concatenate([ids.reshape(-1), last])
    names = ("score_selected", "score_candidates", "perplexity")
    return ids, {
        f"selection/{name}": jnp.append(before, after).mean()
        for name, before, after in zip(names, numbers, last_numbers, strict=True)
    }
