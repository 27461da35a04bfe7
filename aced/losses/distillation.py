"""Distillation from the embeddings of one or more frozen teachers.

Student and teacher may differ in width: softmax- and sigmoid-KD compare logits, and feature
matching uses a projection. Each model has its own scale and bias. Teachers get no gradient.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key

from aced.config import ConfigError
from aced.losses.contrastive import PRECISION, Form, block_logits, pair_sum, pairs, with_logsumexps
from aced.outputs import Embeddings
from aced.parallel.ring import Pairs

Projection = dict[str, Float[Array, "student_d teacher_d"]]


def softmax_kd(
    student: Embeddings, *teachers: Embeddings, precision: str = PRECISION, form: Form = "full"
) -> Float[Array, ""]:
    """Cross-entropy of the student's softmaxes against the teachers', over rows and columns.

    `-(1 / 2n) sum_ij (p_ij log q_ij)`, once with image-to-text and once with text-to-image
    softmaxes; p are the teachers' probabilities, q the student's. The formula is taken from
    secondary sources.

    With several teachers, p is their average. Cross-entropy is linear in p, so this equals the
    average of the losses with each teacher alone, at the cost of one student softmax.

    Raises:
        ConfigError: there is no teacher.
    """

    def log_softmaxes(model: Pairs) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
        (_, image_to_text), (_, text_to_image), _ = model
        scores = block_logits(model, precision)
        return scores - image_to_text[:, None], scores - text_to_image[None, :]

    def cross_entropy(
        is_match: Bool[Array, "n n"], student: Pairs, *teachers: Pairs
    ) -> Float[Array, ""]:
        targets = [log_softmaxes(teacher) for teacher in teachers]
        total = jnp.zeros(())
        for log_q, *log_ps in zip(log_softmaxes(student), *targets, strict=True):
            total -= (_mean([jnp.exp(log_p) for log_p in log_ps]) * log_q).sum()
        return total / 2

    models = [with_logsumexps(form, pairs(e), precision) for e in (student, *_frozen(teachers))]
    return pair_sum(form, cross_entropy, *models) / student.zimg.shape[0]


def sigmoid_kd(
    student: Embeddings, *teachers: Embeddings, precision: str = PRECISION, form: Form = "full"
) -> Float[Array, ""]:
    """Binary cross-entropy of the student's pair probabilities against the teachers'.

    The sigmoid loss with soft labels `sigmoid(teacher logits)`: mean over images of the sum over
    texts. Our derivation: we found no published formula. Several teachers: as in `softmax_kd`.

    Raises:
        ConfigError: there is no teacher.
    """

    def cross_entropy(
        is_match: Bool[Array, "n n"], student: Pairs, *teachers: Pairs
    ) -> Float[Array, ""]:
        labels = _mean([jax.nn.sigmoid(block_logits(teacher, precision)) for teacher in teachers])
        scores = block_logits(student, precision)
        return optax.losses.sigmoid_binary_cross_entropy(scores, labels).sum()

    models = [pairs(e) for e in (student, *_frozen(teachers))]
    return pair_sum(form, cross_entropy, *models) / student.zimg.shape[0]


def _frozen(teachers: tuple[Embeddings, ...]) -> list[Embeddings]:
    if not teachers:
        raise ConfigError("Distillation needs at least one teacher; name one, or set weight to 0.")
    return [teacher.frozen() for teacher in teachers]


def averaged(*teachers: Embeddings) -> Embeddings:
    """Embeddings whose logits are the average of the teachers' logits.

    These are the teachers' embeddings side by side: sums over channels add up. They are not
    normalised, and their scale is 1.

    Raises:
        ConfigError: there is no teacher.
    """
    teachers = [
        jax.tree.map(lambda x: x.astype(jnp.float32), teacher) for teacher in _frozen(teachers)
    ]
    zimg = [teacher.scale / len(teachers) * teacher.zimg for teacher in teachers]
    bias = sum(teacher.bias for teacher in teachers) / len(teachers)
    return Embeddings(
        zimg=jnp.concatenate(zimg, axis=1),
        ztxt=jnp.concatenate([teacher.ztxt for teacher in teachers], axis=1),
        scale=jnp.float32(1),
        bias=jnp.asarray(bias, jnp.float32),
    )


def _mean(blocks: list[Float[Array, "n n"]]) -> Float[Array, "n n"]:
    return sum(blocks[1:], blocks[0]) / len(blocks)


def init_projection(key: Key[Array, ""], student_width: int, teacher_width: int) -> Projection:
    """Parameters {"image", "text"} that map student embeddings to one teacher's width.

    The projection is trained with the student and discarded afterwards.
    """
    init = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key)
    shape = (student_width, teacher_width)
    return {"image": init(keys[0], shape), "text": init(keys[1], shape)}


def feature_matching(
    student: Embeddings, teacher: Embeddings, projection: Projection, precision: str = PRECISION
) -> Float[Array, ""]:
    """Squared distance of the projected student embeddings to the teacher's.

    Summed over dimensions, averaged over examples and over the two modalities. Our derivation: we
    found no published formula.
    """
    teacher = teacher.frozen()
    image = jnp.matmul(student.zimg, projection["image"], precision=precision) - teacher.zimg
    text = jnp.matmul(student.ztxt, projection["text"], precision=precision) - teacher.ztxt
    return (jnp.square(image).sum(axis=1) + jnp.square(text).sum(axis=1)).mean() / 2


Average = Literal["probabilities", "logits"]
PAIRWISE: dict[str, Callable[..., Float[Array, ""]]] = {
    "softmax": softmax_kd,
    "sigmoid": sigmoid_kd,
}
FEATURE = "feature"  # not in the table, because it also takes projections


def distillation_loss(
    kind: str,
    student: Embeddings,
    teachers: Mapping[str, Embeddings],
    projections: Mapping[str, Projection] | None = None,
    precision: str = PRECISION,
    form: Form = "full",
    average: Average = "probabilities",
) -> Float[Array, ""]:
    """The average over `teachers` (name to embeddings) of the distillation loss `kind`.

    Args:
        kind: a name in `PAIRWISE`, or `FEATURE`.
        student: the learner's embeddings of n examples.
        teachers: each teacher's embeddings of the same n examples.
        projections: for "feature", each teacher's projection, from `init_projection`.
        precision: of the matrix products.
        form: of the pairwise losses, see `aced.losses.contrastive`; unused for "feature".
        average: what is averaged over several teachers: "probabilities", after the softmax or the
            sigmoid, or "logits", before it; unused for "feature", where it is the losses.

    Raises:
        ConfigError: the kind is unknown, or a teacher or its projection is missing.
    """
    if kind in PAIRWISE:
        targets = tuple(teachers.values())
        if average == "logits" and len(targets) > 1:
            targets = (averaged(*targets),)
        return PAIRWISE[kind](student, *targets, precision=precision, form=form)
    if kind != FEATURE:
        known = ", ".join((*PAIRWISE, FEATURE))
        raise ConfigError(f"Distillation kind {kind!r} is unknown; use one of {known}.")
    projections = projections or {}
    missing = [name for name in teachers if name not in projections]
    if missing or not teachers:
        raise ConfigError(
            f"Feature matching needs a teacher, and a projection for each; teachers "
            f"{list(teachers)}, without projection {missing}. Make them with init_projection."
        )
    losses = [
        feature_matching(student, teacher, projections[name], precision)
        for name, teacher in teachers.items()
    ]
    return sum(losses[1:], losses[0]) / len(losses)
