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
    filter_ratio: float = 0.8
    settings: str = "{}"  # JSON of further settings, by their path below `method.`


def parse(run: Run, depth: int = 2, width: int = 64) -> aced_train.TrainConfig:
    """The settings of a run, by the recipe `smoke`."""
    config = smoke.run(depth=depth, width=width, steps=run.steps, seed=run.seed)
    config.batch_size = run.batch_size
    config.method.model.init_bias = -math.log(run.batch_size)
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

    def model(self, depth: int, width: int):
        """The towers of a size."""
        return parse(Run("iid"), depth, width).method.model

    @functools.lru_cache(maxsize=2)  # noqa: B019 the bench lives as long as the program
    def pool(self, wrong: float) -> pools.Pool:
        """What learners are trained on."""
        return pools.shapes(self._folder, self.model(2, 64), size=self._pairs, wrong=wrong, seed=0)

    def prepare(self, run: Run) -> None:
        """Makes what the run reads and others read, too."""
        _ = self.pool(run.wrong), self.val
        if methods.uses_reference(run.method):
            self.reference(run.reference, run.wrong)

    @functools.cached_property
    def val(self) -> pools.Pool:
        """Clean pairs."""
        return pools.shapes(
            self._folder, self.model(2, 64), size=VAL_PAIRS, wrong=0.0, seed=0, split="val"
        )

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def reference(self, size: str, wrong: float) -> training.Cached:
        """A reference's embeddings of a pool; it has seen other, clean scenes."""
        depth, width = (int(number) for number in size.split("x"))
        model = self.model(depth, width)
        file = self._folder / f"embeddings-{size}-{self._reference_steps}-{self._pairs}-{wrong}.npz"
        if not file.exists():
            found = training.cached(model, self._parameters(size, model), self.pool(wrong))
            part = file.with_suffix(".part.npz")
            np.savez(part, zimg=found.zimg, ztxt=found.ztxt, scale=found.scale, bias=found.bias)
            part.rename(file)
        with np.load(file, allow_pickle=False) as kept:
            scale, bias = float(kept["scale"]), float(kept["bias"])
            return training.Cached(model, kept["zimg"], kept["ztxt"], scale, bias)

    def _parameters(self, size: str, model):
        file = self._folder / f"reference-{size}-{self._reference_steps}-{self._pairs}.msgpack"
        if not file.exists():
            run = Run("iid", wrong=0.0, steps=self._reference_steps, seed=1000)
            settings = parse(run, *(int(number) for number in size.split("x")))
            seen = pools.shapes(self._folder, model, size=self._pairs, wrong=0.0, seed=11)
            params, rows = training.train(
                settings.method, settings.optimizer, seen, self.val, None,
                batch_size=run.batch_size, steps=run.steps, seed=run.seed,
            )  # fmt: skip
            print("reference", size, rows[-1], flush=True)
            file.write_bytes(serialization.to_bytes(params))
        return jax.device_put(serialization.msgpack_restore(file.read_bytes()))

    def train(self, run: Run) -> list[dict[str, Any]]:
        """The rows of a run."""
        settings = parse(run)
        method, reference = settings.method, None
        if methods.uses_reference(run.method):
            reference = self.reference(run.reference, run.wrong)
            method = dataclasses.replace(method, reference=reference.config)
        _, rows = training.train(
            method, settings.optimizer, self.pool(run.wrong), self.val, reference,
            batch_size=run.batch_size, steps=run.steps, seed=run.seed,
        )  # fmt: skip
        return rows
