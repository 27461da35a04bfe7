"""Hashes of what embeddings depend on: weights, tokenizer, decoding, data.

The description of a cache has the architecture and the preprocessing themselves, so that an error
can name the setting that differs.
"""

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from aced.data.records import Source
from aced.data.sources import DataConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.parallel import rules

# Probes for case, punctuation, entities, white space, scripts, emoji and length.
PROBE = (
    "A photo of a Red CIRCLE, on the left!",
    "café &amp; naïve Übergröße",
    "  many\t spaces\n and lines  ",
    "水 русский مرحبا 😀",
    "don't 3,141.59 #hash_tag http://a.b/c?d=e <b>tag</b>",
    "word " * 200,
    "",
)


def of_weights(params: PyTree) -> str:
    """The sha256 of names, shapes, types and values of all parameters, given as host arrays."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for name, leaf in sorted((rules.name_of(path), leaf) for path, leaf in leaves):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def of_placed(params: PyTree) -> str:
    """As `of_weights`, for arrays that are sharded over devices or hosts.

    Hashes the sum of bits_i (2 i + 1) modulo 2^32 of every parameter, which does not depend on the
    sharding. It detects other weights, but not deliberate collisions.
    """
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_sum_of_bits, tree))(params))
    return of_weights(sums)


def _sum_of_bits(x: Array) -> UInt32[Array, ""]:
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


def of_tokenizer(config: TokenizerConfig) -> str:
    """The sha256 of the vocabulary file, if any, and of the ids of the probe texts.

    Raises:
        ConfigError: the file is missing or unreadable.
    """
    digest = hashlib.sha256(get_tokenizer(config)(PROBE).tobytes())
    if config.path:
        digest.update(pathlib.Path(config.path).read_bytes())
    return digest.hexdigest()


def of_decoding(data: DataConfig) -> str:
    """The settings of decoding that change pixels."""
    names = ("max_pixels", "decode", "thumbnails")
    return json.dumps({name: getattr(data, name) for name in names})


def of_inputs(source: Source, data: DataConfig) -> dict[str, str]:
    """The fingerprints of a run's input."""
    return {"data": source.fingerprint, "decode": of_decoding(data)}
