"""The methods side by side at a scale that a CPU cannot reach, over pairs in the device's memory.

    python -m benchmarks.device.methods --out=methods.csv --work=/tmp/work --seconds=300

Every method trains the same learner, a ViT-Ti and a Ti text tower, for equal steps of 1,024 pairs,
of 64 px in patches of 8; those that select read 5,120 a step. The reference, of size S, is trained
on clean pairs and embeds the pool once. Icons are trained on where `pack.py` has packed them, then
scenes; for each, all methods by one seed, then by the next. A run's rows, one an evaluation, are
written when it ends, and a run that has rows is not run again; nor is one begun for which no time
seems left.

`flops` counts scoring and the learner, not the reference, whose embeddings are made once; `r1` is
the mean of R@1 from image to text and back; `noise` the share of noisy pairs among those that were
trained on.
"""

import argparse
import dataclasses
import math
import pathlib
import time

import jax
import numpy as np
from jaxtyping import PyTree

from aced.config import to_config
from aced.data.tokenizers import get_tokenizer
from aced.train.config import TrainConfig, parse
from benchmarks.device import pools, training
from benchmarks.device.pool import Pool
from benchmarks.device.rows import Rows
from configs import methods, smoke

METHODS = ("iid", "kd", "i_acid", "h_acid", "aced")
KEY = ("data", "method", "seed", "batch", "total_steps", "step")
COLUMNS = (*KEY, "examples_trained", "flops", "r1", "noise", "loss", "seconds", "device")
REFERENCE, REFERENCE_SEED = "reference", 1000
GUESS = 60.0  # seconds of a run, before any has been seen


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    learner: str = "Ti"
    reference: str = "S"
    batch: int = 1024  # b, examples trained on per step
    steps: int = 600
    reference_steps: int = 500
    pairs: int = 100_000  # scenes to train on
    clean: int = 20_000  # scenes that the reference is trained on
    val: int = 1000
    chunks: int = 16
    seeds: tuple[int, ...] = (0, 1, 2)


TINY = Scale(
    learner="mu",
    reference="mu",
    batch=16,
    steps=4,
    reference_steps=4,
    pairs=200,
    clean=64,
    val=32,
    chunks=2,
    seeds=(0,),
)


def settings(
    scale: Scale, data: str, method: str, *, size: str, steps: int, seed: int
) -> TrainConfig:
    """The settings of a run, by the recipe `smoke`."""
    config = smoke.run(depth=1, width=32, steps=steps, seed=seed)
    config.batch_size = scale.batch
    model = config.method.model
    for tower in (model.image, model.text):
        tower.size = size
        tower.width = None
        tower.depth = None
        tower.mlp = None
        tower.heads = None
    model.image.resolution = pools.RESOLUTION
    model.image.patch = 8
    tokenizer = pools.TOKENIZERS[data]
    model.tokenizer = to_config(tokenizer)
    model.text.length = tokenizer.length
    model.text.vocab_size = get_tokenizer(tokenizer).vocab_size
    model.init_bias = -math.log(scale.batch)
    model.dtype = "bfloat16"
    methods.apply(config, method, filter_ratio=0.8, weight=1.0)
    smoke.select(config.method.selection)
    config.method.selection.chunks = scale.chunks
    config.method.selection.strata = 1
    config.method.reference.checkpoint = "in memory"
    return parse(config)


class Bench:
    """The runs on one data set."""

    def __init__(self, data: str, found: pools.Pools, scale: Scale, work: pathlib.Path, rows: Rows):
        self._data, self._pools, self._scale, self._rows = data, found, scale, rows
        self._file = work / f"{data}-{scale.reference}.npz"  # the reference's embeddings

    def missing(self) -> list[tuple[str, int]]:
        """The runs that are still to be made, (method, seed), the reference's first."""
        scale = self._scale
        wanted = {"data": self._data, "batch": scale.batch, "total_steps": scale.steps}
        runs = [
            (method, seed)
            for seed in scale.seeds
            for method in METHODS
            if not self._rows.find(method=method, seed=seed, **wanted)
        ]
        needs = any(methods.uses_reference(method) for method, _ in runs)
        return [(REFERENCE, REFERENCE_SEED), *runs] if needs and not self._file.exists() else runs

    def run(self, method: str, seed: int) -> None:
        """Makes a run and adds its rows."""
        scale = self._scale
        if method == REFERENCE:
            size, steps = scale.reference, scale.reference_steps
            of = settings(scale, self._data, "iid", size=size, steps=steps, seed=seed)
            params = self._train(method, of, self._pools.clean, None)
            made = training.cached(of.method.model, params, self._pools.train)
            part = self._file.with_suffix(".part.npz")
            np.savez(part, zimg=made.zimg, ztxt=made.ztxt, scale=made.scale, bias=made.bias)
            part.replace(self._file)
        else:
            size, steps = scale.learner, scale.steps
            of = settings(scale, self._data, method, size=size, steps=steps, seed=seed)
            reference = self._reference() if methods.uses_reference(method) else None
            self._train(method, of, self._pools.train, reference)

    def _reference(self) -> training.Cached:
        size, steps = self._scale.reference, self._scale.reference_steps
        of = settings(self._scale, self._data, "iid", size=size, steps=steps, seed=REFERENCE_SEED)
        with np.load(self._file, allow_pickle=False) as found:
            scale, bias = float(found["scale"]), float(found["bias"])
            return training.Cached(of.method.model, found["zimg"], found["ztxt"], scale, bias)

    def _train(
        self,
        method: str,
        of: TrainConfig,
        pool: Pool,
        reference: training.Cached | None,
    ) -> PyTree:
        """Trains by these settings, adds the rows, and returns the parameters."""
        config = of.method
        if reference is not None:
            config = dataclasses.replace(config, reference=reference.config)
        params, found = training.train(
            config, of.optimizer, pool, self._pools.val, reference,
            batch_size=of.batch_size, steps=of.total_steps, seed=of.seed,
        )  # fmt: skip
        about = {"data": self._data, "method": method, "seed": of.seed, "batch": of.batch_size}
        about |= {"total_steps": of.total_steps, "device": jax.devices()[0].device_kind}
        self._rows.put([about | row for row in found])
        print(about, found[-1], flush=True)
        return params


def make(bench: Bench, end: float) -> bool:
    """Makes the runs that are missing; whether all of them are there now.

    Args:
        bench: whose runs.
        end: by `time.monotonic`; no run is begun that would likely last longer.
    """
    took: dict[str, float] = {}
    for method, seed in bench.missing():
        start = time.monotonic()
        if start + took.get(method, max(took.values(), default=GUESS)) > end:
            return False
        bench.run(method, seed)
        took[method] = time.monotonic() - start
    return True


def main() -> None:
    """Makes the runs of both data sets, until time is over."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the CSV")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="for references")
    parser.add_argument("--icons", required=True, type=pathlib.Path, help="what pack.py writes")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all runs together")
    parser.add_argument("--tiny", action="store_true", help="a dry run with tiny models")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    scale, rows = TINY if args.tiny else Scale(), Rows(args.out, COLUMNS, KEY)
    for data in ("icons", "shapes"):
        if data == "icons" and not args.icons.exists():
            print("icons are left out: they are not packed", flush=True)
            continue
        if data == "icons":
            found = pools.read_icons(args.icons)
        else:
            found = pools.shapes(scale.pairs, scale.clean, scale.val)
        if not make(Bench(data, found, scale, args.work, rows), end):
            print(f"{data}: time is over; the same command goes on", flush=True)
            return


if __name__ == "__main__":
    main()
