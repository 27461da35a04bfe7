"""Joint example selection (JEST, arXiv 2406.17711, algorithm 1), without the B x B score matrix.

The sub-batch grows by N chunks. Given the set C of all that was chosen so far, candidate i is drawn
in proportion to exp(gain * score_i(C)), without replacement, where

- sigmoid: score_i(C) = S_ii + sum_{k in C} (S_ki + S_ik), S = the pairwise losses' score;
- softmax: score_i(C) = score of i's own loss, with the other members of C as its negatives:
  nll_i(C) = -l_ii + (logsumexp_{j in C + i} l_ij + logsumexp_{j in C + i} l_ji) / 2.

Either is a running sum (or log-sum-exp) over C, so a new chunk only needs its own rows and columns
of the logits: work O(B b d) instead of O(B^2 d), memory O(tile b / N) instead of O(B^2).

With an empty C the softmax loss is zero for every candidate. The paper leaves open what the first
chunk is drawn by; our readings are "alone", the recursion taken literally (a uniform first chunk),
and "super_batch", the losses with the whole super-batch as negatives. The latter costs O(B^2 d).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aced.embeddings import Embeddings
from aced.selection import scores
from aced.selection.config import SelectionConfig
from aced.selection.gather import gather_rows, local_parts, take_strata

# Of one model: what every candidate's image (first) and text (second) have met in C.
Context = tuple[Float[Array, "parts rows"], Float[Array, "parts rows"]]


class _Loss(NamedTuple):
    """How a loss takes in the logits of one candidate with the members of C."""

    empty: float  # the context before anything is chosen
    reduce: Callable[[Array], Array]  # logits [..., k] with a chunk -> the chunk's context
    add: Callable[[Array, Array], Array]  # of two contexts


_LOSSES = {
    # Off the diagonal s_ij = -1, so that nll_ij = -log sigmoid(-l_ij) = softplus(l_ij).
    "sigmoid": _Loss(0.0, lambda block: scores.softplus(block).sum(axis=-1), jnp.add),
    "softmax": _Loss(-jnp.inf, lambda block: jax.nn.logsumexp(block, axis=-1), jnp.logaddexp),
}


def select_joint(
    noise: Float[Array, "chunks B"],
    terms: scores.Terms,
    config: SelectionConfig,
    *,
    loss: str,
    size: int,
) -> tuple[Int[Array, " b"], dict[str, Float[Array, ""]]]:
    """Ids of the chosen candidates and scalar metrics; see `aced.selection.select`.

    Args:
        noise: standard Gumbel noise. The k largest of `logit + noise` are a sample without
            replacement in proportion to exp(logit), and no exp() overflows.
        terms: from `scores.score_terms`, for B candidates.
        config: the settings; `config.check(B, size)` has passed, `strata` is a number.
        loss: "sigmoid" or "softmax", whose pairwise terms are scored.
        size: b.
    """
    strata, quota = config.strata, size // (config.chunks * config.strata)
    n = noise.shape[1]
    rows = n // strata
    parts = local_parts(strata, n)
    noise = noise.reshape(config.chunks, strata, rows)

    def score_of(nlls: list[Float[Array, " B"]]) -> Float[Array, "strata rows"]:
        return scores.combine(terms, nlls).reshape(strata, rows)

    def draw(score, available, noise):
        logits = jnp.where(available, config.gain * score + noise, -jnp.inf)
        # XLA does not partition top_k: on a mesh, these B numbers are gathered (not B x d).
        picks = jax.lax.top_k(logits, quota)[1]
        selected = jnp.take_along_axis(score, picks, axis=1).mean()
        return picks, (selected, jnp.mean(score, where=available))

    def step(carry, noise):
        contexts, available, score = carry
        picks, means = draw(score, available, noise)
        extended = []
        for context, (_, e) in zip(contexts, terms, strict=True):
            # One after the other: XLA would merge what is exchanged into one large message.
            picks, extended = jax.lax.optimization_barrier((picks, extended))
            extended.append(_extend(context, e, picks, loss, config))
        available = jax.vmap(lambda free, p: free.at[p].set(False))(available, picks)
        nlls = [_nll(context, e, loss) for context, (_, e) in zip(extended, terms, strict=True)]
        return (extended, available, score_of(nlls)), (picks, means)

    empty = jnp.full((parts, n // parts), _LOSSES[loss].empty)
    if loss == "softmax" and config.softmax_start == "super_batch":
        width = scores.softmax_width(n // parts, size // (config.chunks * parts), config.tile)
        start = [
            scores.softmax_nll(e, strata=parts, width=width, precision=config.precision)
            for _, e in terms
        ]
    else:
        start = [_nll((empty, empty), e, loss) for _, e in terms]
    carry = [(empty, empty) for _ in terms], jnp.ones((strata, rows), bool), score_of(start)
    (_, available, score), (picks, means) = jax.lax.scan(step, carry, noise[:-1])
    # Nothing is drawn after the last chunk, so that its rows and columns are not needed.
    last_picks, last_means = draw(score, available, noise[-1])
    picks = jnp.concatenate([picks, last_picks[None]]).swapaxes(0, 1)  # [strata, chunks, quota]
    ids = (picks + rows * jnp.arange(strata)[:, None, None]).reshape(size)
    selected, candidates = (
        jnp.append(mean, last).mean() for mean, last in zip(means, last_means, strict=True)
    )
    return ids, {"selection/score_selected": selected, "selection/score_candidates": candidates}


def _nll(context: Context, e: Embeddings, loss: str) -> Float[Array, " B"]:
    """The loss that each candidate adds to the chosen set that `context` describes."""
    image, text = (part.reshape(-1) for part in context)
    if loss == "sigmoid":
        return scores.sigmoid_nll(e) + image + text
    own = scores.matching_logits(e)
    return (jnp.logaddexp(image, own) + jnp.logaddexp(text, own)) / 2 - own


def _extend(
    context: Context,
    e: Embeddings,
    picks: Int[Array, "strata quota"],
    loss: str,
    config: SelectionConfig,
) -> Context:
    """The context after the chunk `picks` (positions within strata) has joined the chosen."""
    parts, rows = context[0].shape
    width = e.zimg.shape[1]
    zimg, ztxt = (z.reshape(parts, rows, width) for z in (e.zimg, e.ztxt))
    tile = min(config.tile, rows)

    def met(z: Float[Array, "parts rows d"], chunk: Float[Array, "k d"]):
        def one_tile(start: Int[Array, ""]) -> Float[Array, "parts tile"]:
            part = jax.lax.dynamic_slice_in_dim(z, start, tile, axis=1)
            block = jnp.einsum("sid,kd->sik", part, chunk, precision=config.precision)
            return _LOSSES[loss].reduce(e.scale * block + e.bias)

        # The last tile overlaps its predecessor where the tile does not divide the rows.
        starts = [min(start, rows - tile) for start in range(0, rows, tile)]
        tiles = jax.lax.map(one_tile, jnp.array(starts)).swapaxes(0, 1)  # [parts, tiles, tile]
        overlap = len(starts) * tile - rows
        return jnp.concatenate([tiles[:, :-1].reshape(parts, -1), tiles[:, -1, overlap:]], axis=1)

    def chunk_of(z: Float[Array, "B d"], picks: Int[Array, "strata quota"]) -> Float[Array, "k d"]:
        """The only embeddings that devices exchange."""
        taken = take_strata(z.reshape(config.strata, -1, width), picks)
        return gather_rows(taken).reshape(-1, width)

    add = _LOSSES[loss].add
    image = add(context[0], met(zimg, chunk_of(e.ztxt, picks)))
    picks, image = jax.lax.optimization_barrier((picks, image))  # as in `select_joint`
    return image, add(context[1], met(ztxt, chunk_of(e.zimg, picks)))
