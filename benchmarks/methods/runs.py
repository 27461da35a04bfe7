"""A run by its settings, and the pairs and references that runs share."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from jaxtyping import Array, Int, PyTree

from aced.evaluators.retrieval import recall
from aced.losses import LOSSES, distillation
from aced.losses.reference_shift import shifted
from aced.outputs import Embeddings
from aced.selection import Concepts, SelectionConfig, scores, select
from benchmarks.methods import pool as pools
from benchmarks.methods import towers
from configs import methods

PAIRS, VAL_PAIRS = 60_000, 1000  # scenes
REFERENCE_EXAMPLES = 384_000  # trained
DIVERSE = "diverse"  # a model that has learned from the run's own pairs, and not from curated ones
HIDDEN = {
    "learner": 128,
    "weak": 64,
    "equal": 128,
    "reference": 256,
    "large": 512,
    DIVERSE: 256,
}
SHIFTED = "shifted"  # DRRho's softmax loss, shifted by the reference
EVALUATIONS = 5  # of a run; the numbers of its picks are means since the one before
NUMBERS = ("examples_trained", "flops", "r1", "zeroshot", "noise", "perplexity", "variety")


@dataclasses.dataclass(frozen=True)
class Run:
    """What tells a run from another one."""

    score: str = ""  # of selection; empty: all pairs are trained on
    wrong: float = 0.5  # share of wrong captions
    batch_size: int = 64
    examples: int = 128_000  # trained
    seed: int = 0
    loss: str = "sigmoid"  # or softmax, or `SHIFTED`
    reference: str = "reference"  # of `HIDDEN`
    distillation: float = 0.0  # weight
    settings: str = "{}"  # JSON of `SelectionConfig`
    distillation_loss: str = "softmax"
    distillation_batch: str = "selected"  # or iid
    data: str = "shapes"  # or icons
    contrastive: float = 1.0  # weight; 0: distillation only
    teachers: str = "reference"  # of `HIDDEN`, joined by "+"; "reference": the run's reference
    teacher_scale: float = 0.0  # of the teachers' logits; 0: their own
    average: str = "probabilities"  # of several teachers, or of their logits
    pairs: int = 0  # see PoolConfig for these
    augmentations: int = 0
    captions: str = "given"

    @property
    def selection(self) -> SelectionConfig | None:
        """How it chooses; None: it does not."""
        if not self.score:
            return None
        return SelectionConfig(score=self.score, chunks=8, strata=1, **json.loads(self.settings))

    @property
    def pool(self) -> pools.PoolConfig:
        """The pairs that it is trained on."""
        names = ("data", "wrong", "pairs", "augmentations", "captions")
        return pools.PoolConfig(**{name: getattr(self, name) for name in names})

    @property
    def taught_by(self) -> tuple[str, ...]:
        """Its teachers, names of `HIDDEN`."""
        if not self.distillation:
            return ()
        names = self.teachers.split("+")
        return tuple(self.reference if name == "reference" else name for name in names)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The models whose embeddings it reads, names of `HIDDEN`."""
        config = self.selection
        scored = config and scores.needs(config.score, "reference")
        damped = config and config.false_negative_margin is not None
        own = (self.reference,) if scored or damped or self.loss == SHIFTED else ()
        return tuple(dict.fromkeys((*own, *self.taught_by)))

    @property
    def method(self) -> str:
        """Its name in configs/methods.py."""
        distils = self.distillation > 0
        batch = self.distillation_batch
        found = {settings: name for name, settings in methods.METHODS.items()}
        return found[self.score or None, distils, batch]

    @property
    def steps(self) -> int:
        """Of training."""
        return self.examples // self.batch_size


def ours(share: float = 0.5, weight: float = 2.0, **changes: Any) -> str:
    """The rule of configs/smoke.py, as settings of a run."""
    rule = {"normalization": "perplexity", "perplexity_share": share, "reference_weight": weight}
    return json.dumps(rule | changes)


def by_name(method: str, **changes: Any) -> Run:
    """A run of a method of configs/methods.py, with our rule where it selects."""
    score, distils, batch = methods.METHODS[method]
    rule = {"settings": ours()} if score else {}
    if methods.uses_concepts(method):
        # As in the paper: as good as greedy, since the scores have the same scale in every batch.
        rule = {"settings": json.dumps(methods.drawn(method))}
    how = {"distillation": float(distils), "distillation_batch": batch}
    return Run(**({"score": score or ""} | how | rule | changes))


