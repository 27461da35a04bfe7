"""What models and steps cost, from their settings alone.

Counted are the multiply-adds (MACs) of matrix products: patch embedding, blocks with their
attention scores, pooling head, projection. One MAC is two FLOPs. Not counted, as in the published
numbers: norms, activations and other elementwise work, the loss, selection, the optimizer, and
what rematerialisation computes again.
"""

from collections.abc import Iterable

from aced.models.presets import Size
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig


def macs_blocks(dims: Size, tokens: int) -> int:
    """MACs of all blocks for one sequence; a causal mask saves nothing, as it is computed."""
    d = dims.width
    weights = 4 * d * d + 2 * d * dims.mlp  # q, k, v, out; the MLP
    scores = 2 * tokens * d  # q.k and the weighted sum of v
    return dims.depth * tokens * (weights + scores)


def macs_image(config: ImageConfig, embed_dim: int | None = None) -> int:
    """MACs of the image tower's forward pass for one image; None: no projection."""
    dims, d, n = config.dims, config.dims.width, config.grid**2
    total = n * 3 * config.patch**2 * d + macs_blocks(dims, config.tokens)
    if config.pool == "map":
        # k and v of every token; q is shared by the batch, so counted for none; scores; out; MLP.
        total += 2 * n * d * d + 2 * n * d + d * d + 2 * d * dims.mlp
    return total + d * (embed_dim or 0)


def macs_text(config: TextConfig, embed_dim: int, tokens: int | None = None) -> int:
    """MACs of the text tower's forward pass for one text of `tokens`; None: of full length."""
    return macs_blocks(config.dims, tokens or config.length) + config.dims.width * embed_dim


def macs(config: TwoTowerConfig) -> tuple[int, int]:
    """MACs of one forward pass of (one image, one text)."""
    tokens = min(config.tokenizer.length, config.text.length)
    return macs_image(config.image, config.embed_dim), macs_text(config.text, config.width, tokens)


def step_flops(
    with_gradient: Iterable[tuple[int, int]], forward: Iterable[tuple[int, int]] = ()
) -> int:
    """FLOPs of one step: 6 per MAC trained on, 2 per MAC of a forward pass alone.

    Args:
        with_gradient: for everything that is trained on, MACs of its forward pass for one example
            and the number of examples. A backward pass costs two forward passes.
        forward: ditto for what is only embedded: the super-batch by those who score it, the
            sub-batch by its teachers.
    """
    trained = sum(macs_each * examples for macs_each, examples in with_gradient)
    return 6 * trained + 2 * sum(macs_each * examples for macs_each, examples in forward)
