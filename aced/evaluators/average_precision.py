"""Average precision: how well pictures that show a class are ranked before those that do not.

For data whose pictures show several classes, such as VOC2007, where accuracy means nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Precisions(NamedTuple):
    """Means over the classes that some picture shows, in [0, 1]; 0 where there is none."""

    eleven_points: Float[Array, ""]  # the VOC challenge's until 2009: Everingham et al., 4.2
    area: Float[Array, ""]  # under the curve of precision over recall, in steps


def mean_average_precision(
    scores: Float[Array, "n classes"], shown: Bool[Array, "n classes"]
) -> Precisions:
    """Both means of the average precision of each class.

    Every score is a threshold: the pictures that have it or more are those found, so that equal
    scores count together, and the order of pictures does not matter.
    """
    found = jax.vmap(_of_class, in_axes=1)(scores, shown)
    there = shown.any(axis=0)
    count = jnp.maximum(there.sum(), 1)
    return Precisions(*(jnp.sum(x * there) / count for x in found))


def _of_class(scores: Float[Array, " n"], shown: Bool[Array, " n"]) -> Precisions:
    n = len(scores)
    order = jnp.argsort(-scores)
    scores, right = scores[order], jnp.cumsum(shown[order])
    is_last = jnp.append(scores[:-1] != scores[1:], True)  # of those with the same score
    precision = jnp.where(is_last, right / jnp.arange(1, n + 1), 0.0)
    # The best precision at a recall of at least k / 10, in whole numbers; at 0: at any.
    reaches = 10 * right[None] >= jnp.arange(11)[:, None] * right[-1]
    eleven = jnp.max(jnp.where(reaches, precision, 0.0), axis=1).mean()
    # Of each threshold, the pictures that it finds and the one before does not.
    before = jnp.where(is_last, right, 0)
    before = jnp.append(0, jax.lax.cummax(before)[:-1])
    gained = jnp.where(is_last, right - before, 0)
    return Precisions(eleven, jnp.sum(precision * gained) / jnp.maximum(right[-1], 1))
