"""The least that learns the pairs of the comparison: perceptrons of two hidden layers.

A picture is its pixels, and a caption the sum of a row per word. With them a run takes half a
minute on a CPU core, so that the comparison can have hundreds.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from aced.models.two_tower import l2_normalize
from aced.outputs import Embeddings

WIDTH = 64  # of the embeddings


def init(
    key: Key[Array, ""], hidden: int, *, pixels: int, places: int, words: int, bias: float
) -> PyTree:
    """Parameters of both towers.

    Args:
        key: of the random numbers.
        hidden: width of the hidden layers.
        pixels: numbers of a picture.
        places: words have a row for each of the first places of a caption, and one for all later.
        words: of the vocabulary.
        bias: of the logits, at first.
    """
    keys = jax.random.split(key, 6)

    def kernel(key: Array, rows: int, columns: int) -> Array:
        return jax.random.normal(key, (rows, columns)) / math.sqrt(rows)

    return {
        "pixels": kernel(keys[0], pixels, hidden),
        "image": kernel(keys[1], hidden, hidden),
        "image_head": kernel(keys[2], hidden, WIDTH),
        "words": jax.random.normal(keys[3], (places, words, hidden)) / math.sqrt(places),
        "text": kernel(keys[4], hidden, hidden),
        "text_head": kernel(keys[5], hidden, WIDTH),
        "t": jnp.log(10.0),
        "bias": jnp.float32(bias),
    }


def embed(params: PyTree, pixels: Float[Array, "b p"], tokens: Int[Array, "b l"]) -> Embeddings:
    """Both towers."""
    table = params["words"]
    words = table[jnp.minimum(jnp.arange(tokens.shape[1]), len(table) - 1), tokens].sum(axis=1)
    towers = []
    for x, name in ((pixels @ params["pixels"], "image"), (words, "text")):
        x = jax.nn.gelu(x)
        x = x + jax.nn.gelu(x @ params[name])
        towers.append(l2_normalize(x @ params[f"{name}_head"]))
    return Embeddings(*towers, jnp.exp(params["t"]), params["bias"])


def flops(params: PyTree) -> int:
    """Of a forward pass of one pair: two for each weight of a matrix; rows of words are read."""
    kernels = ("pixels", "image", "image_head", "text", "text_head")
    return 2 * sum(params[name].size for name in kernels)
