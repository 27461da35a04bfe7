"""Selection of the b examples to train on from a super-batch of B candidates."""

import jax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from aced.config import ConfigError
from aced.outputs import Embeddings
from aced.selection import scores
from aced.selection.concepts import Concepts, select_by_concept
from aced.selection.config import SelectionConfig
from aced.selection.diagnostics import collapse, describe, few_concepts
from aced.selection.gather import take
from aced.selection.independent import select_independent
from aced.selection.joint import select_joint

__all__ = [
    "Concepts",
    "Selection",
    "SelectionConfig",
    "collapse",
    "few_concepts",
    "select",
    "take",
]


@struct.dataclass
class Selection:
    """The chosen examples."""

    # Positions in the super-batch, without repetition, b / strata in every stratum; sort before
    # `take`.
    ids: Int[Array, " b"]
    # "selection/score_selected": mean score of the picks when drawn, given the earlier picks.
    # "selection/score_candidates": mean score of all available candidates at each draw, the
    # expectation of a uniform draw. "selection/perplexity": effective number of candidates of a
    # sampling draw, divided by their number; 1 is uniform.
    metrics: dict[str, Float[Array, ""]]


def select(
    key: Key[Array, ""],
    learner: Embeddings | None,
    reference: Embeddings | None,
    config: SelectionConfig,
    *,
    loss: str,
    size: int,
    concepts: Concepts | None = None,
) -> Selection:
    """Chooses `size` of the B candidates embedded by `learner` and `reference`.

    A pure function, to be called under `jit`. Random numbers are drawn for the whole super-batch,
    so the picks depend on `key` and `config.strata`, but not on how embeddings are sharded. With
    `config.strata=None` the number of strata is that of `config.for_batch(size, B)`.

    Args:
        key: a typed PRNG key.
        learner: embeddings of the super-batch; may be None if the score needs no learner.
        reference: embeddings of the same super-batch; may be None if the score needs no reference
            and false negatives are not damped. The width may differ from the learner's.
        config: the settings.
        loss: "sigmoid" or "softmax", the loss that scores are made of.
        size: b, the number of examples to choose.
        concepts: of the super-batch; None unless the score is made of them.

    Raises:
        ConfigError: settings and sizes do not fit together, or a model or concepts are missing.
    """
    config.check_loss(loss)
    if config.by_concept:
        if concepts is None:
            raise ConfigError(
                f"selection.score={config.score!r} needs the concepts of the candidates, and there "
                "are none; set selection.concepts to a list of them."
            )
        n = len(concepts.ids)
        config.check(n, size)
        config = config.for_batch(size, n)
        return Selection(*select_by_concept(key, concepts, config, size=size))
    damped = None
    if config.false_negative_margin is not None:
        if reference is None:
            raise ConfigError(
                "selection.false_negative_margin needs the reference's embeddings, and there are "
                "none; configure a reference, or set it to None."
            )
        damped = reference.frozen()
    terms = scores.score_terms(config.score, learner, reference, config.reference_weight)
    n = terms[0][1].zimg.shape[0]
    config.check(n, size)
    config = config.for_batch(size, n)
    if config.method == "joint":
        noise = jax.random.gumbel(key, (config.chunks, n))
        ids, metrics = select_joint(noise, terms, config, loss=loss, size=size, damped=damped)
    else:
        noise = jax.random.gumbel(key, (n,))
        ids, metrics = select_independent(noise, terms, config, loss=loss, size=size)
    is_reference = scores.needs(config.score, "reference")
    diagnostics = describe(ids, terms[-1][1], is_reference=is_reference)
    return Selection(ids=ids, metrics=metrics | diagnostics)
