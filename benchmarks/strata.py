"""What stratified selection keeps of the joint gain, on embeddings of trained models.

    python -m aced.main --config=configs/smoke.py:method=aced,steps=600 --workdir=/tmp/aced \\
        --config.before.reference.total_steps=1000
    python -m benchmarks.strata --workdir=/tmp/aced --out=benchmarks/results/strata.csv
    python -m benchmarks.strata --workdir=/tmp/aced --size=16384 --loss=sigmoid --gain=100 \\
        --strata=1 --strata=128 --batches=2 --draws=3 --out=benchmarks/results/strata_large.csv
    python -m benchmarks.strata --workdir=/tmp/aced --size=32768 --loss=sigmoid --gain=100 \\
        --strata=1 --strata=8 --strata=128 --strata=256 --batches=2 --draws=3 \\
        --out=benchmarks/results/strata_recipe.csv

The learner and the reference of the run embed super-batches of held-out examples. Sub-batches are
chosen from these uniformly, independently, and jointly with several numbers of strata, by either
loss (the softmax loss uses the same models without their bias). Scores of the sigmoid loss scatter
from draw to draw, so the effect of the strata shows only in many draws of each super-batch.

Columns: `draws`, of each super-batch; `score`, JEST's score of the sub-batch: what all its pairs
say of each other, learner minus reference, per chosen example; `share`, the part of what joint
selection from one stratum (the paper's) gains over uniform draws, of the means over the
super-batches; `error`, its standard error, to first order; `noisy_share`, of wrong captions among
the picks. The table is written after every super-batch, so that it may be stopped.
"""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath
from jax.scipy.special import logsumexp

from aced.checkpoints import record
from aced.checkpoints.checkpointer import load_params
from aced.config import from_config
from aced.data import pipeline
from aced.data.batch_spec import View
from aced.data.sources import DataConfig, open_source
from aced.methods.frozen import FrozenConfig
from aced.models import two_tower
from aced.outputs import Embeddings
from aced.selection import SelectionConfig, select

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished run with a reference.", required=True)
_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_SIZE = flags.DEFINE_integer("size", 2048, "b; B = 5 b.")
_BATCHES = flags.DEFINE_integer("batches", 12, "Super-batches.")
_DRAWS = flags.DEFINE_integer("draws", 8, "Sub-batches of each super-batch, for every row.")
_LOSS = flags.DEFINE_multi_enum("loss", ["sigmoid", "softmax"], ["sigmoid", "softmax"], "Losses.")
_GAIN = flags.DEFINE_multi_float(
    "gain", [10.0, 100.0], "Gains; of configs/small.py and of configs/acid_b16.py."
)
_STRATA = flags.DEFINE_multi_integer(
    "strata", [1, 8, 16, 128], "Numbers of strata, with 1; 16 is what None makes of b = 2048."
)

CHUNKS = 16  # as in the recipes
PIECE = 1024  # examples embedded at a time
COLUMNS = ("loss", "super_batches", "draws", "B", "b", "chunks", "gain", "method", "strata")
COLUMNS += ("score", "share", "error", "noisy_share")

choose = jax.jit(select, static_argnames=("config", "loss", "size"))


class Run:
    """The learner and the reference of a finished run, and the data that it learns from."""

    def __init__(self, workdir: str):
        settings = record.read(epath.Path(workdir)).settings
        self.data = from_config(DataConfig, settings["data"])
        self.seed = settings["seed"]
        reference = settings["method"]["reference"]["checkpoint"]
        self.models = {}
        for prefix, checkpoint in (("", workdir), ("reference/", reference)):
            model = FrozenConfig(checkpoint=checkpoint).resolve(workdir)
            params = load_params(model.checkpoint, part="model")
            self.models[prefix] = model.model, params

    def super_batches(self, size: int, count: int):
        """Yields (learner, reference, is_noisy) of super-batches of another seed than the run's."""
        views = {prefix: View.of(model) for prefix, (model, _) in self.models.items()}
        data = self.data
        if size > data.shapes.size:  # scenes are drawn from their numbers: there are always more
            data = dataclasses.replace(
                data, shapes=dataclasses.replace(data.shapes, size=count * size)
            )
        batches = pipeline.train_batches(
            open_source(data), data, views, batch_size=size, seed=self.seed + 1
        )
        with batches:
            for _ in range(count):
                batch = next(batches)
                yield self._embed("", batch), self._embed("reference/", batch), batch["is_noisy"]

    def _embed(self, prefix: str, batch: dict[str, np.ndarray]) -> Embeddings:
        model, params = self.models[prefix]
        image = batch.get(f"{prefix}image", batch["image"])
        text = batch.get(f"{prefix}text", batch["text"])
        pieces = [
            jax.device_get(_apply(model, params, image[i : i + PIECE], text[i : i + PIECE]))
            for i in range(0, len(image), PIECE)
        ]
        zimg, ztxt = (np.concatenate([getattr(e, z) for e in pieces]) for z in ("zimg", "ztxt"))
        return pieces[0].replace(zimg=zimg, ztxt=ztxt)


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, params, image, text):
    return two_tower.TwoTower(model).apply({"params": params}, image, text)


