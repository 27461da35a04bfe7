"""Layerwise distillation: the student's hidden states match the teacher's, module by module.

    L_m = mean over the layers k of module m of MSE(W_k h_student_k + b_k, h_teacher_map(k))

W_k and b_k are learned, map pairs the layers evenly, and the last with the last. OPTIMA (arXiv
2310.04550) distils so; the formula is that of its first author's previous public work.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key, PyTree

LayerMap = Literal["uniform", "top"]


@struct.dataclass
class Errors:
    """Squared errors of each example, so that a batch can be cut into pieces.

    Every field is a tree, as in `TrainState`.
    """

    sums: PyTree  # [b m]; over layers and real tokens of module m, of channels' means
    counts: PyTree  # [b m]; of those means

    def means(self) -> Float[Array, " m"]:
        """L_m of every module."""
        return self.sums.sum(axis=0) / self.counts.sum(axis=0)


def layer_map(student: int, teacher: int, how: LayerMap = "uniform") -> tuple[int, ...]:
    """Returns which of `teacher` layers each of `student` layers learns from, from 0.

    "uniform": evenly spaced; "top": the last ones. Either way the last one from the last.
    """
    if how == "top":
        return tuple(max(0, teacher - student + k) for k in range(student))
    return tuple(max(0, (k + 1) * teacher // student - 1) for k in range(student))


def init_projections(
    key: Key[Array, ""], layers: int, student: int, teacher: int
) -> dict[str, Array]:
    """Random W [layers student teacher] and b = 0 of a module, by the widths of both models."""
    init = jax.nn.initializers.lecun_normal(batch_axis=0)
    return {"kernel": init(key, (layers, student, teacher)), "bias": jnp.zeros((layers, teacher))}


def tokens_of(real: Bool[Array, "b l"], tokens: int) -> dict[str, Bool[Array, "b n"]]:
    """Which hidden states count, by module: all patches; `start` and real words.

    Not [CLS], which only the contrastive head reads: no task trains it.

    Args:
        real: which words of a text are no padding.
        tokens: of an image.
    """
    start = jnp.ones_like(real[:, :1])
    return {
        "image": jnp.ones((len(real), tokens), bool),
        "unimodal": jnp.concatenate([start, real, jnp.zeros_like(start)], axis=1),
        "multimodal": jnp.concatenate([start, real[:, :-1]], axis=1),
    }


def errors(
    student: dict[str, Float[Array, "Ls r n d"]],
    teacher: dict[str, Float[Array, "Lt r n e"]],
    projections: PyTree,
    tokens: dict[str, Bool[Array, "b n"]],
    how: LayerMap = "uniform",
) -> Errors:
    """Returns the squared errors, by module in the order of `tokens`; the teacher has no gradient.

    Args:
        student: hidden states by module; of k pictures an example has k rows side by side.
        teacher: of the same examples; other widths, perhaps more layers.
        projections: by module, from `init_projections`.
        tokens: from `tokens_of`.
        how: which layers are paired.
    """
    sums, counts = [], []
    for module, mask in tokens.items():
        own, other, p = student[module], teacher[module], projections[module]
        pairs = jnp.asarray(layer_map(len(own), len(other), how))
        target = jax.lax.stop_gradient(other)[pairs].astype(jnp.float32)
        kernel = p["kernel"].astype(own.dtype)
        mapped = jnp.einsum(
            "krnd,kde->krne", own, kernel, preferred_element_type=jnp.float32
        ) + jnp.expand_dims(p["bias"], (1, 2))
        squares = jnp.square(mapped - target).mean(axis=-1).sum(axis=0)  # [r n]
        squares = squares.reshape(len(mask), -1, mask.shape[1])  # [b k n]
        sums.append(jnp.where(mask[:, None], squares, 0).sum(axis=(1, 2)))
        counts.append(mask.sum(axis=1) * float(squares.shape[1] * len(own)))
    return Errors(jnp.stack(sums, axis=1), jnp.stack(counts, axis=1))
