"""Small random models of ours, as the recipes build them."""

import dataclasses
import functools
import math

import numpy as np

from aced.data.images.transforms import ResizeConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.models.saved import TOKENIZER_FILES, Model, expected_shapes, nested
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig
from tests.convert import foreign

IMAGE = ImageConfig(size="mu", width=32, depth=2, mlp=64, heads=2, patch=8, resolution=30)
# name -> (tokenizer, ids in the vocabulary, content of the tokenizer's file)
TOKENIZERS = {
    "clip_bpe": (TokenizerConfig(length=16), 49408, None),
    "shapes": (TokenizerConfig(kind="shapes", length=16), None, None),
    "canonical": (TokenizerConfig(length=16, canonicalize=True, underscore="space"), 49408, None),
    # big_vision's own way: lower case, punctuation stays.
    "sentencepiece": (
        TokenizerConfig(kind="sentencepiece", path="tokenizer.model", length=16, pad_id=1),
        None,
        foreign.sentencepiece_model,
    ),
    "siglip": (
        TokenizerConfig(
            kind="sentencepiece", path="tokenizer.model", length=16, pad_id=1, canonicalize=True
        ),
        None,
        foreign.sentencepiece_model,
    ),
}


@functools.cache
def siglip(tokenizer="shapes"):
    """As configs/smoke.py and configs/small.py."""
    tokens, vocab_size, content = TOKENIZERS[tokenizer]
    content = content() if content else b""
    if vocab_size is None:
        vocab_size = 400 if content else get_tokenizer(tokens).vocab_size
    text = TextConfig(
        size="mu", width=24, depth=2, mlp=40, heads=2, length=16, vocab_size=vocab_size
    )
    config = TwoTowerConfig(image=IMAGE, text=text, init_bias=-4.0, tokenizer=tokens)
    return Model(config, params_of(config), content, "ours")


@functools.cache
def clip(activation="quick_gelu", tokenizer="clip_bpe"):
    tokens, _, _ = TOKENIZERS[tokenizer]
    image = dataclasses.replace(
        IMAGE, pool="cls", pre_norm=True, patch_bias=False, activation=activation, norm_eps=1e-5
    )
    text = TextConfig(
        size="mu", width=24, depth=2, mlp=40, heads=2, length=16, vocab_size=49408, pool="eot"
    )
    text = dataclasses.replace(
        text, causal=True, activation=activation, norm_eps=1e-5, head_bias=False
    )
    config = TwoTowerConfig(
        image=image,
        text=text,
        embed_dim=20,
        init_scale=14.0,
        init_bias=None,
        tokenizer=tokens,
        resize=ResizeConfig("crop"),
    )
    return Model(config, params_of(config), b"", "ours")


def params_of(config, seed=0):
    """Host arrays, every one away from its special initial values; norms near one."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for name, shape in sorted(expected_shapes(config).items()):
        # Not larger than keeps a deep tower's numbers well conditioned.
        std = shape[-2] ** -0.5 if name.endswith("kernel") else 0.15
        noise = std * rng.standard_normal(shape, np.float32)
        leaves[name] = np.asarray(noise + name.endswith("scale"), np.float32)
    leaves["t"] = np.float32(math.log(config.init_scale)) + leaves["t"]
    return nested(leaves)


def changed(model, part=None, **changes):
    """`model` with other settings, and parameters that fit them."""
    config = model.config
    if part is not None:
        changes = {part: dataclasses.replace(getattr(config, part), **changes)}
    config = dataclasses.replace(config, **changes)
    content = model.tokenizer if config.tokenizer.path else b""
    assert not config.tokenizer.path or config.tokenizer.path in TOKENIZER_FILES.values()
    return Model(config, params_of(config), content, "ours")
