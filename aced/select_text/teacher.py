"""The teacher's text tower on the mesh, and its cached features of the training images."""

import dataclasses
import json
from collections.abc import Callable

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from aced.cache import Cache, fingerprint
from aced.config import ConfigError, flatten
from aced.data.tokenizers import Tokenizer, get_tokenizer
from aced.methods.frozen import CheckpointOf, FrozenConfig, load_model
from aced.models.two_tower import TwoTower
from aced.parallel import mesh as meshes
from aced.parallel import rules

_READ = 1 << 16  # rows of features per read


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A loaded text tower."""

    embed: Callable[[PyTree, Int[Array, "m l"]], Float[Array, "m d"]]
    params: PyTree  # on the mesh
    tokenizer: Tokenizer
    width: int
    fingerprint: dict[str, str]  # weights, tokenizer, and the settings of its text tower


def load(item: CheckpointOf, mesh: Mesh) -> Teacher:
    """Loads the text tower of a run or model folder.

    Raises:
        ConfigError: the model does not exist, or its tokenizer does not fit it.
        CheckpointError: the run has no such checkpoint.
    """
    resolved = FrozenConfig(item.checkpoint, item.which, item.parameters).resolve("")
    model = resolved.model
    tokenizer = get_tokenizer(model.tokenizer)
    model.check_tokenizer(tokenizer)
    whole = load_model(resolved, None)
    # The settings that change a sentence's embedding beside weights and tokenizer.
    settings = flatten({"text": dataclasses.asdict(model.text), "dtype": model.dtype})
    about = {
        "weights": fingerprint.of_weights(whole),
        "tokenizer": fingerprint.of_tokenizer(model.tokenizer),
        "text": json.dumps(settings, sort_keys=True),
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


def open_features(folder: str, teacher: Teacher) -> Cache:
    """Opens the cached image features of the same teacher.

    Raises:
        CacheError: the cache is missing or incomplete.
        ConfigError: the cache has no image features of whole pictures, or is of another model.
    """
    cache = Cache(folder)
    plan = cache.description.plan
    if not plan.has("image"):
        raise ConfigError(
            f"--features={folder} has no image features; make it with --towers=image or both."
        )
    if plan.augmentations:
        raise ConfigError(
            f"--features={folder} are of {plan.augmentations} stored augmentations of each "
            "picture; choose a cache of whole pictures, made with data.augmentations = 0."
        )
    expected = {name: teacher.fingerprint[name] for name in ("weights", "tokenizer")}
    if lines := plan.other_fingerprints(expected):
        raise ConfigError(
            f"--features={folder} were made by another model than --teacher: {'; '.join(lines)}. "
            "Choose the cache that `python -m aced.cache` made with this teacher."
        )
    if len(cache.missing) == plan.examples:
        raise ConfigError(f"--features={folder} has no image that could be embedded.")
    return cache


def image_ids(cache: Cache) -> Int[np.ndarray, " N"]:
    """The examples with image features, ascending."""
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
    """Shards the features [images width] over the mesh, padded with zeros to `rows`.

    `rows` is a multiple of the shards. `read` returns the features of the images with ascending
    numbers; each process reads the rows of its own devices.
    """

    def part(index: tuple[slice, ...]) -> Float[np.ndarray, "n d"]:
        start, stop, _ = index[0].indices(rows)
        out = np.zeros((stop - start, width), np.float32)
        for first in range(start, min(stop, images), _READ):
            places = np.arange(first, min(first + _READ, stop, images))
            out[first - start : first - start + len(places)] = read(places)
        return out

    return jax.make_array_from_callback((rows, width), meshes.by_example(mesh), part)
