"""Joint example selection (JEST, arXiv 2406.17711, algorithm 1), without the B x B score matrix.

The sub-batch grows in N chunks. Given the set C chosen so far, candidate i is drawn without
replacement, with probability proportional to exp(gain * score_i(C)), where

- sigmoid: score_i(C) = S_ii + sum_{k in C} (S_ki + S_ik), S = the pairwise losses' score;
- softmax: score_i(C) = score of i's own loss, with the other members of C as its negatives:
  nll_i(C) = -l_ii + (logsumexp_{j in C + i} l_ij + logsumexp_{j in C + i} l_ji) / 2.

Both are running sums (or log-sum-exps) over C, so a new chunk only needs its own rows and columns
of the logits: work O(B b d) instead of O(B^2 d), memory O(tile b / N) instead of O(B^2).

For an empty C the softmax loss of every candidate is zero. The paper does not specify how the first
chunk is drawn. With `first_chunk = "uniform"` we take the recursion literally and draw uniformly;
with "score" the whole super-batch serves as negatives, which costs O(B^2 d).

Strata, contiguous equal parts of the super-batch, are our addition: each gives b / strata examples
in all, so devices that hold whole strata train on their own candidates. A chunk is drawn from the
whole super-batch, except from strata that have given their share. Equal quotas per chunk would be
simpler, but cost more of the score: see benchmarks/results/strata_quotas.csv.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aced.outputs import Embeddings
from aced.selection import false_negatives, scores
from aced.selection.config import SelectionConfig
from aced.selection.gain import gain_of_draw, perplexity
from aced.selection.gather import gather_rows, local_parts, replicated

# Sums over C for each candidate's image (first) and text (second), for one model.
Context = tuple[Float[Array, "parts rows"], Float[Array, "parts rows"]]


class _Loss(NamedTuple):
    """How a loss accumulates the logits of a candidate with the members of C."""

    empty: float  # the context of an empty C
    reduce: Callable[[Array], Array]  # logits [..., k] with a chunk -> the chunk's context
    add: Callable[[Array, Array], Array]  # combines two contexts


_LOSSES = {
    # Off the diagonal s_ij = -1, so that nll_ij = -log sigmoid(-l_ij) = softplus(l_ij).
    "sigmoid": _Loss(0.0, lambda block: scores.softplus(block).sum(axis=-1), jnp.add),
    "softmax": _Loss(-jnp.inf, lambda block: jax.nn.logsumexp(block, axis=-1), jnp.logaddexp),
}


class _Carry(NamedTuple):
    """State before the draw of a chunk."""

    contexts: list[Context]  # of each term
    available: Bool[Array, " B"]
    left: Int[Array, " strata"]  # picks that each stratum still has to give
    score: Float[Array, " B"]


def select_joint(
    noise: Float[Array, "chunks B"],
    terms: scores.Terms,
    config: SelectionConfig,
    *,
    loss: str,
    size: int,
    damped: Embeddings | None = None,
) -> tuple[Int[Array, " b"], dict[str, Float[Array, ""]]]:
    """Ids of the chosen candidates and scalar metrics; see `aced.selection.select`.

    Args:
        noise: standard Gumbel noise. The k largest of `logit + noise` are a sample without
            replacement in proportion to exp(logit), and no exp() overflows.
        terms: from `scores.score_terms`, for B candidates.
        config: settings that passed `config.check(B, size)`, with a number of strata.
        loss: "sigmoid" or "softmax".
        size: b.
        damped: the reference's embeddings, to leave out false negatives; None: all pairs count.
    """
    strata, chunk = config.strata, size // config.chunks
    n, share = noise.shape[1], size // config.strata
    rows = n // strata
    parts = local_parts(strata, n)

    def draw(carry: _Carry, noise: Float[Array, " B"]):
        # XLA does not partition top_k, so the B scores are gathered; the embeddings are not.
        score, candidates = replicated(carry.score), carry.available.sum()
        summed = 1 + 2 * (n - candidates) if loss == "sigmoid" else 1
        gain = gain_of_draw(score, carry.available, summed, config, gain=config.gain_of(loss))
        logits = jnp.where(carry.available, gain * score + noise, -jnp.inf)
        best, place = jax.lax.top_k(logits.reshape(strata, rows), min(share, chunk))
        best = jnp.where(jnp.arange(best.shape[1]) < carry.left[:, None], best, -jnp.inf)
        picks = jax.lax.top_k(best.reshape(-1), chunk)[1]
        stratum = picks // best.shape[1]
        ids = rows * stratum + place.reshape(-1)[picks]
        numbers = (
            carry.score[ids].mean(),
            jnp.mean(carry.score, where=carry.available),
            perplexity(gain * score, carry.available) / candidates,
        )
        return ids, carry.left.at[stratum].add(-1), numbers

    def step(carry: _Carry, noise: Float[Array, " B"]):
        ids, left, numbers = draw(carry, noise)
        extended = []
        for context, (_, e) in zip(carry.contexts, terms, strict=True):
            # The barrier keeps XLA from merging the messages of all models into one large one.
            ids, extended = jax.lax.optimization_barrier((ids, extended))
            extended.append(_extend(context, e, ids, loss, config, damped))
        nlls = [_nll(context, e, loss) for context, (_, e) in zip(extended, terms, strict=True)]
        available = carry.available.at[ids].set(False)
        return _Carry(extended, available, left, scores.combine(terms, nlls)), (ids, numbers)

    empty = jnp.full((parts, n // parts), _LOSSES[loss].empty)
    if config.first_chunk == "uniform":
        start = [jnp.zeros(n) for _ in terms]
    elif loss == "softmax":
        width = scores.softmax_width(n // parts, size // (config.chunks * parts), config.tile)
        start = [
            scores.softmax_nll(e, strata=parts, width=width, precision=config.precision)
            for _, e in terms
        ]
    else:
        start = [_nll((empty, empty), e, loss) for _, e in terms]
    carry = _Carry(
        contexts=[(empty, empty) for _ in terms],
        available=jnp.ones(n, bool),
        left=jnp.full(strata, share),
        score=scores.combine(terms, start),
    )
    carry, (ids, numbers) = jax.lax.scan(step, carry, noise[:-1])
    # Nothing is drawn after the last chunk, so its rows and columns are not needed.
    last, _, last_numbers = draw(carry, noise[-1])
    ids = jnp.concatenate([ids.reshape(-1), last])
    names = ("score_selected", "score_candidates", "perplexity")
    return ids, {
        f"selection/{name}": jnp.append(before, after).mean()
        for name, before, after in zip(names, numbers, last_numbers, strict=True)
    }


def _nll(context: Context, e: Embeddings, loss: str) -> Float[Array, " B"]:
    """The loss that each candidate would add to the chosen set of `context`."""
    image, text = (part.reshape(-1) for part in context)
    if loss == "sigmoid":
        return scores.sigmoid_nll(e) + image + text
    own = scores.matching_logits(e)
    return (jnp.logaddexp(image, own) + jnp.logaddexp(text, own)) / 2 - own


def _extend(
    context: Context,
    e: Embeddings,
    ids: Int[Array, " k"],
    loss: str,
    config: SelectionConfig,
    damped: Embeddings | None,
) -> Context:
    """The context after adding the chunk `ids` to C."""
    parts, rows = context[0].shape
    width = e.zimg.shape[1]
    zimg, ztxt = (z.reshape(parts, rows, width) for z in (e.zimg, e.ztxt))
    tile = min(config.tile, rows)
    if damped is not None:
        limit = false_negatives.limits(damped, config.false_negative_margin).reshape(parts, rows)

    def reduced(
        z: Float[Array, "parts rows d"],
        chunk: Float[Array, "k d"],
        candidates: Float[Array, "B e"] | None,
        chosen: Float[Array, "B e"] | None,
    ):
        """`candidates` and `chosen` are the reference's embeddings of the same two sides."""
        others = None if chosen is None else gather_rows(chosen, ids)

        def one_tile(start: Int[Array, ""]) -> Float[Array, "parts tile"]:
            def of_tile(x: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(x, start, tile, axis=1)

            block = jnp.einsum("sid,kd->sik", of_tile(z), chunk, precision=config.precision)
            block = e.scale * block + e.bias
            if others is not None:
                own = of_tile(candidates.reshape(parts, rows, -1))
                left_out = false_negatives.alike(own, others, of_tile(limit), config.precision)
                block = jnp.where(left_out, -jnp.inf, block)  # adds nothing to either loss
            return _LOSSES[loss].reduce(block)

        # The last tile overlaps its predecessor if the tile does not divide the rows.
        starts = [min(start, rows - tile) for start in range(0, rows, tile)]
        tiles = jax.lax.map(one_tile, jnp.array(starts)).swapaxes(0, 1)  # [parts, tiles, tile]
        overlap = len(starts) * tile - rows
        return jnp.concatenate([tiles[:, :-1].reshape(parts, -1), tiles[:, -1, overlap:]], axis=1)

    # Only the chunk's embeddings are exchanged between devices.
    add = _LOSSES[loss].add
    uimg, utxt = (None, None) if damped is None else (damped.zimg, damped.ztxt)
    image = add(context[0], reduced(zimg, gather_rows(e.ztxt, ids), uimg, utxt))
    ids, image = jax.lax.optimization_barrier((ids, image))  # as in `select_joint`
    return image, add(context[1], reduced(ztxt, gather_rows(e.zimg, ids), utxt, uimg))