def batch_score(learner: Embeddings, reference: Embeddings, ids: np.ndarray, loss: str) -> float:
    """The learner's loss minus the reference's on the sub-batch `ids`; sums over it in float64."""
    mine, others = (_losses(e, ids, loss=loss) for e in (learner, reference))
    return float((np.float64(mine) - np.float64(others)).mean())


@functools.partial(jax.jit, static_argnames="loss")
def _losses(e: Embeddings, ids: np.ndarray, *, loss: str) -> jax.Array:
    """What each example of the sub-batch adds to its mean loss, float32 [b]."""
    logits = e.scale * e.zimg[ids] @ e.ztxt[ids].T + e.bias
    if loss == "sigmoid":
        signs = 1 - 2 * jnp.eye(len(ids))
        return jax.nn.softplus(signs * logits).sum(1)
    both = logsumexp(logits, axis=1) + logsumexp(logits, axis=0)
    return both / 2 - jnp.diag(logits)


def draws():
    """Yields (loss, gain, method, strata) of everything that is compared."""
    for loss in _LOSS.value:
        yield loss, "", "uniform", ""
        for gain in _GAIN.value:
            yield loss, gain, "independent", 1
            yield from ((loss, gain, "joint", strata) for strata in _STRATA.value)


def draw(key, learner, reference, loss, gain, method, strata) -> np.ndarray:
    """The ids of one sub-batch."""
    if method == "uniform":
        return np.asarray(jax.random.choice(key, len(learner.zimg), (_SIZE.value,), replace=False))
    config = SelectionConfig(method=method, chunks=CHUNKS, strata=strata, gain=gain)
    return np.asarray(choose(key, learner, reference, config, loss=loss, size=_SIZE.value).ids)


def rows_of(found: dict[tuple, list[tuple[float, float]]], candidates: int) -> list[tuple]:
    """The table's rows from the (score, noisy share) of each super-batch."""
    table = {name: np.array(values).T for name, values in found.items()}
    rows = []
    for (loss, gain, method, strata), (score, noisy) in table.items():
        count = len(score)
        cells = [f"{score.mean():.4f}", "0", "", f"{noisy.mean():.4f}"]
        if gain:
            gained = score - table[loss, "", "uniform", ""][0]
            most = table[loss, gain, "joint", 1][0] - table[loss, "", "uniform", ""][0]
            share = gained.mean() / most.mean()
            error = (gained - share * most).std(ddof=min(1, count - 1)) / most.mean()
            cells[1:3] = f"{share:.4f}", f"{error / np.sqrt(count):.4f}"
        rows.append(
            (
                loss,
                count,
                _DRAWS.value,
                candidates,
                _SIZE.value,
                CHUNKS,
                gain,
                method,
                strata,
                *cells,
            )
        )
    return rows


def main(argv: list[str]) -> None:
    """Measures, and writes the table after every super-batch."""
    del argv
    candidates = SelectionConfig(chunks=CHUNKS).super_batch_size(_SIZE.value)
    found = {name: [] for name in draws()}
    batches = Run(_WORKDIR.value).super_batches(candidates, _BATCHES.value)
    for t, (learner, reference, is_noisy) in enumerate(batches):
        for k, (name, values) in enumerate(found.items()):
            # A key for each draw: with common noise, one would share the other's luck.
            key = jax.random.fold_in(jax.random.key(t), k)
            several = []
            for i in range(_DRAWS.value):
                ids = draw(jax.random.fold_in(key, i), learner, reference, *name)
                score = batch_score(learner, reference, ids, name[0])
                several.append((score, is_noisy[ids].mean()))
            values.append(tuple(np.mean(several, axis=0)))
            print(t, *name, f"{values[-1][0]:.4f}", flush=True)
        with open(_OUT.value, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([COLUMNS, *rows_of(found, candidates)])


if __name__ == "__main__":
    app.run(main)
