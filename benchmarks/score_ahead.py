"""Images per second with candidates that are scored ahead, and what older scores pick.

    python -m benchmarks.score_ahead --out=benchmarks/results/score_ahead.csv

`part` is what is measured:

"run": examples trained per second of whole runs, in steady state. The data are JPEGs of 512
    pixels, drawn here, with stored thumbnails of 128. A tiny learner at 256 pixels selects a fifth
    of them with a cached reference. The input has as many threads as the machine has cores, which
    on a CPU it shares with the learner. `way`:
    "iid": uniform sampling, without selection.
    "synchronous": each step scores what it trains on.
    "ahead", "ahead, thumbnails": `score_ahead` steps ahead, from candidates of 128 pixels.
    `decode` is `data.decode`. `cost` is the rate of "iid" by the rate of the way: the input of an
    example trained on, in units of one that is only read and decoded.
"input": the same without a learner, whose picks are drawn at random: what the input can deliver
    to devices that take no time.
"overlap": the share of the picks that is the same with the learner of this step as with the learner
    `score_ahead` steps ago, in a training on the embedded scenes, at step `step`; `resolution` is
    that of the candidates. In "other noise" the learner is that of the step, and the draw another.

Every way is run `rounds` times, in turns, and the best rate counts, so that other work on the
machine does little. What does not apply is empty.
"""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from etils import epath

from aced.cache.config import CacheConfig
from aced.config import to_config
from aced.data import records
from aced.data.images.decode import decode
from aced.data.picks import CANDIDATES
from aced.data.pipeline import InputCounters
from aced.methods.contrastive import Contrastive
from aced.methods.scoring import ScoringConfig
from aced.metrics import history
from aced.parallel import mesh as meshes
from aced.prepare.images import make_thumbnail
from aced.train import loop
from aced.train.config import parse
from aced.train.setup import Run, input_batches, opened, set_up, stream_batches
from benchmarks import table
from benchmarks.photographs import draw
from configs import methods, smoke

_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of every way.")
_STEPS = flags.DEFINE_integer("steps", 20, "Steps of each run for the speed.")
_TRAINED = flags.DEFINE_integer("trained", 300, "Steps of the training for the overlap.")

SIDE, RESOLUTION, SMALL = 512, 256, 128
RECORDS, PICTURES = 1280, 32  # records repeat the pictures
BATCH = 64
EVERY = 25  # steps between measurements of the overlap
COLUMNS = ("part", "way", "decode", "score_ahead", "resolution", "images_per_s", "cost")
COLUMNS += ("step", "overlap")
WAYS = (  # way, decode, steps ahead, whether thumbnails are read
    ("iid", "exact", 0, False),
    ("iid", "fast", 0, False),
    ("synchronous", "exact", 0, False),
    ("synchronous", "fast", 0, False),
    ("ahead", "fast", 1, False),
    ("ahead", "fast", 2, False),
    ("ahead, thumbnails", "exact", 1, True),
    ("ahead, thumbnails", "exact", 2, True),
    ("ahead, thumbnails", "fast", 2, True),
)


# --- Input and run -------------------------------------------------------------------------------


def prepare(folder: pathlib.Path) -> None:
    """Writes the data set."""
    pictures = [draw(SIDE, seed) for seed in range(PICTURES)]
    thumbnails = [make_thumbnail(decode(picture), SMALL) for picture in pictures]
    examples = [
        records.Example(
            pictures[i % PICTURES], ("a red circle",), str(i), thumbnail=thumbnails[i % PICTURES]
        )
        for i in range(RECORDS)
    ]
    split = records.write_split(folder, "train", examples, RECORDS, 1)
    records.write_description(folder, {"train": split}, statistics={}, settings={})


