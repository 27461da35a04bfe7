"""Joint example selection (JEST, arXiv 2406.17711, algorithm 1), without the B x B score matrix.

The sub-batch grows in N chunks. Given the set C chosen so far, candidate i is drawn without
replacement, with probability proportional to exp(gain * score_i(C)), where

- sigmoid: score_i(C) = S_ii + sum_{k in C} (S_ki + S_ik), S = the pairwise losses' score;
- softmax: score_i(C) = score of i's own loss, with the other members of C as its negatives:
  nll_i(C) = -l_ii + (logsumexp_{j in C + i} l_ij + logsumexp_{j in C + i} l_ji) / 2.

Both are running sums (or log-sum-exps) over C, so a new chunk only needs its own rows and columns
of the logits: work O(B b d) instead of O(B^2 d), and memory O(tile b / N) in each part of the
super-batch, so at most O(B b / N), instead of O(B^2).

For an empty C the softmax loss of every candidate is zero. The paper does not specify how the first
chunk is drawn. With `first_chunk = "uniform"` we take the recursion literally and draw uniformly;
with "score" the whole super-batch serves as negatives, which costs O(B^2 d).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aced.outputs import Embeddings
from aced.selection import false_negatives, scores
from aced.selection.chunks import draw_chunks
from aced.selection.config import SelectionConfig
from aced.selection.gather import gather_rows, local_parts

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
        noise: standard Gumbel noise, see `draw_chunks`.
        terms: from `scores.score_terms`, for B candidates.
        config: settings that passed `config.check(B, size)`, with a number of strata.
        loss: "sigmoid" or "softmax".
        size: b.
        damped: the reference's embeddings, to leave out false negatives; None: all pairs count.
    """
    n = noise.shape[1]
    parts = local_parts(config.strata, n)

    def extend(contexts: list[Context], ids: Int[Array, " k"]):
        extended = []
        for context, (_, e) in zip(contexts, terms, strict=True):
            # The barrier keeps XLA from merging the messages of all models into one large one.
            ids, extended = jax.lax.optimization_barrier((ids, extended))
            extended.append(_extend(context, e, ids, loss, config, damped))
        nlls = [_nll(context, e, loss) for context, (_, e) in zip(extended, terms, strict=True)]
        return extended, scores.combine(terms, nlls)

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
    return draw_chunks(
        noise,
        [(empty, empty) for _ in terms],
        scores.combine(terms, start),
        extend,
        config,
        gain=config.gain_of(loss),
        size=size,
        pairs=2 if loss == "sigmoid" else 0,
    )


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

    def by_part(x: Float[Array, "B ..."]) -> Float[Array, "parts rows ..."]:
        return x.reshape(parts, rows, *x.shape[1:])

    def extended(one: Array, side: str, other: str, ids: Array) -> Float[Array, "parts rows"]:
        """The half `one` of the context, of each candidate's `side` with the chunk's `other`."""
        # Only the chunk's embeddings are exchanged between devices.
        z, chunk = by_part(getattr(e, side)), gather_rows(getattr(e, other), ids)
        if damped is not None:
            u, chosen = by_part(getattr(damped, side)), gather_rows(getattr(damped, other), ids)
            limit = by_part(false_negatives.limits(damped, config.false_negative_margin))

        def of_tile(cut: Callable[[Array], Array]) -> Float[Array, "parts tile"]:
            block = jnp.einsum("sid,kd->sik", cut(z), chunk, precision=config.precision)
            block = e.scale * block + e.bias
            if damped is not None:
                left_out = false_negatives.alike(cut(u), chosen, cut(limit), config.precision)
                block = jnp.where(left_out, -jnp.inf, block)  # adds nothing to either loss
            return _LOSSES[loss].reduce(block)

        return _LOSSES[loss].add(one, _by_tiles(of_tile, rows, config.tile))

    image = extended(context[0], "zimg", "ztxt", ids)
    ids, image = jax.lax.optimization_barrier((ids, image))  # as in `select_joint`
    return image, extended(context[1], "ztxt", "zimg", ids)


def _by_tiles(
    of_tile: Callable[[Callable[[Array], Array]], Float[Array, "parts tile"]], rows: int, tile: int
) -> Float[Array, "parts rows"]:
    """The results of `of_tile` for all rows, `tile` rows of each part at a time.

    `of_tile` gets a function that cuts the tile's rows out of an array [parts rows ...].
    """
    tile = min(tile, rows)

    def from_row(start: Int[Array, ""]) -> Float[Array, "parts tile"]:
        return of_tile(lambda x: jax.lax.dynamic_slice_in_dim(x, start, tile, axis=1))

    # The last tile overlaps its predecessor if the tile does not divide the rows.
    starts = [min(start, rows - tile) for start in range(0, rows, tile)]
    tiles = jax.lax.map(from_row, jnp.array(starts)).swapaxes(0, 1)  # [parts, tiles, tile]
    overlap = len(starts) * tile - rows
    return jnp.concatenate(
        [tiles[:, :-1].reshape(tiles.shape[0], -1), tiles[:, -1, overlap:]], axis=1
    )
