"""What a cached reference saves: S learns, L is the reference, f = 0.8, on one core.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.cache \\
        --out=benchmarks/results/cache.csv

Real steps as the loop compiles them, float32, on random pixels and texts: ViT-S/16 and L/16 of full
depth, at 48 px and 8 tokens, so that a step takes seconds and the models' FLOPs are nearly in the
ratio that they have at 256 px. The case without a reference is selection by the learner's loss
alone, `hard_learner`; the cached one reads its embeddings from a cache on disk, int8, in each step,
which is in its time and, alone, in a row of its own.

Columns: `flops`, of a step, as training logs them; `flops_to_iid` and `cpu_to_iid`, over those of a
step of IID training on as many examples; `formula`, in learner forward passes with rho the
reference's FLOPs over the learner's, 1 + (1 + rho) / (3 (1 - f) u), where a cached reference has
rho = 0 (arXiv 2406.17711), for u = 1; `formula_u`, for the measured u, how many times more FLOPs a
second a forward pass of the super-batch does than the IID step does, from the row of that pass;
`cpu_to_hard`, over a step without any reference. CPU seconds of this process, the best of the
rounds, in which the cases take turns.
"""

import csv
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from aced.cache import Cache, description, entries, precision
from aced.cost import flops
from aced.data.tokenizers import TokenizerConfig
from aced.methods import scoring
from aced.methods.contrastive_settings import ContrastiveConfig
from aced.methods.frozen import FrozenConfig
from aced.methods.scoring import ScoringConfig
from aced.models import two_tower
from aced.models.text import TextConfig
from aced.models.vit import ImageConfig
from aced.parallel import mesh as meshes
from aced.selection import SelectionConfig
from aced.train import program
from aced.train.config import TrainConfig

SIZE, FILTER_RATIO, EXAMPLES = 64, 0.8, 4096  # b, f, and those of the cache on disk
FORWARD, READ = "forward pass of the super-batch", "reading a super-batch's embeddings"
COLUMNS = ("case", "flops", "flops_to_iid", "formula", "formula_u", "cpu_s", "cpu_to_iid")
COLUMNS += ("cpu_to_hard",)
_embed = jax.jit(scoring.embed, static_argnums=(0, 1))


def model(size: str) -> two_tower.TwoTowerConfig:
    """Two towers of a published size, at low resolution."""
    return two_tower.TwoTowerConfig(
        image=ImageConfig(size=size, patch=16, resolution=48),
        text=TextConfig(size=size, vocab_size=1000, length=8),
        tokenizer=TokenizerConfig(length=8),
    )


LEARNER, REFERENCE = model("S"), model("L")
CACHED = FrozenConfig(model=REFERENCE, cache="cache", scale=10.0, bias=-10.0)
CASES = {  # the score, None without selection, and the reference
    "IID": (None, FrozenConfig()),
    "no reference": ("hard_learner", FrozenConfig()),
    "cached": ("learnability", CACHED),
    "online": ("learnability", FrozenConfig(model=REFERENCE)),
}


def method(score: str | None, reference: FrozenConfig) -> ContrastiveConfig:
    """The settings of a case."""
    selection = SelectionConfig(
        filter_ratio=FILTER_RATIO if score else 0.0, score=score or "hard_learner"
    )
    return ContrastiveConfig(model=LEARNER, reference=reference, selection=selection).for_batch(
        SIZE
    )


def formula(score: str | None, reference: FrozenConfig, u: float = 1.0) -> float:
    """A step's cost over that of an IID step."""
    if score is None:
        return 1.0
    online = score == "learnability" and not reference.cache
    rho = sum(flops.macs(REFERENCE)) / sum(flops.macs(LEARNER)) if online else 0.0
    return 1 + (1 + rho) / 3 / (1 - FILTER_RATIO) / u


