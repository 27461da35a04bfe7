"""A run by its settings, and the scenes and references that runs share."""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
from flax import serialization

from aced import train as aced_train
from benchmarks.methods import pool as pools
from benchmarks.methods import training
from configs import methods, smoke

VAL_PAIRS = 1000
NUMBERS = ("step", "examples_trained", "flops", "r1", "noise", "seconds")


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells a run from another one."""

    method: str  # of configs/methods.py
    wrong: float = 0.5  # share of wrong captions
    batch_size: int = 64
    steps: int = 3000
    seed: int = 0
    reference: str = "4x128"  # layers x channels
    resolution: int = 8  # pixels; a patch has 8
    filter_ratio: float = 0.8
    settings: str = "{}"  # JSON of further settings, by their path below `method.`


def parse(run: Run, depth: int = 2, width: int = 64) -> aced_train.TrainConfig:
    """The settings of a run, by the recipe `smoke`."""
    config = smoke.run(depth=depth, width=width, steps=run.steps, seed=run.seed)
    config.batch_size = run.batch_size
    config.method.model.init_bias = -math.log(run.batch_size)
    config.method.model.image.resolution = run.resolution
    methods.apply(config, run.method, filter_ratio=run.filter_ratio, weight=1.0)
    smoke.select(config.method.selection)
    config.method.selection.strata = 1
    config.method.update_from_flattened_dict(json.loads(run.settings))
    config.method.reference.checkpoint = "in memory"
    return aced_train.parse(config)


class Bench:
    """Pools and references, made once and kept in a folder."""

    def __init__(self, folder: str, pairs: int, reference_steps: int):
        self._folder = pathlib.Path(folder)
        self._pairs, self._reference_steps = pairs, reference_steps

    @functools.lru_cache(maxsize=2)  # noqa: B019 the bench lives as long as the program
    def pool(self, wrong: float, resolution: int) -> pools.Pool:
        """What learners are trained on."""
        return self._shapes(resolution, size=self._pairs, wrong=wrong, seed=0)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def val(self, resolution: int) -> pools.Pool:
        """Clean pairs."""
        return self._shapes(resolution, size=VAL_PAIRS, wrong=0.0, seed=0, split="val")

    def _shapes(self, resolution: int, **which: Any) -> pools.Pool:
        model = parse(Run("iid", resolution=smoke.RESOLUTION)).method.model
        return pools.reduced(pools.shapes(self._folder, model, **which), resolution)

    def prepare(self, run: Run) -> None:
        """Makes what the run reads and others read, too."""
        _ = self.pool(run.wrong, run.resolution), self.val(run.resolution)
        if methods.uses_reference(run.method):
            self.reference(run)

    def reference(self, run: Run) -> training.Cached:
        """The reference's embeddings of the run's pool; it has seen other, clean scenes."""
        return self._reference(run.reference, run.wrong, run.resolution)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _reference(self, size: str, wrong: float, resolution: int) -> training.Cached:
        name = f"{size}-{resolution}px-{self._reference_steps}-{self._pairs}"
        trained = Run(
            "iid", wrong=0.0, steps=self._reference_steps, seed=1000, resolution=resolution
        )
        settings = parse(trained, *(int(number) for number in size.split("x")))
        model, file = settings.method.model, self._folder / f"embeddings-{name}-{wrong}.npz"
        if not file.exists():
            params = self._parameters(name, settings, trained)
            found = training.cached(model, params, self.pool(wrong, resolution))
            part = file.with_suffix(".part.npz")
            np.savez(part, zimg=found.zimg, ztxt=found.ztxt, scale=found.scale, bias=found.bias)
            part.rename(file)
        with np.load(file, allow_pickle=False) as kept:
            scale, bias = float(kept["scale"]), float(kept["bias"])
            return training.Cached(model, kept["zimg"], kept["ztxt"], scale, bias)

    def _parameters(self, name: str, settings: aced_train.TrainConfig, run: Run):
        file = self._folder / f"reference-{name}.msgpack"
        if not file.exists():
            seen = self._shapes(run.resolution, size=self._pairs, wrong=0.0, seed=11)
            params, rows = training.train(
                settings.method, settings.optimizer, seen, self.val(run.resolution), None,
                batch_size=run.batch_size, steps=run.steps, seed=run.seed,
            )  # fmt: skip
            print("reference", name, rows[-1], flush=True)
            file.write_bytes(serialization.to_bytes(params))
        return jax.device_put(serialization.msgpack_restore(file.read_bytes()))

    def train(self, run: Run) -> list[dict[str, Any]]:
        """The rows of a run."""
        settings = parse(run)
        method, reference = settings.method, None
        if methods.uses_reference(run.method):
            reference = self.reference(run)
            method = dataclasses.replace(method, reference=reference.config)
        pool, val = self.pool(run.wrong, run.resolution), self.val(run.resolution)
        _, rows = training.train(
            method, settings.optimizer, pool, val, reference,
            batch_size=run.batch_size, steps=run.steps, seed=run.seed,
        )  # fmt: skip
        return rows
