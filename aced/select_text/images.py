"""The images' features on the mesh, compared with blocks of sentences."""

import dataclasses
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from aced.parallel import distributed
from aced.parallel import mesh as meshes
from aced.select_text import neighbours, teacher
from aced.select_text.config import SelectTextConfig
from aced.select_text.neighbours import Block, Neighbours
from aced.select_text.sentences import halves, hashes


@dataclasses.dataclass(frozen=True)
class Images:
    """The features of N images, and the search for their nearest sentences."""

    teacher: teacher.Teacher
    search: neighbours.Search
    features: Float[Array, "rows d"]  # by example
    count: int  # N; the rows after them are zero
    digest: str  # of the features

    @property
    def block(self) -> int:
        """Sentences of a block that this process provides."""
        return len(meshes.local_rows(self.search.mesh, self.search.block))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the teacher and the features."""
        teachers = {f"teacher_{name}": value for name, value in self.teacher.fingerprint.items()}
        return teachers | {"features": self.digest}

    def see(self, found: Neighbours, texts: list[str]) -> Neighbours:
        """Compares all images with the next block: up to `block` sentences of every process.

        Returns when the devices are done. The buffers of `found` are donated.
        """
        filling = self.block - len(texts)
        hashed = np.zeros((self.block, 2), np.uint32)
        hashed[: len(texts)] = halves(hashes(texts))
        local = {
            "text": self.teacher.tokenizer([*texts, *[""] * filling]),
            "hash": hashed,
            "valid": np.arange(self.block) < len(texts),
        }
        block = Block(**meshes.global_batch(local, self.search.mesh))
        found = self.search.step(found, self.teacher.params, self.features, block)
        return jax.block_until_ready(found)

    def similarity(self, texts: Iterable[str]) -> dict[str, float]:
        """Mean similarity of the images to their nearest sentence, and to their k nearest.

        All processes call this, each with its part of the sentences.
        """
        found, texts = self.search.empty(), iter(texts)
        while True:
            block = list(itertools.islice(texts, self.block))
            if not distributed.anywhere(bool(block)):
                break
            found = self.see(found, block)

        @jax.jit
        def means(score: Float[Array, "rows k"]) -> tuple[Array, Array]:
            is_valid = (score > -jnp.inf) & (jnp.arange(score.shape[0]) < self.count)[:, None]
            scores = jnp.where(is_valid, score, 0)

            def total(x: Array, places: int) -> Array:
                # By tiles first, since a running sum of very many numbers is inexact in float32.
                tiles = x[:, :places].reshape(-1, self.search.tile, places)
                return tiles.sum(axis=(1, 2), dtype=jnp.float32).sum()

            return tuple(total(scores, n) / total(is_valid, n) for n in (1, score.shape[1]))

        first, all_k = means(found.score)
        return {"nearest": float(first), "k_nearest": float(all_k)}


def open_images(config: SelectTextConfig, mesh: Mesh) -> Images:
    """Loads the teacher's text tower, and the features of all images onto the mesh.

    Raises:
        ConfigError: the model does not exist, or the features are of another model.
        CacheError: the features are missing or damaged.
    """
    tower = teacher.load(config.checkpoint, mesh)
    cache = teacher.open_features(config.features, tower)
    ids = teacher.image_ids(cache)
    search = neighbours.build(
        tower.embed, mesh, images=len(ids), k=config.k, block=config.block, tile=config.tile
    )

    def read(places: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n d"]:
        return cache.read(ids[places], np.zeros(len(places), np.int64))["zimg"]

    features = teacher.place_features(read, len(ids), search.rows, tower.width, mesh)
    return Images(tower, search, features, len(ids), cache.description.digest)
