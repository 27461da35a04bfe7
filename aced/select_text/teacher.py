"""The teacher's two halves: its text tower on the mesh, and its features of the training images."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from aced.cache import Cache, fingerprint
from aced.config import ConfigError, flatten
from aced.data.tokenizers import Tokenizer, get_tokenizer
from aced.methods.frozen import CheckpointOf, FrozenConfig, load_model
from aced.models.two_tower import TwoTower, TwoTowerConfig
from aced.parallel import mesh as meshes
from aced.parallel import rules

_READ = 1 << 16  # rows of features that are read from the cache at once


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A text tower that is ready to embed."""

    embed: Callable[[PyTree, Int[Array, "m l"]], Float[Array, "m d"]]
    params: PyTree  # on the mesh
    tokenizer: Tokenizer
    width: int
    fingerprint: dict[str, str]  # weights, tokenizer, and the settings of its text tower


def load(item: CheckpointOf, mesh: Mesh) -> Teacher:
    """Loads the text tower of a run or model folder.

    Raises:
        ConfigError: there is none, or its tokenizer does not fit it.
        CheckpointError: the run has no such checkpoint.
    """
    resolved = FrozenConfig(item.checkpoint, item.which, item.parameters).resolve("")
    model = resolved.model
    tokenizer = get_tokenizer(model.tokenizer)
    model.check_tokenizer(tokenizer)
    whole = load_model(resolved, None)
    about = {
        "weights": fingerprint.of_weights(whole),
        "tokenizer": fingerprint.of_tokenizer(model.tokenizer),
        "text": _settings(model),
    }
    text_only = {name: value for name, value in whole.items() if name != "image"}
    places = rules.shardings(text_only, mesh)
    params = jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, lambda index: x[index]),
        jax.tree.map(np.asarray, text_only),
        places,
    )
    tower = TwoTower(model)

    def embed(params: PyTree, text: Int[Array, "m l"]) -> Float[Array, "m d"]:
        return tower.apply({"params": params}, text, method="encode_text")

    return Teacher(embed, params, tokenizer, model.width, about)


def _settings(model: TwoTowerConfig) -> str:
    """What decides a sentence's embedding beside weights and tokenizer."""
    settings = flatten({"text": dataclasses.asdict(model.text), "dtype": model.dtype})
    return json.dumps(settings, sort_keys=True)


def open_features(folder: str, teacher: Teacher) -> Cache:
    """Opens the cached image features of the same teacher.

    Raises:
        CacheError: there is no complete cache.
        ConfigError: it has no image features, or is of another model.
    """
    cache = Cache(folder)
    plan = cache.description.plan
    if not plan.has("image"):
        raise ConfigError(
            f"--features={folder} has no image features; make it with --towers=image or both."
        )
    expected = {name: teacher.fingerprint[name] for name in ("weights", "tokenizer")}
    if lines := plan.other_fingerprints(expected):
        raise ConfigError(
            f"--features={folder} are of another model than --teacher: {'; '.join(lines)}. Choose "
            "the cache that `python -m aced.cache` made with this teacher."
        )
    if len(cache.missing) == plan.examples:
        raise ConfigError(f"--features={folder} has no image that could be embedded.")
    return cache


def image_ids(cache: Cache) -> Int[np.ndarray, " N"]:
    """The examples that have image features, ascending."""
    ids = np.arange(cache.description.plan.examples)
    missing = np.fromiter(cache.missing, np.int64, len(cache.missing))
    if len(missing):
        logging.warning("%d images have no features and choose no sentences.", len(missing))
    return np.delete(ids, missing)


def place_features(
    read: Callable[[Int[np.ndarray, " n"]], Float[np.ndarray, "n d"]],
    images: int,
    rows: int,
    width: int,
    mesh: Mesh,
) -> Float[Array, "rows d"]:
    """Puts the features of `images` images on the mesh by example; zeros fill up to `rows`.

    Args:
        read: gives the features of the images at some places (0 to `images`), ascending.
        images: N.
        rows: N, filled up to what the devices can share.
        width: d.
        mesh: whose devices share the rows. Each process reads what its devices hold.
    """

    def part(index: tuple[slice, ...]) -> Float[np.ndarray, "n d"]:
        start, stop, _ = index[0].indices(rows)
        out = np.zeros((stop - start, width), np.float32)
        for first in range(start, min(stop, images), _READ):
            places = np.arange(first, min(first + _READ, stop, images))
            out[first - start : first - start + len(places)] = read(places)
        return out

    return jax.make_array_from_callback((rows, width), meshes.by_example(mesh), part)


def reader_of(cache: Cache, ids: Int[np.ndarray, " N"]) -> Callable[[Any], Any]:
    """The `read` of `place_features` for the examples `ids` of a cache."""
    return lambda places: cache.read(ids[places], np.zeros(len(places), np.int64))["zimg"]