def settings(data: pathlib.Path, steps: int) -> ml_collections.ConfigDict:
    """A run of a tiny model on the data set."""
    config = smoke.run(depth=1, width=32, steps=steps, seed=0, batch=BATCH)
    config.data.source = "array_record"
    config.data.array_record.path = str(data)
    config.method.model.image.resolution = RESOLUTION
    config.method.model.image.patch = 64
    config.evals = {}
    config.log_steps = max(1, steps // 2)
    config.picks_steps = 0
    config.checkpoint.every_steps = steps
    return config


def make_reference(data: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the embeddings of a reference of one step; what it has learned is no matter here."""
    config = settings(data, 1)
    config.before.reference = settings(data, 1)
    config.before_caches.reference = to_config(
        CacheConfig(out="{workdir}/embeddings", batch_size=BATCH)
    )
    methods.apply(config, "h_acid", filter_ratio=0.8, weight=1.0)
    smoke.select(config.method.selection)
    config.method.reference.checkpoint = "{workdir}/reference"
    config.method.reference.cache = "{workdir}/embeddings"
    loop.run(config, str(folder))


def configured(
    data: pathlib.Path, reference: pathlib.Path, way: tuple[str, str, int, bool]
) -> ml_collections.ConfigDict:
    """A run of one of `WAYS`."""
    name, decoder, ahead, thumbnails = way
    config = settings(data, _STEPS.value)
    config.data.decode = decoder
    config.data.thumbnails = thumbnails
    config.data.num_threads = os.cpu_count()
    if name != "iid":
        methods.apply(config, "h_acid", filter_ratio=0.8, weight=1.0)
        smoke.select(config.method.selection)
        config.method.score_micro_batch = BATCH
        config.method.reference.cache = str(reference / "embeddings")
        config.method.score_ahead = ahead
        config.method.scoring.resolution = SMALL if ahead else None
    return config


def rate_of_run(config: ml_collections.ConfigDict) -> float:
    """Examples trained per second in the second half of a run."""
    with tempfile.TemporaryDirectory() as folder:
        loop.run(config, folder)
        return history.read(epath.Path(folder))[-1]["wall/examples_per_s"]


def rate_of_input(config: ml_collections.ConfigDict) -> float:
    """Examples to train on per second, if the devices took no time; picks are drawn at random."""
    rng, steps = np.random.default_rng(0), _STEPS.value
    with tempfile.TemporaryDirectory() as folder, prepared(config, folder) as run:
        counters, ahead = InputCounters(), run.program.method.ahead

        def picked(ids: np.ndarray) -> np.ndarray:
            rows = np.sort(rng.choice(len(ids), BATCH, replace=False)).astype(np.int32)
            return np.stack([rows, ids[rows].astype(np.int32)])

        with input_batches(run, 0, counters) as batches:
            if ahead:
                with stream_batches(run, CANDIDATES, -ahead, counters, steps=ahead) as first:
                    for batch in first:
                        batches.picks.put(picked(batch["id"]))
            for number in range(2 * steps):
                if number == steps:
                    since = time.perf_counter()
                batch = next(batches)
                if ahead:
                    batches.picks.put(picked(batch[f"{CANDIDATES}id"]))
            return steps * BATCH / (time.perf_counter() - since)


@contextlib.contextmanager
def prepared(config: ml_collections.ConfigDict, folder: str) -> Iterator[Run]:
    """A run that is set up, but does not train."""
    parsed, place = parse(config), epath.Path(folder)
    mesh = meshes.make_mesh(jax.devices()[:1], parsed.mesh)
    with jax.set_mesh(mesh):
        parsed = dataclasses.replace(parsed, method=parsed.method.resolve(folder))
        run = set_up(parsed, mesh, place, opened(parsed.data))
        try:
            yield run
        finally:
            run.checkpoints.close()


def speed(folder: pathlib.Path) -> list[dict]:
    """The parts "input" and "run"."""
    data, reference = folder / "data", folder / "reference"
    data.mkdir()
    prepare(data)
    make_reference(data, reference)
    measures = {"input": rate_of_input, "run": rate_of_run}
    rates = {(part, way): [] for part in measures for way in WAYS}
    for _ in range(_ROUNDS.value):
        for (part, way), found in rates.items():
            found.append(measures[part](configured(data, reference, way)))
            print(part, *way, f"{found[-1]:.0f} images/s", flush=True)
    best = {key: max(found) for key, found in rates.items()}
    return [
        {"part": part, "way": way, "decode": decoder, "score_ahead": ahead}
        | {"resolution": SMALL if ahead else RESOLUTION, "images_per_s": round(value)}
        | {"cost": round(best[part, ("iid", decoder, 0, False)] / value, 2)}
        for (part, (way, decoder, ahead, _)), value in best.items()
    ]


# --- Overlap -------------------------------------------------------------------------------------


def overlaps(run: Run) -> Iterator[tuple[int, str, int, int, float]]:
    """Trains, and yields (step, way, steps ahead, resolution of candidates, overlap)."""
    prog, config = run.program, run.settings.method
    full = config.model.image.resolution
    scorers = {}
    for resolution in (full, full // 2):
        scoring = ScoringConfig(resolution=resolution)
        method = Contrastive(dataclasses.replace(config, score_ahead=1, scoring=scoring))
        scorers[resolution] = jax.jit(method.score_first)
    state, older = run.state, []
    memory = jnp.zeros((1, 2, prog.batch_size), jnp.int32)

    def picks(params, batch, number: int, resolution: int) -> set[int]:
        seen = dict(batch)
        if resolution != full:
            seen["image"] = _halved(batch["image"])
        asked = state.replace(params=params, method=memory)
        new = scorers[resolution](asked, run.frozen, seen, jnp.int32(number))
        return set(np.asarray(new.method)[0, 0].tolist())

    with input_batches(run, 0, InputCounters()) as batches:
        for number in range(prog.total_steps):
            batch = meshes.global_batch(next(batches), prog.mesh)
            older = [jax.tree.map(jnp.copy, state.params), *older[:2]]
            if number % EVERY == EVERY - 1:
                now = picks(older[0], batch, number, full)
                size = len(now)
                for ahead in (1, 2):
                    for resolution in (full, full // 2):
                        found = picks(older[ahead], batch, number, resolution)
                        yield number + 1, "ahead", ahead, resolution, len(now & found) / size
                other = picks(older[0], batch, number + prog.total_steps, full)
                yield number + 1, "other noise", 0, full, len(now & other) / size
            state, _ = prog.step(state, run.frozen, batch)


@jax.jit
def _halved(image: jax.Array) -> jax.Array:
    """Means of squares of pixels."""
    b, h, w, c = image.shape
    squares = image.reshape(b, h // 2, 2, w // 2, 2, c).astype(jnp.float32)
    return jnp.round(squares.mean(axis=(2, 4))).astype(jnp.uint8)


def overlap(folder: pathlib.Path) -> list[dict]:
    """The part "overlap", on the recipe `smoke` with H-ACID."""
    config = smoke.get_config(f"method=h_acid,alone,steps={_TRAINED.value}")
    config.evals = {}
    first = config.copy_and_resolve_references()
    first.total_steps = 1
    loop.run(first, str(folder / "first"))
    config.before = {}
    config.before_caches = {}
    config.method.reference.checkpoint = str(folder / "first" / "reference")
    config.method.reference.cache = str(folder / "first" / "embeddings")
    rows = []
    with prepared(config, str(folder / "run")) as run:
        for step, way, ahead, resolution, share in overlaps(run):
            rows.append(
                {"part": "overlap", "way": way, "score_ahead": ahead, "resolution": resolution}
                | {"step": step, "overlap": round(share, 3)}
            )
            print(*rows[-1].values(), flush=True)
    return rows


def main(_: Sequence[str]) -> None:
    """Measures and writes the CSV."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = speed(folder)
        table.write(_OUT.value, rows, COLUMNS)
        rows += overlap(folder)
    table.write(_OUT.value, rows, COLUMNS)


if __name__ == "__main__":
    app.run(main)
