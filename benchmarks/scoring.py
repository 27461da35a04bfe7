"""What cheap scoring does to the picks, to what they gain, and to the cost of scoring.

    smoke=configs/smoke.py:method=aced,steps=600
    python -m aced.main --config=$smoke --workdir=/tmp/full \\
        --config.before.reference.total_steps=1000
    python -m aced.main --config=$smoke,reference=/tmp/full/reference --workdir=/tmp/half \\
        --config.method.scoring.patch=16 --config.method.scoring.text_length=14 \\
        --config.method.multi_resolution_every=2
    python -m benchmarks.scoring --workdirs=/tmp/full,/tmp/half \\
        --out=benchmarks/results/scoring.csv

The learner and the reference of each run embed super-batches that the run has not seen, exactly
and by each way of `ScoringConfig`: the learner alone (its reference is cached, say) or both. The
sub-batches are chosen with the same noise. Columns: `trained`, how the learner was trained (the
reference, always in full); `recall`, R@1 of the learner as it scores, from images to texts, among
the clean pairs of a super-batch; `overlap`, the part of the picks that exact scoring picks, too;
`share`, the part of what those gain over uniform draws in JEST's score of the sub-batch under EXACT
embeddings, of the means over the super-batches, and `error`, its standard error, to first order;
`noisy_share`, of wrong captions among the picks; `flops` and `cpu`, the multiply-adds and CPU
seconds of scoring as parts of exact scoring's. How fast 8 and 16 bits are on an accelerator, `cpu`
does not tell. For comparison: "another draw", exact scoring with other noise; and "reference only",
what is left without the learner, by easy_reference.
"""

import csv
import dataclasses
import functools
import time

import jax
import numpy as np
from absl import app, flags
from etils import epath

from aced.checkpoints import record
from aced.checkpoints.checkpointer import load_params
from aced.config import from_config
from aced.data import pipeline
from aced.data.batch_spec import View
from aced.data.sources import DataConfig, open_source
from aced.methods import scoring
from aced.methods.frozen import FrozenConfig
from aced.methods.scoring import ScoringConfig
from aced.models.two_tower import TwoTowerConfig
from aced.outputs import Embeddings
from aced.selection import SelectionConfig, select

_WORKDIRS = flags.DEFINE_list("workdirs", None, "Finished runs with a reference.", required=True)
_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_BATCHES = flags.DEFINE_integer("batches", 40, "Super-batches.")

GAINS = (10.0, 100.0)  # of configs/smoke.py and of configs/acid_b16.py
COLUMNS = ("trained", "gain", "scorer", "patch", "text_length", "precision", "recall")
COLUMNS += ("overlap", "share", "error", "noisy_share", "flops", "cpu")

_embed = jax.jit(scoring.embed, static_argnums=(0, 1))
_choose = jax.jit(select, static_argnames=("config", "loss", "size"))


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to score, for models of any size."""

    patch: int = 1  # times the model's own
    text: float = 1.0  # times the model's own length
    precision: str = "model"

    def of(self, model: TwoTowerConfig) -> ScoringConfig:
        """The settings that this is for `model`."""
        return ScoringConfig(
            patch=None if self.patch == 1 else self.patch * model.image.patch,
            text_length=None if self.text == 1 else round(model.tokenizer.length * self.text),
            precision=self.precision,
        )


EXACT = Way()
WAYS = (
    Way(precision="bfloat16"),
    Way(precision="int8"),
    Way(patch=2),
    Way(text=0.7),
    Way(patch=2, text=0.7),
    Way(patch=2, precision="int8"),
    Way(patch=2, text=0.7, precision="int8"),
)


class Run:
    """The learner and the reference of a finished run, and the data that it learns from."""

    def __init__(self, workdir: str):
        self.settings = record.read(epath.Path(workdir)).settings
        checkpoints = {"": workdir}
        checkpoints["reference/"] = self.settings["method"]["reference"]["checkpoint"]
        self.models = {}
        for prefix, checkpoint in checkpoints.items():
            model = FrozenConfig(checkpoint=checkpoint).resolve(workdir)
            self.models[prefix] = model.model, load_params(model.checkpoint, part="model")
        # The sizes of training: the logit bias has been learned for this many negatives.
        self.size = self.settings["batch_size"]
        selection = from_config(SelectionConfig, self.settings["method"]["selection"])
        self.selection = selection.for_batch(self.size)

    def batches(self) -> pipeline.Batches:
        """Super-batches of another seed than the run's."""
        data = from_config(DataConfig, self.settings["data"])
        views = {prefix: View.of(model) for prefix, (model, _) in self.models.items()}
        size, seed = self.selection.super_batch_size(self.size), self.settings["seed"] + 1
        return pipeline.train_batches(open_source(data), data, views, batch_size=size, seed=seed)

    @property
    def trained(self) -> str:
        """What it was trained with besides the full pictures and texts."""
        method = self.settings["method"]
        every, seen = method.get("multi_resolution_every"), method.get("scoring", {})
        if not every:
            return "in full"
        return f"1 in {every}: patch {seen['patch']}, {seen['text_length']} tokens"


