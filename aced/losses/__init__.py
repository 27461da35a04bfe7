"""Losses: pure functions of embeddings, usable on their own."""

from collections.abc import Callable

from jaxtyping import Array, Float

from aced.losses.contrastive import sigmoid_loss, softmax_loss

# The contrastive losses of `Embeddings`, by the name that the setting `method.loss` has for them.
LOSSES: dict[str, Callable[..., Float[Array, ""]]] = {
    "sigmoid": sigmoid_loss,
    "softmax": softmax_loss,
}
