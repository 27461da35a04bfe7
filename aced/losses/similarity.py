"""DIME-FM's losses (arXiv 2303.18232) on similarities of unpaired images and sentences.

u are the teacher's embeddings of n images, z the student's of the same images, and v the teacher's
of m unpaired sentences. All are L2-normalised, the scale s of the logits is fixed, and u and v get
no gradient. With KL(T, S; t) the mean over rows of KL(softmax(T / t) || softmax(S / t)), without a
factor t^2:

    vision-language score     KL(s u v', s z v'; t) + KL(s v u', s v z'; t)
    pseudo vision-language    2 KL(s u u', s z u'; t)
    distance preserving       2 KL(s u u', s z z'; t)

Diagonals are not masked. Similarities are computed in blocks around the ring of devices
(`aced.parallel.ring`), or in one block with `form="full"`.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from aced.bounds import NonNegativeFloat, PositiveFloat
from aced.config import Checked, ConfigError
from aced.losses.contrastive import PRECISION, Form, block_logits, pair_sum, with_logsumexps
from aced.parallel.ring import Pairs

Side = Literal["rows", "columns"]


@dataclasses.dataclass(frozen=True)
class SimilarityConfig(Checked):
    """Weights and temperatures of the three terms, as in the authors' code."""

    scale: PositiveFloat = 100.0  # of the logits; fixed, neither the teacher's nor learned
    score_weight: NonNegativeFloat = 0.7  # images against sentences
    score_temperature: PositiveFloat = 1.0
    pseudo_weight: NonNegativeFloat = 0.3  # images against the teacher's images
    pseudo_temperature: PositiveFloat = 3.0
    # Images against images; a third-party implementation: 0.1
    distance_weight: NonNegativeFloat = 0.0
    distance_temperature: PositiveFloat = 7.0

    def _check(self) -> None:
        if not (self.score_weight or self.pseudo_weight or self.distance_weight):
            raise ConfigError(
                "One of score_weight, pseudo_weight and distance_weight must be positive."
            )


def similarity_kl(
    student: tuple[Float[Array, "n d"], Float[Array, "m d"]],
    teacher: tuple[Float[Array, "n k"], Float[Array, "m k"]],
    *,
    scale: float,
    temperature: float,
    sides: tuple[Side, ...],
    precision: str = PRECISION,
    form: Form = "full",
) -> Float[Array, ""]:
    """KL(softmax(teacher) || softmax(student)) of similarities, averaged over rows or columns.

    Args:
        student: L2-normalised embeddings whose products are the student's similarities [n m].
        teacher: the same for the teacher, which gets no gradient.
        scale: s; similarities are multiplied by s / t.
        temperature: t, of both softmaxes.
        sides: "rows": softmax over m, mean over n; "columns": softmax over n, mean over m. Both:
            their sum.
        precision: of the matrix products.
        form: "ring" or "full", see `aced.losses.contrastive`.
    """
    n, m = len(student[0]), len(student[1])

    def log_softmaxes(model: Pairs) -> dict[Side, Float[Array, "n m"]]:
        (_, by_row), (_, by_column), _ = model
        scores = block_logits(model, precision)
        return {"rows": scores - by_row[:, None], "columns": scores - by_column[None, :]}

    def kl(is_match: Bool[Array, "n m"], student: Pairs, teacher: Pairs) -> Float[Array, ""]:
        log_q, log_p = log_softmaxes(student), log_softmaxes(teacher)
        count = {"rows": n, "columns": m}
        return sum(
            (jnp.exp(log_p[side]) * (log_p[side] - log_q[side])).sum() / count[side]
            for side in sides
        )

    shared = [jnp.float32(scale / temperature), jnp.float32(0)]
    models = []
    for left, right in (student, jax.lax.stop_gradient(teacher)):
        pairs = Pairs([left.astype(jnp.float32)], [right.astype(jnp.float32)], shared)
        models.append(with_logsumexps(form, pairs, precision))
    return pair_sum(form, kl, *models)


def similarity_losses(
    z: Float[Array, "n d"],
    u: Float[Array, "n d"],
    v: Float[Array, "m d"],
    config: SimilarityConfig,
    form: Form = "full",
) -> dict[str, Float[Array, ""]]:
    """The terms of DIME-FM's loss with nonzero weight, by name; unweighted.

    Args:
        z: the student's embeddings of the images.
        u: the teacher's embeddings of the same images.
        v: the teacher's embeddings of the sentences.
        config: weights and temperatures; terms with weight 0 are not computed.
        form: "ring" or "full", see `aced.losses.contrastive`.
    """
    u, v = jax.lax.stop_gradient((u, v))
    common = {"scale": config.scale, "form": form}
    losses = {}
    if config.score_weight:
        losses["score"] = similarity_kl(
            (z, v),
            (u, v),
            temperature=config.score_temperature,
            sides=("rows", "columns"),
            **common,
        )
    if config.pseudo_weight:
        losses["pseudo"] = 2 * similarity_kl(
            (z, u), (u, u), temperature=config.pseudo_temperature, sides=("rows",), **common
        )
    if config.distance_weight:
        losses["distance"] = 2 * similarity_kl(
            (z, z), (u, u), temperature=config.distance_temperature, sides=("rows",), **common
        )
    return losses


def similarity_loss(
    losses: dict[str, Float[Array, ""]], config: SimilarityConfig
) -> Float[Array, ""]:
    """The weighted sum of `similarity_losses`."""
    return sum(getattr(config, f"{name}_weight") * loss for name, loss in losses.items())
