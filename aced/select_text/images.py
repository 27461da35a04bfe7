"""The images on the mesh, with the teacher that shows them blocks of sentences."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from aced.parallel import distributed
from aced.parallel import mesh as meshes
from aced.select_text import neighbours, teacher
from aced.select_text.config import SelectTextConfig
from aced.select_text.neighbours import Block, Neighbours
from aced.select_text.sentences import halves, hashes


@dataclasses.dataclass(frozen=True)
class Images:
    """N images."""

    teacher: teacher.Teacher
    search: neighbours.Search
    features: Float[Array, "rows d"]  # by example
    count: int  # N; the rows behind are zero
    digest: str  # of the features

    @property
    def block(self) -> int:
        """Sentences of a block that this process brings."""
        return len(meshes.local_rows(self.search.mesh, self.search.block))

    def see(self, found: Neighbours, texts: list[str]) -> Neighbours:
        """Shows all images the next block: up to `block` sentences of every process, maybe none.

        Returns when the devices are done with it. The state that is given is used up.
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
        """How near the images are to their nearest sentence, and to their k nearest, on average.

        Args:
            texts: this process's part; all processes make this call.
        """
        found, texts = self.search.empty(), iter(texts)
        while True:
            block = list(itertools.islice(texts, self.block))
            if not distributed.anywhere(bool(block)):
                break
            found = self.see(found, block)

        @jax.jit
        def means(score: Float[Array, "rows k"]) -> tuple[Array, Array]:
            is_there = (score > -jnp.inf) & (jnp.arange(score.shape[0]) < self.count)[:, None]
            scores = jnp.where(is_there, score, 0)

            def total(x: Array, places: int) -> Array:
                # Of tiles first: float32 does not hold the running sum of very many numbers.
                tiles = x[:, :places].reshape(-1, self.search.tile, places)
                return tiles.sum(axis=(1, 2), dtype=jnp.float32).sum()

            return tuple(total(scores, n) / total(is_there, n) for n in (1, score.shape[1]))

        first, all_k = means(found.score)
        return {"nearest": float(first), "k_nearest": float(all_k)}


def open_images(config: SelectTextConfig, mesh: Mesh) -> Images:
    """Loads the teacher's text tower, and the features of all images onto the mesh.

    Raises:
        ConfigError: there is no such model, or the features are another one's.
        CacheError: the features are missing or damaged.
    """
    tower = teacher.load(config.checkpoint, mesh)
    cache = teacher.open_features(config.features, tower)
    ids = teacher.image_ids(cache)
    search = neighbours.build(
        tower.embed, mesh, images=len(ids), k=config.k, block=config.block, tile=config.tile
    )
    read = teacher.reader_of(cache, ids)
    features = teacher.place_features(read, len(ids), search.rows, tower.width, mesh)
    return Images(tower, search, features, len(ids), cache.description.digest)


def fingerprints(images: Images) -> Iterator[tuple[str, str]]:
    """What the choice depends on beside settings and corpus."""
    yield from ((f"teacher_{name}", value) for name, value in images.teacher.fingerprint.items())
    yield "features", images.digest