class Bench:
    """Pairs and references, made once and kept in a folder."""

    def __init__(
        self,
        folder: str,
        icons: str = "",
        pairs: int = PAIRS,
        on_reference: Callable[[Run, list[dict[str, float]]], None] = print,
    ):
        """Nothing is made yet.

        Args:
            folder: for pairs and references.
            icons: what benchmarks/icons.py wrote; runs on icons need it.
            pairs: scenes of a pool.
            on_reference: called with the run and the rows of a reference that was trained.
        """
        self._folder, self._icons, self._pairs = pathlib.Path(folder), pathlib.Path(icons), pairs
        self._on_reference = on_reference

    @functools.lru_cache(maxsize=3)  # noqa: B019 the bench lives as long as the program
    def pool(self, config: pools.PoolConfig) -> pools.Pool:
        """The pairs of a split, "train", "clean" (the reference's), "val" or "zeroshot"."""
        if config.data == "icons":
            return pools.icons(self._folder, self._icons, config)
        if config.split == "val":
            return pools.shapes(self._folder, config, size=VAL_PAIRS, seed=0)
        seed = 11 * (config.split == "clean")
        return pools.shapes(self._folder, config, size=self._pairs, seed=seed)

    def frozen(self, run: Run) -> dict[str, Embeddings]:
        """The embeddings of the run's pool by each of its frozen models."""
        return {name: self._embedded(name, run.pool) for name in run.frozen}

    @functools.lru_cache(maxsize=3)  # noqa: B019
    def _embedded(self, name: str, pool: pools.PoolConfig) -> Embeddings:
        data, wrong = pool.data, pool.wrong
        is_diverse = name == DIVERSE
        learned = f"{data}-{wrong}" if is_diverse else data
        file = self._folder / f"reference-{learned}-{name}.msgpack"
        if not file.exists():
            # It has learned other, clean scenes, or those icons whose names families share.
            run = Run(
                wrong=wrong if is_diverse else 0.0, batch_size=128, examples=REFERENCE_EXAMPLES,
                seed=1000, reference=name, data=data,
            )  # fmt: skip
            split = "train" if is_diverse else "clean"
            params, rows = self.train(run, hidden=HIDDEN[name], split=split)
            self._on_reference(run, rows)
            file.write_bytes(serialization.to_bytes(params))
        params = serialization.msgpack_restore(file.read_bytes())
        return _embed_all(params, self.pool(pool))

    def train(
        self, run: Run, hidden: int = HIDDEN["learner"], split: str = "train"
    ) -> tuple[PyTree, list[dict[str, float]]]:
        """Parameters at the end, and a row of numbers for each evaluation."""
        pool = self.pool(dataclasses.replace(run.pool, split=split))
        seen = self.frozen(run)
        key = jax.random.key(run.seed)
        params = towers.init(
            key, hidden, pixels=pool.pixels.shape[1], places=pool.places, words=pool.words,
            bias=-math.log(run.batch_size),
        )  # fmt: skip
        if run.distillation and run.distillation_loss == "feature":
            widths = (towers.WIDTH, towers.WIDTH)
            params["projection"] = distillation.init_projection(key, *widths)
        steps = run.steps
        schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, steps // 10, steps)
        decayed = optax.adamw(schedule, b2=0.95, weight_decay=1e-3)
        tx = optax.chain(optax.clip_by_global_norm(1.0), decayed)
        step, opt_state = train_step(run, tx, pool.words), tx.init(params)
        cost, arrays = flops_per_step(run, params), jax.device_put(pool.arrays())
        rows, since = [], []
        for number, ids in enumerate(order(run, len(pool), pool.copies)):
            params, opt_state, numbers = step(params, opt_state, key, number, ids, arrays, seen)
            since.append(numbers)
            if (number + 1) * EVALUATIONS // steps > number * EVALUATIONS // steps:
                means = jax.tree.map(lambda *x: float(jnp.stack(x).mean()), *since)
                row = {name.removeprefix("selection/"): value for name, value in means.items()}
                row |= {"examples_trained": (number + 1) * run.batch_size}
                rows.append(row | {"flops": (number + 1) * cost} | self._evaluate(run.data, params))
                since = []
        return params, rows

    def _evaluate(self, data: str, params: PyTree) -> dict[str, float]:
        """R@1, the mean of both directions, and for icons the accuracy over shared names."""
        found = _embed_all(params, self.pool(pools.PoolConfig(data, "val")))
        zimg, ztxt = np.asarray(found.zimg), np.asarray(found.ztxt)
        numbers = {"r1": recall(zimg, ztxt, np.arange(len(zimg)))["mean_r1"]}
        if data == "icons":
            classes = self.pool(pools.PoolConfig(data, "zeroshot"))
            found = _embed_all(params, classes)
            _, first, label = np.unique(
                classes.tokens, axis=0, return_index=True, return_inverse=True
            )
            guess = np.argmax(found.zimg @ found.ztxt[first].T, axis=1)
            numbers["zeroshot"] = float(np.mean(guess == label.reshape(-1)))
        return numbers


