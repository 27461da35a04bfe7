"""The pairs of the comparison: scenes, which are drawn here, and icons, which `pack` packs."""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import pathlib

import numpy as np
from jaxtyping import Int

from aced.data.shapes.scenes import ShapesConfig
from aced.data.tokenizers import TokenizerConfig
from benchmarks.device.pool import Pool, scenes

RESOLUTION = 64
TOKENIZERS = {
    "icons": TokenizerConfig(kind="clip_bpe", length=16),
    "shapes": TokenizerConfig(kind="shapes", length=20),
}
WRONG = 0.5  # share of the captions of scenes
_AT_ONCE = 2000  # scenes that a process draws
_FIELDS = [field.name for field in dataclasses.fields(Pool)]


@dataclasses.dataclass(frozen=True)
class Pools:
    """What is trained on, what is held out, and what a reference is trained on."""

    train: Pool
    val: Pool
    clean: Pool


def shapes(pairs: int, clean: int, val: int) -> Pools:
    """Scenes, half of them with captions of others; the reference's are other ones."""
    wanted = [
        ShapesConfig(size=pairs, wrong=WRONG, resolution=RESOLUTION),
        ShapesConfig(size=val, split="val", resolution=RESOLUTION),
        ShapesConfig(size=clean, seed=11, resolution=RESOLUTION),
    ]
    parts = [
        (config, range(start, min(start + _AT_ONCE, config.size)))
        for config in wanted
        for start in range(0, config.size, _AT_ONCE)
    ]
    configs, ranges = zip(*parts, strict=True)
    if len(parts) <= len(wanted):
        drawn = list(map(_draw, configs, ranges))
    else:
        context = multiprocessing.get_context("spawn")
        workers = len(os.sched_getaffinity(0))
        with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
            drawn = list(pool.map(_draw, configs, ranges))
    of_pool = itertools.groupby(zip(configs, drawn, strict=True), lambda part: part[0])
    return Pools(*(_joined([part for _, part in group]) for _, group in of_pool))


def _draw(config: ShapesConfig, places: range) -> Pool:
    return scenes(config, TOKENIZERS["shapes"], places)


def _joined(parts: list[Pool]) -> Pool:
    return Pool(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))


def write_icons(
    file: pathlib.Path, train: Pool, val: Pool, rows: Int[np.ndarray, " n"], text: np.ndarray
) -> None:
    """Writes pools, compressed; the clean one is rows of `train` with a `text` of their own."""
    arrays = {
        f"{prefix}_{name}": getattr(pool, name)
        for prefix, pool in (("train", train), ("val", val))
        for name in _FIELDS
    }
    np.savez_compressed(file, clean_rows=rows, clean_text=text, **arrays)


def read_icons(file: pathlib.Path) -> Pools:
    """What `write_icons` wrote."""
    with np.load(file, allow_pickle=False) as found:
        arrays = dict(found)
    train, val = (Pool(*(arrays[f"{of}_{name}"] for name in _FIELDS)) for of in ("train", "val"))
    rows, text = arrays["clean_rows"], arrays["clean_text"]
    return Pools(train, val, Pool(train.image[rows], text, np.zeros(len(rows), bool)))