def write_cache(folder: pathlib.Path) -> None:
    """A cache of random embeddings, as `python -m aced.cache` would write it."""
    plan = description.Plan(
        examples=EXAMPLES,
        towers="both",
        precision="int8",
        shard_size=EXAMPLES,
        model=REFERENCE,
        scale=10.0,
        bias=-10.0,
        calibration_pairs=0,
        calibration_batch_size=SIZE,
        fingerprint={},
    )
    rng = np.random.default_rng(0)
    writer = entries.EntryWriter(plan.path(folder, 0), 2 * plan.row_bytes)
    for index in range(EXAMPLES):
        rows = rng.normal(size=(2, plan.width)).astype(np.float32)
        writer.write(index, precision.encode(rows / np.linalg.norm(rows, axis=1)[:, None], "int8"))
    shard = description.Shard(captions=EXAMPLES, missing={}, **writer.close())
    done = description.Description(plan, (shard,), None, {})
    description.write(folder / description.COMPLETE, done)


class Step:
    """A compiled step with its state."""

    def __init__(self, settings: ContrastiveConfig, mesh: jax.sharding.Mesh, cache: Cache):
        built = program.build(TrainConfig(batch_size=SIZE, total_steps=100, method=settings), mesh)
        self._rng, self._cache = np.random.default_rng(0), cache
        self.flops = built.method.flops_per_step(SIZE)
        self._step, self._state = built.step, built.new_state(jax.random.key(0), {})
        models = {name: item.model for name, item in built.method.frozen.items()}
        self._frozen = {name: jax.jit(m.init)(jax.random.key(1)) for name, m in models.items()}
        shapes, self._place = built.batch(), meshes.by_example(mesh)
        self._cached = {name for name in shapes if name.endswith(("zimg", "ztxt"))}
        self._ids = shapes["id"].shape
        plain = {name: x for name, x in shapes.items() if name not in self._cached}
        batch = jax.tree.map(lambda x: self._rng.integers(0, 128, x.shape, x.dtype), plain)
        self._batch = jax.device_put(batch, self._place)

    def read(self) -> dict[str, np.ndarray]:
        """The embeddings of another super-batch, if there are any in this case."""
        if not self._cached:
            return {}
        ids = self._rng.integers(0, EXAMPLES, self._ids)
        found = self._cache.read(ids, np.zeros_like(ids))
        return {f"reference/{name}": z for name, z in found.items()}

    def forward(self) -> Any:
        """Only embeds the super-batch by the learner."""
        params = self._state.params["model"]
        return _embed(LEARNER, ScoringConfig(), params, self._batch["image"], self._batch["text"])

    def __call__(self) -> Any:
        """Takes one step."""
        batch = self._batch | jax.device_put(self.read(), self._place)
        self._state, out = self._step(self._state, self._frozen, batch)
        return self._state, out


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds until the result of `work` is there."""
    start = time.process_time()
    jax.block_until_ready(work())
    return time.process_time() - start


def main(argv: list[str]) -> None:
    """Measures every case and writes the table."""
    del argv
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX counts the cores
    jax.config.update("jax_platforms", "cpu")
    mesh = meshes.make_mesh()
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(mesh):
        write_cache(pathlib.Path(folder))
        cache = Cache(folder)
        steps = {name: Step(method(*case), mesh, cache) for name, case in CASES.items()}
        work = steps | {READ: steps["cached"].read, FORWARD: steps["no reference"].forward}
        for run in work.values():
            timed(run)  # compiles
        seconds = {name: [] for name in work}
        for _ in range(flags.FLAGS.repeats):
            for name, run in work.items():
                seconds[name].append(timed(run))
                print(name, f"{seconds[name][-1]:.3f} s", flush=True)
    best = {name: min(values) for name, values in seconds.items()}
    u = best["IID"] / 3 / (best[FORWARD] * (1 - FILTER_RATIO))
    rows = []
    for name, step in steps.items():
        of_flops = step.flops / steps["IID"].flops
        to_iid, to_hard = best[name] / best["IID"], best[name] / best["no reference"]
        costs = formula(*CASES[name]), formula(*CASES[name], u)
        numbers = (of_flops, *costs, best[name], to_iid, to_hard)
        rows.append((name, f"{step.flops:.4g}", *(f"{x:.3f}" for x in numbers)))
    for name in (READ, FORWARD):
        rows.append((name, *4 * [""], f"{best[name]:.4f}", "", ""))
    with open(flags.FLAGS.out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The CSV to write.", required=True)
    flags.DEFINE_integer("repeats", 5, "Timed steps of each case; the fastest counts.")
    app.run(main)
