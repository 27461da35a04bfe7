"""FLOPs of models and steps, computed from their settings.

Counts the multiply-adds (MACs) of matrix products: patch embedding, blocks with their attention
scores, pooling head, projection. One MAC is two FLOPs. As in published numbers, norms, activations
and other elementwise operations, the loss, selection, the optimizer and rematerialisation are not
counted.
"""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from aced.models.base import ModelConfig
from aced.models.coca import CoCaConfig
from aced.models.presets import Size
from aced.models.swin_config import SwinConfig
from aced.models.text import TextConfig
from aced.models.vit import ImageConfig


def macs_blocks(dims: Size, tokens: int) -> int:
    """MACs of all blocks for one sequence. Causal masks save nothing."""
    d = dims.width
    weights = 4 * d * d + 2 * d * dims.mlp  # q, k, v, out; the MLP
    scores = 2 * tokens * d  # q.k and the weighted sum of v
    return dims.depth * tokens * (weights + scores)


def macs_image(config: ImageConfig, embed_dim: int | None = None) -> int:
    """MACs of the image tower's forward pass for one image; None: no projection."""
    if config.architecture == "swin":
        return _macs_swin(config.swin, config.resolution, embed_dim)
    dims, d, n = config.dims, config.dims.width, config.grid**2
    total = n * 3 * config.patch**2 * d + macs_blocks(dims, config.tokens)
    if config.pool == "map":
        # k and v of every token; q is shared by the batch, so not counted; scores; out; MLP.
        total += 2 * n * d * d + 2 * n * d + d * d + 2 * d * dims.mlp
    return total + d * (embed_dim or 0)


def _macs_swin(config: SwinConfig, resolution: int, embed_dim: int | None) -> int:
    """Padded tokens count in projections and attention, but not in the MLP."""
    stages = config.stages(resolution)
    total = stages[0].grid ** 2 * 3 * config.patch**2 * stages[0].width
    for i, stage in enumerate(stages):
        d, tokens = stage.width, stage.grid**2
        if i:
            total += tokens * (4 * d // 2) * d  # merging four tokens of half the width
        attention = 4 * d * d + 2 * stage.window**2 * d
        total += stage.depth * (stage.padded**2 * attention + tokens * 2 * d * stage.mlp)
    return total + stages[-1].width * (embed_dim or 0)


def macs_text(config: TextConfig, embed_dim: int, tokens: int | None = None) -> int:
    """MACs of the text tower's forward pass for one text of `tokens`; None: the full length."""
    return macs_blocks(config.dims, tokens or config.length) + config.dims.width * embed_dim


def macs(config: ModelConfig, tokens: int | None = None) -> tuple[int, int]:
    """MACs of embedding (one image, one text); `tokens` None: the tokenizer's length."""
    tokens = tokens or min(config.tokenizer.length, config.text.length)
    if isinstance(config, CoCaConfig):
        parts = macs_coca(config, tokens)
        return parts.image + parts.generative + parts.contrastive, parts.unimodal
    return macs_image(config.image, config.embed_dim), macs_text(config.text, config.width, tokens)


class CoCaMacs(NamedTuple):
    """MACs of CoCa's parts in one forward pass of (one image, one text)."""

    image: int  # the encoder
    generative: int  # the generative pooler
    contrastive: int  # the contrastive pooler, with the projection of the image's embedding
    unimodal: int  # with the projection of the text's embedding
    multimodal: int
    softmax: int
    head: int  # the pooler of answers, for one image
    classifier: int  # for all images of an answer

    def answering(self, pictures: int) -> int:
        """MACs of an answer about `pictures` images."""
        each = self.image + self.generative + self.multimodal + self.head
        return pictures * each + self.unimodal + self.classifier

    @property
    def captioning(self) -> int:
        """MACs of captioning, for all words of a text."""
        return self.image + self.generative + self.unimodal + self.multimodal + self.softmax


def macs_coca(config: CoCaConfig, words: int | None = None) -> CoCaMacs:
    """MACs of CoCa, padding included. Masks save nothing."""
    text, d, n = config.text, config.text.dims.width, config.image.out_tokens
    words = words or min(config.tokenizer.length, text.length)
    # The decoder reads q tokens of e channels: from the queries, or else from the encoder.
    q, e = (config.queries, d) if config.queries else (n, config.image.out_width)
    unimodal = dataclasses.replace(text.dims, depth=text.unimodal)
    multimodal = dataclasses.replace(text.dims, depth=text.multimodal)
    # k and v of the image tokens; q is shared by the batch, so not counted; scores; out.
    generative = 2 * n * config.image.out_width * d + 2 * q * n * d + q * d * d
    contrastive = 2 * q * e * d + 2 * q * d + d * d
    head = 2 * words * d * d + 2 * words * d + d * d
    hidden, pooled = config.head_hidden, config.pictures * d
    classifier = pooled * hidden + (hidden or pooled) * config.classes
    # k and v of the image tokens; q and out of the words; scores.
    cross = 2 * q * e * d + 2 * words * d * d + 2 * words * q * d
    return CoCaMacs(
        image=macs_image(config.image),
        generative=generative if config.queries else 0,
        contrastive=contrastive + d * (config.embed_dim or 0),
        unimodal=macs_blocks(unimodal, words + 2) + d * (config.embed_dim or 0),
        multimodal=macs_blocks(multimodal, words) + text.multimodal * cross,
        softmax=words * d * text.vocab_size,
        head=head if config.classes else 0,
        classifier=classifier,
    )


def step_flops(
    with_gradient: Iterable[tuple[int, int]], forward: Iterable[tuple[int, int]] = ()
) -> int:
    """FLOPs of one step: 6 per MAC with gradient, 2 per MAC of forward passes only.

    A backward pass costs two forward passes.

    Args:
        with_gradient: (MACs of a forward pass for one example, number of examples), for each part
            that is trained.
        forward: the same for parts without gradient: scoring of the super-batch, teachers.
    """
    trained = sum(macs_each * examples for macs_each, examples in with_gradient)
    return 6 * trained + 2 * sum(macs_each * examples for macs_each, examples in forward)
