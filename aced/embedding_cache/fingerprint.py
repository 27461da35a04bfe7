"""What embeddings depend on, as hashes: weights, tokenizer, decoding, data.

The architecture and the preprocessing are in the description of a cache as they are, so that a
difference can be named by its setting.
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from aced.data.records import Source
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.parallel import rules

# Telling texts: case, punctuation, entities, white space, scripts, emoji, length.
_PROBE = (
    "A photo of a Red CIRCLE, on the left!",
    "café &amp; naïve Übergröße",
    "  many\t spaces\n and lines  ",
    "水 русский مرحبا 😀",
    "don't 3,141.59 #hash_tag http://a.b/c?d=e <b>tag</b>",
    "word " * 200,
    "",
)


def of_weights(params: PyTree) -> str:
    """The sha256 of names, shapes, types and numbers of all parameters, as host arrays."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for name, leaf in sorted((rules.name_of(path), leaf) for path, leaf in leaves):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def of_tokenizer(config: TokenizerConfig) -> str:
    """The sha256 of the vocabulary file, if there is one, and of the ids of some telling texts.

    Raises:
        ConfigError: the file is missing or unreadable.
    """
    digest = hashlib.sha256(get_tokenizer(config)(_PROBE).tobytes())
    if config.path:
        digest.update(pathlib.Path(config.path).read_bytes())
    return digest.hexdigest()


def of_decoding(data: Any) -> str:
    """The settings of a `DataConfig` that decide which pixels a model sees."""
    names = ("max_pixels", "decode", "thumbnails")
    return json.dumps({name: getattr(data, name) for name in names})


def of_inputs(source: Source, data: Any) -> dict[str, str]:
    """What every run knows of what it reads."""
    return {"data": source.fingerprint, "decode": of_decoding(data)}