def embed(
    run: Run, prefix: str, way: Way, batch: dict[str, np.ndarray]
) -> tuple[Embeddings, float]:
    """Embeddings of a super-batch by one of the models, and the CPU seconds that they took."""
    model, params = run.models[prefix]
    image = batch.get(f"{prefix}image", batch["image"])
    text = batch.get(f"{prefix}text", batch["text"])
    function = functools.partial(_embed, model, way.of(model), params, image, text)
    jax.block_until_ready(function())  # compiled before the clock starts
    start = time.process_time()
    found = jax.block_until_ready(function())
    return found, time.process_time() - start


def recall(e: Embeddings, is_noisy: np.ndarray) -> float:
    """R@1 from the images to the texts of the clean pairs."""
    zimg, ztxt = (np.asarray(z)[~is_noisy] for z in (e.zimg, e.ztxt))
    return (np.argmax(zimg @ ztxt.T, axis=1) == np.arange(len(zimg))).mean()


def cases():
    """Yields (name of the scorer, the learner's way or None, the reference's way, which noise)."""
    yield "both", EXACT, EXACT, 0
    yield "another draw", EXACT, EXACT, 1
    yield "reference only", None, EXACT, 0
    for way in WAYS:
        yield "learner", way, EXACT, 0
        yield "both", way, way, 0


def costs(run: Run, seconds: dict, learner: Way | None, reference: Way) -> np.ndarray:
    """Multiply-adds of scoring one example, and the least CPU seconds of a super-batch."""
    ways = {"": learner, "reference/": reference}
    used = {prefix: way for prefix, way in ways.items() if way}
    macs = [
        sum(scoring.macs(run.models[x][0], way.of(run.models[x][0]))) for x, way in used.items()
    ]
    return np.array([sum(macs), sum(min(seconds[item]) for item in used.items())])


def measure(run: Run, t: int, batch: dict[str, np.ndarray], found: dict, seconds: dict) -> None:
    """Adds a super-batch to `found`, by case, and to `seconds`, by model and way."""
    candidates, embedded = len(batch["id"]), {}
    for prefix in run.models:
        for way in (EXACT, *WAYS):
            embedded[prefix, way], spent = embed(run, prefix, way, batch)
            seconds.setdefault((prefix, way), []).append(spent)
    exact = embedded["", EXACT], embedded["reference/", EXACT]
    uniform = np.random.default_rng(t).permutation(candidates).reshape(-1, run.size)
    uniform = np.mean([batch_score(*exact, ids) for ids in uniform])
    for gain in GAINS:
        expected = None
        for scorer, learner, reference, noise in cases():
            key = jax.random.fold_in(jax.random.key(t), noise)
            pair = embedded["", learner or EXACT], embedded["reference/", reference]
            score = "learnability" if learner else "easy_reference"
            config = dataclasses.replace(run.selection, gain=gain, score=score)
            ids = np.asarray(_choose(key, *pair, config, loss="sigmoid", size=run.size).ids)
            expected = ids if expected is None else expected
            values = (
                recall(pair[0], batch["is_noisy"]) if learner else np.nan,
                np.isin(ids, expected).mean(),
                batch_score(*exact, ids) - uniform,
                batch["is_noisy"][ids].mean(),
            )
            found.setdefault((gain, scorer, learner, reference), []).append(values)


def batch_score(learner: Embeddings, reference: Embeddings, ids: np.ndarray) -> float:
    """The learner's sigmoid loss minus the reference's on the sub-batch `ids`, in float64."""

    def batch_loss(e: Embeddings) -> float:
        logits = float(e.scale) * np.float64(e.zimg[ids]) @ np.float64(e.ztxt[ids]).T
        signed = (1 - 2 * np.eye(len(ids))) * (logits + float(e.bias))
        return np.logaddexp(0, signed).sum() / len(ids)

    return batch_loss(learner) - batch_loss(reference)


def rows_of(workdir: str) -> list[tuple]:
    """The table's rows of one run."""
    run, found, seconds = Run(workdir), {}, {}
    with run.batches() as super_batches:
        for t in range(_BATCHES.value):
            measure(run, t, next(super_batches), found, seconds)
            print(workdir, t, flush=True)
    rows, in_all = [], costs(run, seconds, EXACT, EXACT)
    for (gain, scorer, learner, reference), values in found.items():
        how = (learner or EXACT).of(run.models[""][0])
        recalls, overlap, scores, noisy = np.transpose(values)
        gains = np.array(found[gain, "both", EXACT, EXACT])[:, 2]
        share = scores.mean() / gains.mean()
        error = (scores - share * gains).std(ddof=1) / np.sqrt(len(gains)) / gains.mean()
        parts = costs(run, seconds, learner, reference) / in_all
        measured = recalls.mean(), overlap.mean(), share, error, noisy.mean(), *parts
        settings = how.patch or "", how.text_length or "", how.precision
        cells = ("" if np.isnan(x) else f"{x:.3f}" for x in measured)
        rows.append((run.trained, gain, scorer, *settings, *cells))
    return rows


def main(argv: list[str]) -> None:
    """Measures every run and writes the table."""
    del argv
    rows = [row for workdir in _WORKDIRS.value for row in rows_of(workdir)]
    with open(_OUT.value, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    app.run(main)
