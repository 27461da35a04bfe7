"""Layerwise distillation: the student's hidden states match the teacher's, module by module.

    L_m = mean over the layers k of module m of MSE(W_k h_student_k + b_k, h_teacher_map(k))

W_k and b_k are learned; `map` pairs the layers evenly, the last with the last. Used by OPTIMA
(arXiv 2310.04550); the formula is taken from earlier public work of its first author.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Key, PyTree

LayerMap = Literal["uniform", "top"]


@struct.dataclass
class Errors:
    """Squared errors per example, so that a batch can be processed in pieces.

    Every field is a tree, as in `TrainState`.
    """

    sums: PyTree  # [b m]; mean over channels, summed over layers and real tokens of module m
    counts: PyTree  # [b m]; number of terms in the sum

    def means(self) -> Float[Array, " m"]:
        """L_m of every module."""
        return self.sums.sum(axis=0) / self.counts.sum(axis=0)


def layer_map(student: int, teacher: int, pairing: LayerMap = "uniform") -> tuple[int, ...]:
    """Returns the index of the teacher's layer that each of the student's layers learns from.

    "uniform": evenly spaced; "top": the last layers. Both pair the last layer with the last.
    """
    if pairing == "top":
        return tuple(max(0, teacher - student + k) for k in range(student))
    return tuple(max(0, (k + 1) * teacher // student - 1) for k in range(student))


def init_projections(
    key: Key[Array, ""], layers: int, student: int, teacher: int
) -> dict[str, Array]:
    """Random W [layers student teacher] and b = 0 for a module, given both models' widths."""
    init = jax.nn.initializers.lecun_normal(batch_axis=0)
    return {"kernel": init(key, (layers, student, teacher)), "bias": jnp.zeros((layers, teacher))}


def tokens_of(real: Bool[Array, "b l"], tokens: int) -> dict[str, Bool[Array, "b n"]]:
    """Masks of the hidden states to compare, by module: all image tokens; `start` and real words.

    [CLS] is left out: only the contrastive head reads it, and no task trains it.
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
    pairing: LayerMap = "uniform",
) -> Errors:
    """Returns the squared errors, by module in the order of `tokens`; the teacher gets no gradient.

    Args:
        student: hidden states by module; an example with k images has k consecutive rows.
        teacher: hidden states of the same examples; widths and depths may differ.
        projections: by module, from `init_projections`.
        tokens: from `tokens_of`.
        pairing: how layers are paired; see `layer_map`.
    """
    sums, counts = [], []
    for module, mask in tokens.items():
        own, other, p = student[module], teacher[module], projections[module]
        pairs = jnp.asarray(layer_map(len(own), len(other), pairing))
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
