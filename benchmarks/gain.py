"""How sharp a draw should be: R@1 by gain, batch size, noise and weight of the reference.

    python -m benchmarks.gain --work=/tmp/gain --out=benchmarks/results/gain.csv
    python -m benchmarks.plots

Hundreds of runs, so that the towers are the least that learns the embedded scenes: perceptrons of
two hidden layers, on 8 x 8 pixels and on words with their places. Selection, losses and metrics
are the project's. The reference has learned other, clean scenes. A learner sees 128,000 examples of
60,000 scenes, whatever its batch; R@1 is the mean of both directions among 1,000 clean ones. What
is in the table is not run again.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import serialization
from jaxtyping import Array, Float, Int, PyTree

from aced.embeddings import Embeddings
from aced.evaluators.retrieval import recall
from aced.losses import contrastive, distillation
from aced.models import two_tower
from aced.selection import SelectionConfig, select
from benchmarks.methods import pool as pools
from benchmarks.methods import runs as methods_runs
from benchmarks.table import Runs
from configs import smoke

PAIRS, EXAMPLES = 60_000, 128_000
WIDTH = 64  # of the embeddings
HIDDEN = {"learner": 128, "reference": 256, "weak": 64}
NUMBERS = ("r1", "noise", "perplexity", "variety")


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells a run from another one."""

    score: str = ""  # of selection; empty: IID
    wrong: float = 0.5
    batch_size: int = 64
    examples: int = EXAMPLES  # trained
    seed: int = 0
    loss: str = "sigmoid"
    reference: str = "reference"
    distillation: float = 0.0
    settings: str = "{}"  # JSON of `SelectionConfig`

    @property
    def selection(self) -> SelectionConfig | None:
        """How it chooses; None: it does not."""
        if not self.score:
            return None
        return SelectionConfig(score=self.score, chunks=8, strata=1, **json.loads(self.settings))


def ours(share: float = 0.5, weight: float = 2.0) -> str:
    """The rule that is shown, as settings."""
    return json.dumps(
        {
            "normalization": "perplexity",
            "perplexity_share": share,
            "reference_weight": weight,
        }
    )


def raw(gain: float, **changes: Any) -> str:
    """The paper's rule."""
    return json.dumps({"gain": gain} | changes)


