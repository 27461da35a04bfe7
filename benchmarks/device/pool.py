"""Pairs in memory, in the form that a model reads, and their embeddings."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, UInt8

from aced.data.shapes.scenes import Shapes, ShapesConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.models import two_tower


@dataclasses.dataclass(frozen=True)
class Pool:
    """N pairs."""

    image: UInt8[np.ndarray, "N h w 3"]
    text: Int[np.ndarray, "N l"]
    is_noisy: Bool[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.image)


def scenes(config: ShapesConfig, tokenizer: TokenizerConfig, places: Iterable[int]) -> Pool:
    """Draws these embedded scenes."""
    source, tokenize = Shapes(config), get_tokenizer(tokenizer)
    records = [source[i] for i in places]
    return Pool(
        image=np.stack([record["image"] for record in records]),
        text=tokenize([record["texts"][0] for record in records]),
        is_noisy=np.array([record["is_noisy"] for record in records]),
    )


@functools.cache
def _embedding(model: two_tower.TwoTowerConfig):
    return jax.jit(model.embed)


def embed(
    model: two_tower.TwoTowerConfig, params: PyTree, pool: Pool, batch: int = 1000
) -> tuple[Float[np.ndarray, "N d"], Float[np.ndarray, "N d"]]:
    """Embeddings of all pictures and texts."""
    run, found = _embedding(model), []
    for start in range(0, len(pool), batch):
        e = run(params, pool.image[start : start + batch], pool.text[start : start + batch])
        found.append((np.asarray(e.zimg), np.asarray(e.ztxt)))
    zimg, ztxt = (np.concatenate(part) for part in zip(*found, strict=True))
    return zimg, ztxt
