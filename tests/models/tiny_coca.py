"""A CoCa of two layers in each module for tests, with parameters away from their special values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from aced.models.coca import CoCaConfig
from aced.models.decoder import DecoderConfig
from aced.models.vit import ImageConfig

EOS = 3
# Image encoder and decoder differ in every number. 10 px are 2 whole patches of 4 and a rest.
TINY = CoCaConfig(
    image=ImageConfig(
        width=24, depth=2, mlp=40, heads=3, patch=4, resolution=10, pool="none", norm_eps=1e-5
    ),
    text=DecoderConfig(
        width=32, mlp=48, heads=4, unimodal=2, multimodal=2, vocab_size=20, length=7, eos_id=EOS
    ),
    queries=5,
    pooler_heads=2,
    embed_dim=12,
)


@functools.cache
def params(config=TINY, seed=0):
    """Random parameters, with noise on those that start at 0 or 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(config.init, jax.random.key(0))

    def one(path, x):
        noise = rng.standard_normal(x.shape)
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            noise = noise * 2 * x.shape[-2] ** -0.5
        if name.endswith("'scale']"):
            noise = 1 + 0.2 * noise
        if name == "['t']":
            noise = np.log(5)
        return jnp.asarray(noise, jnp.float32)

    return jax.tree.map_with_path(one, shapes)


def batch(b=3, seed=0, config=TINY):
    """Images and texts; the first text ends early, the second nowhere, the others anywhere."""
    rng = np.random.default_rng(seed)
    side, length = config.image.resolution, config.text.length
    text = rng.integers(EOS + 1, config.text.vocab_size, (b, length), np.int32)
    for row, end in enumerate([2, length, *rng.integers(0, length, b)][:b]):
        text[row, end:] = 0
        text[row, end : end + 1] = EOS
    image = rng.integers(0, 256, (b, side, side, 3), np.uint8)
    return jnp.asarray(image), jnp.asarray(text)
