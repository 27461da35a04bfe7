"""What a step with selection costs: measured on one core, beside the formula.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.alpha \\
        --out=benchmarks/results/alpha.csv

alpha is the time of a step over that of an IID step which trains on as many examples. From FLOPs,
in an IID step's forward passes (arXiv 2406.17711, with M, A and u added),

    alpha = M + k (A_l + rho A_r) / (3 u),        k = B / b = 1 / (1 - f)

rho: FLOPs of the reference over the learner's, 0 where it is cached; A: the part of its FLOPs that
a model scores with; M: the part of its FLOPs that the learner is trained with, 1 unless a share of
the examples is trained as it is scored; u: the FLOPs per second of a forward pass of the
super-batch, divided by those of the IID step, which is measured here and is in the last row.
`formula` has u = 1, `formula_u` the measured one. Selection itself and gathering are in neither.

Real steps as the loop compiles them, on random pixels and texts that are on the device already,
float32, without rematerialisation. The cached reference is emulated by a score that needs none.
CPU seconds of this process, on one core; the cases take turns, so that a slower minute hits all.
Fewer bits are left out: what they save depends on the chip.
"""

import csv
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

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

_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each case; the fastest counts.")

SIZE, FILTER_RATIO = 32, 0.8  # b and f
FORWARD = "forward pass of the super-batch"
_embed = jax.jit(scoring.embed, static_argnums=(0, 1))
COLUMNS = ("case", "rho", "A", "M", "formula", "formula_u", "cpu_s", "measured")


def tower_pair(size: str) -> two_tower.TwoTowerConfig:
    """A two-tower model with 64 tokens and 4 layers in each of its towers."""
    return two_tower.TwoTowerConfig(
        image=ImageConfig(size=size, depth=4, patch=16, resolution=128),
        text=TextConfig(size=size, depth=4, vocab_size=1000, length=64),
        embed_dim=192,
        tokenizer=TokenizerConfig(length=64),
    )


LEARNER = tower_pair("Ti")
LOW, SHORT = ScoringConfig(patch=32), ScoringConfig(patch=32, text_length=16)


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of step."""

    name: str
    reference: two_tower.TwoTowerConfig | None = None  # None: cached, or not needed
    scoring: ScoringConfig | None = ScoringConfig()  # None: no selection
    every: int = 0  # multi_resolution_every

    @property
    def method(self) -> ContrastiveConfig:
        """The settings of the method."""
        selection = SelectionConfig(
            filter_ratio=FILTER_RATIO if self.scoring else 0.0,
            score="learnability" if self.reference else "hard_learner",
        )
        return ContrastiveConfig(
            model=LEARNER,
            reference=FrozenConfig(model=self.reference),
            selection=selection,
            scoring=self.scoring or ScoringConfig(),
            reference_scoring=(self.reference and self.scoring) or ScoringConfig(),
            multi_resolution_every=self.every,
        ).for_batch(SIZE)

    @property
    def terms(self) -> tuple[float, float, float]:
        """rho, A and M of the formula; A is that of the learner and of the reference."""
        own = sum(flops.macs(LEARNER))
        if self.scoring is None:
            return 0.0, 0.0, 1.0
        part = sum(scoring.macs(LEARNER, self.scoring)) / own
        rho = sum(flops.macs(self.reference)) / own if self.reference else 0.0
        return rho, part, 1 - (1 - part) / self.every if self.every else 1.0

    def alpha(self, u: float) -> float:
        """By the formula."""
        rho, part, trained = self.terms
        of_reference = 0.0
        if self.reference and self.scoring:
            own = sum(flops.macs(self.reference))
            of_reference = rho * sum(scoring.macs(self.reference, self.scoring)) / own
        return trained + (part + of_reference) / (1 - FILTER_RATIO) / 3 / u


IID = Case("IID", scoring=None)
ONLINE = Case("reference of the same size, online", reference=tower_pair("Ti"))
CASES = (
    IID,
    ONLINE,
    Case("reference S, online", reference=tower_pair("S")),
    Case("cached", scoring=ScoringConfig()),
    Case("cached, patch 32 to score", scoring=LOW),
    Case("cached, patch 32 and 16 tokens to score", scoring=SHORT),
    Case("cached, Flexi: half trained with patch 32", scoring=LOW, every=2),
    Case("cached, half trained with patch 32 and 16 tokens", scoring=SHORT, every=2),
    Case("same size online, patch 32 and 16 tokens", reference=tower_pair("Ti"), scoring=SHORT),
)


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds until the result of `work` is there."""
    start = time.process_time()
    jax.block_until_ready(work())
    return time.process_time() - start


class Step:
    """A compiled step with its state."""

    def __init__(self, case: Case, mesh: jax.sharding.Mesh):
        settings = TrainConfig(batch_size=SIZE, total_steps=100, method=case.method)
        built = program.build(settings, mesh)
        rng = np.random.default_rng(0)

        def random(x: jax.ShapeDtypeStruct) -> np.ndarray:
            return rng.integers(0, 128, x.shape, x.dtype)

        self.step, self.state = built.step, built.new_state(jax.random.key(0), {})
        models = {name: item.model for name, item in built.method.frozen.items()}
        self.frozen = {name: jax.jit(m.init)(jax.random.key(1)) for name, m in models.items()}
        self.batch = jax.device_put(jax.tree.map(random, built.batch()), meshes.by_example(mesh))

    def __call__(self) -> Any:
        """Takes one step."""
        self.state, out = self.step(self.state, self.frozen, self.batch)
        return self.state, out

    def forward(self) -> Any:
        """Only embeds the super-batch by the learner, exactly."""
        params = self.state.params["model"]
        return _embed(LEARNER, ScoringConfig(), params, self.batch["image"], self.batch["text"])


def main(argv: list[str]) -> None:
    """Measures every case and writes the table."""
    del argv
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX counts the cores
    jax.config.update("jax_platforms", "cpu")
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        steps = {case: Step(case, mesh) for case in CASES}
        work = steps | {FORWARD: steps[ONLINE].forward}
        for run in work.values():
            timed(run)  # compiles
        seconds = {what: [] for what in work}
        for _ in range(_REPEATS.value):
            for what, run in work.items():
                seconds[what].append(timed(run))
                print(getattr(what, "name", what), f"{seconds[what][-1]:.2f} s", flush=True)
    best = {what: min(values) for what, values in seconds.items()}
    # A step's FLOPs are three forward passes of b, the other's one of B.
    u = best[IID] / 3 / (best[FORWARD] * (1 - FILTER_RATIO))
    rows = []
    for case in CASES:
        numbers = *case.terms, case.alpha(1.0), case.alpha(u), best[case], best[case] / best[IID]
        rows.append((case.name, *(f"{x:.2f}" for x in numbers)))
    rows.append((f"{FORWARD}: u = {u:.2f}", *5 * [""], f"{best[FORWARD]:.2f}", ""))
    with open(_OUT.value, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    app.run(main)
