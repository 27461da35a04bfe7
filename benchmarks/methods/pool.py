"""Pairs in memory, in the form that a model reads, and their embeddings."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, UInt8

from aced.data.shapes import Shapes, ShapesConfig
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


def shapes(
    folder: pathlib.Path, model: two_tower.TwoTowerConfig, *, size: int, wrong: float, seed: int,
    split: str = "train",
) -> Pool:  # fmt: skip
    """The first `size` embedded scenes, with this share of wrong captions; kept in `folder`."""
    file = folder / f"shapes-{split}-{size}-{wrong}-{seed}.npz"
    if not file.exists():
        resolution = model.image.resolution
        config = ShapesConfig(size=size, seed=seed, split=split, resolution=resolution, wrong=wrong)
        drawn = scenes(config, model.tokenizer, range(size))
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npz")
        np.savez(part, image=drawn.image, text=drawn.text, is_noisy=drawn.is_noisy)
        part.rename(file)
    with np.load(file, allow_pickle=False) as found:
        return Pool(**found)


def reduced(pool: Pool, resolution: int) -> Pool:
    """The same pairs with smaller pictures: means over cells."""
    n, side = pool.image.shape[:2]
    if side == resolution:
        return pool
    cell = side // resolution
    image = pool.image.reshape(n, resolution, cell, resolution, cell, 3).mean((2, 4), np.float32)
    return dataclasses.replace(pool, image=image.round().astype(np.uint8))


@functools.cache
def _embedding(model: two_tower.TwoTowerConfig):
    return jax.jit(functools.partial(two_tower.embed, model))


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