def _embed_all(params: PyTree, pool: pools.Pool) -> Embeddings:
    return jax.jit(towers.embed)(params, pool.pixels, pool.tokens)


def order(run: Run, pairs: int, copies: int = 1) -> Int[np.ndarray, "steps B"]:
    """The super-batches of a run: rows of the pool, in shuffled passes over its pairs.

    With several copies of a pair, one is drawn each time.
    """
    size = run.batch_size
    candidates = run.selection.super_batch_size(size) if run.selection else size
    rng = np.random.default_rng((run.seed, 7))
    passes = [rng.permutation(pairs) for _ in range(-(-run.steps * candidates // pairs))]
    rows = np.concatenate(passes)[: run.steps * candidates].reshape(run.steps, candidates)
    if copies > 1:
        rows = rows * copies + rng.integers(copies, size=rows.shape)
    return rows


def flops_per_step(run: Run, params: PyTree) -> int:
    """Of the towers: three passes of what is trained on, one of what the learner scores.

    The reference's passes are not in it, since its embeddings are made once, nor products of
    embeddings, which are small beside the towers of real models.
    """
    passes = 3 * run.batch_size
    if run.selection:
        if scores.needs(run.score, "learner"):
            passes += run.selection.super_batch_size(run.batch_size)
        if run.distillation and run.distillation_batch == "iid":
            passes += 3 * run.batch_size
    return passes * towers.flops(params)


def train_step(run: Run, tx: optax.GradientTransformation, words: int) -> Callable:
    """A step on a super-batch: embed it, select, learn from what is chosen.

    `words` is the size of the vocabulary, which the concepts are of.
    """
    config, size = run.selection, run.batch_size
    loss = "softmax" if run.loss == SHIFTED else run.loss

    def take(batch: Mapping[str, Array], seen: Mapping[str, Embeddings], picks: Array):
        models = {
            name: e.replace(zimg=e.zimg[picks], ztxt=e.ztxt[picks]) for name, e in seen.items()
        }
        return {name: rows[picks] for name, rows in batch.items()}, models

    def embed(params: PyTree, batch: Mapping[str, Array]) -> Embeddings:
        return towers.embed(params, batch["pixels"], batch["tokens"])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, key, number, ids, pool, seen):
        batch, seen = take(pool, seen, ids)
        apart, numbers = (batch, seen), {}
        if config:
            draw_key, reference = jax.random.fold_in(key, number), seen.get(run.reference)
            learner = embed(params, batch) if scores.needs(run.score, "learner") else None
            concepts = Concepts(batch["concepts"], words)
            chosen = select(
                draw_key, learner, reference, config, loss=loss, size=size, concepts=concepts
            )
            apart = take(batch, seen, jnp.arange(size) * (len(ids) // size))
            (batch, seen), numbers = take(batch, seen, jnp.sort(chosen.ids)), chosen.metrics

        def loss_fn(params):
            e, total = embed(params, batch), jnp.float32(0)
            if run.contrastive:
                model = shifted(e, seen[run.reference]) if run.loss == SHIFTED else e
                total += run.contrastive * LOSSES[loss](model)
            if run.distillation:
                student, models = e, seen
                if run.distillation_batch == "iid":
                    student, models = embed(params, apart[0]), apart[1]
                teachers = {name: models[name] for name in run.taught_by}
                if run.teacher_scale:
                    scale = jnp.float32(run.teacher_scale)
                    teachers = {name: e.replace(scale=scale) for name, e in teachers.items()}
                projections = None
                if run.distillation_loss == "feature":
                    projections = {name: params["projection"] for name in teachers}
                total += run.distillation * distillation.distillation_loss(
                    run.distillation_loss, student, teachers, projections, average=run.average
                )
            return total

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        numbers["noise"] = batch["is_noisy"].mean(dtype=jnp.float32)
        return optax.apply_updates(params, updates), opt_state, numbers

    return step
