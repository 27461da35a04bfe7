"""Scores made of the concepts of the captions, without a model: CABS (arXiv 2511.20643).

Candidate i has the distinct concepts C_i, such as the entries of a word list in its caption.

- "concept_balance", for classification (CABS-DM): the mean over c in C_i of
  `(t - n_c) / t + 1 / F_c` if n_c < t, and of -1/2 otherwise. n_c is the number of chosen examples
  that have c, F_c the number of candidates that have it, and t the number that each should have.
- "concept_count", for retrieval (CABS-FM): the size of C_i.

The formulas are those of the authors' code. Balance differs from it in these ways, all ours:

- Examples are drawn in chunks, in proportion to exp(gain * score). As many chunks as picks and a
  large gain choose the best candidate each time, as the authors do.
- All counts are those of the whole super-batch; the authors' devices choose each for itself.
- t is the mean number of picks with a concept if all concepts of the super-batch are picked alike,
  `b * sum_c F_c / (B * concepts)`, and at least 1. The authors have `b / concepts`, which is the
  same if each candidate has one concept, and too few if it has several.
- The authors leave out all candidates with a concept that ten picks have, and then choose fewer
  than b. Here these candidates are only less likely.
- A candidate without a concept has a score of -1, below all others; the authors never choose it.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key

from aced.parallel.mesh import EXAMPLES, data_shards
from aced.selection.chunks import draw_chunks
from aced.selection.config import SelectionConfig
from aced.selection.gather import gather_rows
from aced.selection.independent import draw_once

_FILLED, _NONE = -0.5, -1.0  # scores of a concept that enough picks have, and of no concept


@struct.dataclass
class Concepts:
    """The concepts of the candidates."""

    # Each row has distinct numbers below `number`, and -1 where there are no more.
    ids: Int[Array, "B most"]
    number: int = struct.field(pytree_node=False)  # of all concepts that there are


def select_by_concept(
    key: Key[Array, ""], concepts: Concepts, config: SelectionConfig, *, size: int
) -> tuple[Int[Array, " b"], dict[str, Float[Array, ""]]]:
    """Ids of the chosen candidates and scalar metrics; see `aced.selection.select`.

    Args:
        key: a typed PRNG key.
        concepts: of B candidates.
        config: settings with one of these scores that passed `config.check(B, size)`, with a
            number of strata.
        size: b.
    """
    n, found = len(concepts.ids), _counts_everywhere(concepts)
    if config.score == "concept_count":
        score, noise = _sizes(concepts), jax.random.gumbel(key, (n,))
        ids, metrics = draw_once(noise, score, config, gain=config.gain, size=size)
    else:
        target = jnp.maximum(1.0, size / n * found.sum() / jnp.maximum((found > 0).sum(), 1))

        def extend(counts: Int[Array, " concepts"], ids: Int[Array, " k"]):
            counts = counts + _counts(gather_rows(concepts.ids, ids), concepts.number)
            return counts, _balance(concepts, counts, found, target)

        empty = jnp.zeros_like(found)
        start = _balance(concepts, empty, found, target)
        if config.first_chunk == "uniform":
            start = jnp.zeros(n)
        noise = jax.random.gumbel(key, (config.chunks, n))
        ids, metrics = draw_chunks(noise, empty, start, extend, config, gain=config.gain, size=size)
    picked = gather_rows(concepts.ids, ids)
    present = (_counts(picked, concepts.number) > 0).sum()
    return ids, metrics | {
        "selection/concepts": present / jnp.maximum((found > 0).sum(), 1),
        "selection/concepts_each": (picked >= 0).sum() / size,
    }


def _balance(
    concepts: Concepts,
    counts: Int[Array, " concepts"],
    found: Int[Array, " concepts"],
    target: Float[Array, ""],
) -> Float[Array, " B"]:
    """The score "concept_balance" of every candidate, given the counts of the picks."""
    gain = (target - counts) / target + 1 / jnp.maximum(found, 1)
    gain = jnp.where(counts < target, gain, _FILLED)
    is_one = concepts.ids >= 0
    total = jnp.where(is_one, gain[jnp.maximum(concepts.ids, 0)], 0.0).sum(axis=1)
    sizes = _sizes(concepts)
    return jnp.where(sizes > 0, total / jnp.maximum(sizes, 1.0), _NONE)


def _sizes(concepts: Concepts) -> Float[Array, " B"]:
    """The number of concepts of every candidate."""
    return (concepts.ids >= 0).sum(axis=1, dtype=jnp.float32)


def _counts(ids: Int[Array, "rows most"], number: int) -> Int[Array, " concepts"]:
    """The number of rows that have each concept."""
    places = jnp.where(ids >= 0, ids, number).reshape(-1)
    return jnp.zeros(number, jnp.int32).at[places].add(1, mode="drop")


def _counts_everywhere(concepts: Concepts) -> Int[Array, " concepts"]:
    """The number of candidates that have each concept; only these numbers cross the devices."""
    shards = data_shards()
    if shards == 1 or len(concepts.ids) % shards:
        return _counts(concepts.ids, concepts.number)
    return jax.shard_map(
        lambda ids: jax.lax.psum(_counts(ids, concepts.number), EXAMPLES),
        in_specs=PartitionSpec(EXAMPLES),
        out_specs=PartitionSpec(),
    )(concepts.ids)
