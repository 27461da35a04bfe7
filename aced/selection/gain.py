"""The gain, which sets how sharply a draw follows the scores, and its normalizations.

A joint score is a sum over all earlier picks. Its spread grows with the sub-batch, with the models'
temperature and over training, and depends on the share of wrong pairs, so the same gain is close to
arg max in one run and close to uniform in another. `selection.normalization` measures the gain in
units of the draw itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aced.selection.config import SelectionConfig

_BISECTIONS = 24
_LEAST_GAIN, _MOST_GAIN = 1e-3, 1e3  # in units of one standard deviation of the scores


def gain_of_draw(
    score: Float[Array, " B"],
    available: Bool[Array, " B"],
    terms: int | Int[Array, ""],
    config: SelectionConfig,
    *,
    gain: float,
) -> Float[Array, ""]:
    """The factor on `score` before a draw among the `available` candidates.

    Returns 1 if all scores are equal, when every factor gives the uniform draw.

    Args:
        score: of every candidate; replicated, so that sums do not depend on the devices.
        available: mask of the candidates that may be drawn.
        terms: number of pairwise losses in a score.
        config: the settings.
        gain: from `config.gain_of`.
    """
    if config.normalization == "none":
        return jnp.float32(gain)
    if config.normalization == "terms":
        return jnp.float32(gain) / terms
    # The barriers keep XLA from fusing the reductions differently on other devices.
    score, available = jax.lax.optimization_barrier((score, available))
    count = available.sum()
    mean = jnp.sum(score, where=available) / count
    spread = jnp.sqrt(jnp.sum((score - mean) ** 2, where=available) / count)
    known = spread > 1e-6 * (1 + jnp.abs(mean))
    unit = jnp.where(known, 1 / jnp.where(known, spread, 1.0), 1.0)
    if config.normalization == "std":
        factor = gain * unit
    else:
        z = unit * (score - mean)
        factor = unit * _gain_of_perplexity(z, available, config.perplexity_share * count)
    return jax.lax.optimization_barrier(jnp.where(known, factor, 1.0))


def perplexity(logits: Float[Array, " B"], available: Bool[Array, " B"]) -> Float[Array, ""]:
    """exp(entropy) of softmax(logits) over `available`: the effective number of candidates."""
    logits = jnp.where(available, logits, -jnp.inf)
    log_p = jax.nn.log_softmax(logits)
    return jnp.exp(-jnp.sum(jnp.exp(log_p) * jnp.where(available, log_p, 0.0)))


def _gain_of_perplexity(
    z: Float[Array, " B"], available: Bool[Array, " B"], target: Float[Array, ""]
) -> Float[Array, ""]:
    """The gain at which the perplexity of a draw is `target`, by bisection of its logarithm."""

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = jnp.sqrt(low * high)
        too_many = perplexity(middle * z, available) > target
        return jnp.where(too_many, middle, low), jnp.where(too_many, high, middle)

    bounds = (jnp.float32(_LEAST_GAIN), jnp.float32(_MOST_GAIN))
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, bounds)
    return jnp.sqrt(low * high)