def all_runs() -> list[Run]:
    """All that the figures and docs/selection.md show, what matters most first."""
    noises, listed = (0.5, 0.0), []
    # The rule: raw and ours, by batch size, with and without noise.
    changes = [*(ours(share) for share in (0.5, 0.4, 0.3, 0.2, 0.1, 0.7)),
               *(raw(gain) for gain in (10.0, 1.0, 0.1, 100.0))]  # fmt: skip
    for seed in range(3):
        for wrong, size in itertools.product(noises, (64, 256, 1024)):
            listed.append(Run("", wrong, size, seed=seed))
            listed += [Run("learnability", wrong, size, seed=seed, settings=c) for c in changes]
        # The weight of the reference, by noise; easy reference is its limit.
        for wrong in (0.75, 0.5, 0.0, 0.25):
            listed.append(Run("", wrong, seed=seed))
            listed.append(Run("learnability", wrong, seed=seed, settings=ours(0.3)))
            listed.append(Run("easy_reference", wrong, seed=seed, settings=ours()))
            for weight in (2.0, 1.0, 4.0, 0.5, 8.0):
                listed.append(Run("learnability", wrong, seed=seed, settings=ours(weight=weight)))
    # A weaker reference, the softmax loss, a short run, distillation.
    for wrong, weight in itertools.product(noises, (1.0, 2.0, 4.0)):
        h_acid = Run("learnability", wrong, settings=ours(weight=weight))
        listed.append(dataclasses.replace(h_acid, reference="weak"))
        listed.append(dataclasses.replace(h_acid, loss="softmax"))
        listed.append(dataclasses.replace(h_acid, examples=EXAMPLES // 8))
        listed.append(dataclasses.replace(h_acid, distillation=1.0))
    for wrong in noises:
        listed += [Run("", wrong, loss="softmax"), Run("", wrong, examples=EXAMPLES // 8)]
        listed.append(Run("", wrong, distillation=1.0))
    return list(dict.fromkeys(listed))


def features(pool: pools.Pool) -> tuple[Float[np.ndarray, "N p"], Int[np.ndarray, "N l"]]:
    """8 x 8 pixels of every picture, and its tokens."""
    n, side = pool.image.shape[:2]
    cell = side // 8
    pixels = pool.image.astype(np.float32).reshape(n, 8, cell, 8, cell, 3).mean((2, 4))
    return pixels.reshape(n, -1) / 127.5 - 1, pool.text


def init(key: Array, hidden: int, length: int, words: int, bias: float) -> PyTree:
    """Parameters of two perceptrons."""
    keys = jax.random.split(key, 6)

    def kernel(key: Array, rows: int, columns: int) -> Array:
        return jax.random.normal(key, (rows, columns)) / math.sqrt(rows)

    return {
        "pixels": kernel(keys[0], 192, hidden),
        "image": kernel(keys[1], hidden, hidden),
        "image_head": kernel(keys[2], hidden, WIDTH),
        "words": jax.random.normal(keys[3], (length, words, hidden)) / math.sqrt(length),
        "text": kernel(keys[4], hidden, hidden),
        "text_head": kernel(keys[5], hidden, WIDTH),
        "t": jnp.log(10.0),
        "bias": jnp.float32(bias),
    }


def embed(params: PyTree, pixels: Float[Array, "b p"], tokens: Int[Array, "b l"]) -> Embeddings:
    """Both towers."""
    words = params["words"][jnp.arange(tokens.shape[1]), tokens].sum(axis=1)
    towers = []
    for x, name in ((pixels @ params["pixels"], "image"), (words, "text")):
        x = jax.nn.gelu(x)
        x = x + jax.nn.gelu(x @ params[name])
        towers.append(two_tower.l2_normalize(x @ params[f"{name}_head"]))
    return Embeddings(*towers, jnp.exp(params["t"]), params["bias"])


class Bench:
    """Scenes and references, made once."""

    def __init__(self, folder: str):
        self._folder = pathlib.Path(folder)
        scenes = methods_runs.Run("iid", resolution=smoke.RESOLUTION)
        self.model = methods_runs.parse(scenes).method.model
        self.val = features(self._pool(0.0, 0, 1000, "val"))

    def _pool(self, wrong: float, seed: int, size: int = PAIRS, split: str = "train"):
        return pools.shapes(
            self._folder, self.model, size=size, wrong=wrong, seed=seed, split=split
        )

    @functools.lru_cache(maxsize=4)  # noqa: B019 as long as the program
    def arrays(self, wrong: float, seed: int = 0) -> dict[str, Array]:
        """A pool on the device."""
        pool = self._pool(wrong, seed)
        pixels, tokens = features(pool)
        return jax.device_put({"pixels": pixels, "tokens": tokens, "is_noisy": pool.is_noisy})

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def reference(self, name: str, wrong: float) -> Embeddings:
        """A reference's embeddings of a pool."""
        file = self._folder / f"gain-{name}.msgpack"
        if not file.exists():
            run = Run("", 0.0, 128, 3 * EXAMPLES, seed=1000)
            params, found = self.train(run, hidden=HIDDEN[name], scenes=11)
            print(name, found, flush=True)
            file.write_bytes(serialization.to_bytes(params))
        params, pool = serialization.msgpack_restore(file.read_bytes()), self.arrays(wrong)
        return jax.jit(embed)(params, pool["pixels"], pool["tokens"])

    def train(
        self, run: Run, hidden: int = HIDDEN["learner"], scenes: int = 0
    ) -> tuple[PyTree, dict[str, float]]:
        """Parameters at the end, and the numbers of a row."""
        seen, pool = None, self.arrays(run.wrong, scenes)
        if run.selection or run.distillation:
            seen = self.reference(run.reference, run.wrong)
        length, words = pool["tokens"].shape[1], self.model.text.vocab_size
        key, steps = jax.random.key(run.seed), run.examples // run.batch_size
        params = init(key, hidden, length, words, -math.log(run.batch_size))
        schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, steps // 10, steps)
        decayed = optax.adamw(schedule, b2=0.95, weight_decay=1e-3)
        tx = optax.chain(optax.clip_by_global_norm(1.0), decayed)
        step, opt_state, last = train_step(run, tx, key), tx.init(params), []
        for number, ids in enumerate(order(run, steps)):
            params, opt_state, numbers = step(params, opt_state, number, ids, pool, seen)
            if number >= 0.8 * steps:
                last.append(numbers)
        found = jax.jit(embed)(params, *self.val)
        r1 = recall(np.asarray(found.zimg), np.asarray(found.ztxt), np.arange(1000))["mean_r1"]
        means = jax.tree.map(lambda *x: float(jnp.stack(x).mean()), *last)
        row = {name.removeprefix("selection/"): value for name, value in means.items()}
        return params, {"r1": r1} | row


def order(run: Run, steps: int) -> Int[np.ndarray, "steps B"]:
    """The super-batches of a run: positions in passes over the pool, each shuffled."""
    size = run.batch_size
    candidates = run.selection.super_batch_size(size) if run.selection else size
    rng = np.random.default_rng((run.seed, 7))
    passes = [rng.permutation(PAIRS) for _ in range(-(-steps * candidates // PAIRS))]
    return np.concatenate(passes)[: steps * candidates].reshape(steps, candidates)


def train_step(run: Run, tx: optax.GradientTransformation, key: Array) -> Callable:
    """A step on a super-batch: embed it, select, learn from what is chosen."""
    config = run.selection

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, number, ids, pool, seen):
        batch = {name: rows[ids] for name, rows in pool.items()}
        if seen is not None:
            seen = seen.replace(zimg=seen.zimg[ids], ztxt=seen.ztxt[ids])
        numbers = {}
        if config:
            learner = embed(params, batch["pixels"], batch["tokens"])
            draw_key, size = jax.random.fold_in(key, number), run.batch_size
            chosen = select(draw_key, learner, seen, config, loss=run.loss, size=size)
            picks, numbers = jnp.sort(chosen.ids), chosen.metrics
            batch = {name: rows[picks] for name, rows in batch.items()}
            seen = seen.replace(zimg=seen.zimg[picks], ztxt=seen.ztxt[picks])

        def loss_fn(params):
            e = embed(params, batch["pixels"], batch["tokens"])
            loss = contrastive.LOSSES[run.loss](e)
            if run.distillation:
                loss += run.distillation * distillation.softmax_kd(e, seen)
            return loss

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        numbers["noise"] = batch["is_noisy"].mean(dtype=jnp.float32)
        return optax.apply_updates(params, updates), opt_state, numbers

    return step


def main(argv: list[str]) -> None:
    """Runs what is missing."""
    del argv
    index, parts = (int(number) for number in flags.FLAGS.shard.split("/"))
    bench, table = Bench(flags.FLAGS.work), Runs(flags.FLAGS.out, Run, NUMBERS)
    for run in all_runs()[index::parts]:
        if not table.has(run):
            _, found = bench.train(run)
            table.add(run, [found])
            print(run, found, flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("work", None, "Folder for the scenes and the reference.", required=True)
    flags.DEFINE_string("out", None, "The CSV to add to.", required=True)
    flags.DEFINE_string("shard", "0/1", "Which part of the runs: NUMBER/PARTS.")
    app.run(main)
