"""Choosing the b examples to train on from a super-batch of B candidates."""

import jax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from aced.config import ConfigError
from aced.outputs import Embeddings
from aced.selection import scores
from aced.selection.config import SelectionConfig
from aced.selection.diagnostics import collapse, describe
from aced.selection.gather import take
from aced.selection.independent import select_independent
from aced.selection.joint import select_joint

__all__ = ["Selection", "SelectionConfig", "collapse", "select", "take"]


@struct.dataclass
class Selection:
    """The chosen examples."""

    # Positions in the super-batch, without repetition, b / strata in every stratum; sort them for
    # `take`.
    ids: Int[Array, " b"]
    # "selection/score_selected": mean score of the picks at the moment they were drawn, given
    # what had been chosen before; "selection/score_candidates": that of all that they were drawn
    # from, which is what uniform draws would have got. "selection/perplexity": of the draws that
    # sample, the effective number of candidates over their number; 1 is uniform.
    metrics: dict[str, Float[Array, ""]]


def select(
    key: Key[Array, ""],
    learner: Embeddings | None,
    reference: Embeddings | None,
    config: SelectionConfig,
    *,
    loss: str,
    size: int,
) -> Selection:
    """Chooses `size` of the B candidates that `learner` and `reference` have embedded.

    A pure function of its arguments, to be called under `jit`. The random numbers are drawn for
    the whole super-batch, so that the picks depend on `key` and `config.strata`, and not on the
    devices over which the embeddings are sharded. `config.strata=None` is that of
    `config.for_batch(size, B)`.

    Args:
        key: a typed PRNG key.
        learner: embeddings of the super-batch; may be None with score "easy_reference".
        reference: the same super-batch; may be None with score "hard_learner". Its width may
            differ from the learner's.
        config: the settings.
        loss: "sigmoid" or "softmax": the loss whose values are the scores.
        size: b, the number of examples to choose.

    Raises:
        ConfigError: the settings contradict each other or the sizes, or a model is missing.
    """
    if loss not in ("sigmoid", "softmax"):
        raise ConfigError(f"Selection scores 'sigmoid' or 'softmax' losses, got {loss!r}.")
    terms = scores.score_terms(config.score, learner, reference, config.reference_weight)
    n = terms[0][1].zimg.shape[0]
    config.check(n, size)
    config = config.for_batch(size, n)
    if config.method == "joint":
        noise = jax.random.gumbel(key, (config.chunks, n))
        ids, metrics = select_joint(noise, terms, config, loss=loss, size=size)
    else:
        noise = jax.random.gumbel(key, (n,))
        ids, metrics = select_independent(noise, terms, config, loss=loss, size=size)
    is_reference = scores.needs(config.score, "reference")
    about = describe(ids, terms[-1][1], config.strata, is_reference=is_reference)
    return Selection(ids=ids, metrics=metrics | about)
