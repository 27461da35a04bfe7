"""Independent example selection: every candidate is scored on its own.

The baseline of joint selection in JEST (arXiv 2406.17711): with learnability it keeps less than
half of the gain, and with easy-reference it is worse than uniform sampling.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from aced.selection import scores
from aced.selection.config import SelectionConfig
from aced.selection.gain import gain_of_draw, perplexity
from aced.selection.gather import local_parts, replicated


def select_independent(
    noise: Float[Array, " B"],
    terms: scores.Terms,
    config: SelectionConfig,
    *,
    loss: str,
    size: int,
) -> tuple[Int[Array, " b"], dict[str, Float[Array, ""]]]:
    """Ids of the chosen candidates and scalar metrics; see `aced.selection.select`.

    With the sigmoid loss a candidate's score is that of its matching pair alone, S_ii. The softmax
    loss of a single pair is 0, so there the whole super-batch serves as negatives.

    Args:
        noise: standard Gumbel noise; with config.draw = "top_k" it decides between equal scores.
        terms: from `scores.score_terms`, for B candidates.
        config: settings that passed `config.check(B, size)`, with a number of strata.
        loss: "sigmoid" or "softmax".
        size: b.
    """
    if loss == "sigmoid":
        nlls = [scores.sigmoid_nll(e) for _, e in terms]
    else:
        parts = local_parts(config.strata, noise.shape[0])
        chunk = max(1, size // (parts * config.chunks))
        width = scores.softmax_width(noise.shape[0] // parts, chunk, config.tile)
        nlls = [
            scores.softmax_nll(e, strata=parts, width=width, precision=config.precision)
            for _, e in terms
        ]
    score = scores.combine(terms, nlls)
    return draw_once(noise, score, config, gain=config.gain_of(loss), size=size)


def draw_once(
    noise: Float[Array, " B"],
    score: Float[Array, " B"],
    config: SelectionConfig,
    *,
    gain: float,
    size: int,
) -> tuple[Int[Array, " b"], dict[str, Float[Array, ""]]]:
    """Ids drawn by the given score of every candidate, and scalar metrics.

    Args:
        noise: as above.
        score: of every candidate.
        config: as above.
        gain: the factor on the scores, in the unit `config.normalization`.
        size: b.
    """
    strata, quota = config.strata, size // config.strata
    shape = strata, noise.shape[0] // strata
    score, metrics = replicated(score), {}
    if config.draw == "sample":
        available = jnp.ones_like(score, bool)
        factor = gain_of_draw(score, available, 1, config, gain=gain)
        logits = factor * score + noise
        metrics["selection/perplexity"] = perplexity(factor * score, available) / score.size
        picks = jax.lax.top_k(logits.reshape(shape), quota)[1]
    else:
        # Counts are often equal. `top_k` would prefer the first rows, which some sources fill from
        # the same few files.
        keys = (-score.reshape(shape), -replicated(noise).reshape(shape))
        rows = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        picks = jax.lax.sort((*keys, rows), num_keys=2)[-1][:, :quota]
    score = score.reshape(shape)
    ids = (picks + shape[1] * jnp.arange(strata)[:, None]).reshape(size)
    selected = jnp.take_along_axis(score, picks, axis=1).mean()
    return ids, {
        "selection/score_selected": selected,
        "selection/score_candidates": score.mean(),
        **metrics,
    }
