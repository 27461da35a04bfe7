"""What is chosen with embeddings of lower precision, on trained models.

    python -m aced.main --config=configs/smoke.py:method=aced,steps=600 --workdir=/tmp/aced \\
        --config.before.reference.total_steps=1000
    python -m benchmarks.cache_picks --workdir=/tmp/aced --batches=6 \\
        --out=benchmarks/results/cache_picks.csv

The learner and the reference of the run embed super-batches that it has not seen, and sub-batches
are chosen with the reference's embeddings as a cache of each precision gives them back, by the same
random numbers. Columns: `overlap`, the share of the picks that float32 makes, too; `share`, the
part of what joint selection with float32 gains over uniform draws, in the score of the sub-batch
(as in benchmarks/strata.py, by the exact embeddings), and `error`, its standard error. The row
"float32, other noise" compares with another draw by float32: the effect of chance alone.
"""

import csv

import jax
import numpy as np
from absl import app, flags

from aced.cache.precision import PRECISIONS, decode, encode
from aced.selection import SelectionConfig
from benchmarks import strata

SIZE, CHUNKS = 512, 16  # b, and the recipes' number of chunks; B = 5 b
GAINS = (10.0, 100.0)
OTHER = "float32, other noise"
COLUMNS = ("super_batches", "B", "b", "gain", "precision", "overlap", "share", "error")


def stored(reference, precision):
    """The embeddings as a cache gives them back."""
    zimg, ztxt = (decode(encode(z, precision), precision) for z in (reference.zimg, reference.ztxt))
    return reference.replace(zimg=zimg, ztxt=ztxt)


def measure(learner, reference, gain, t):
    """(overlap, gain over uniform draws) of each precision on one super-batch."""
    config = SelectionConfig(chunks=CHUNKS, gain=gain, strata=1)
    key = jax.random.fold_in(jax.random.key(t), int(gain))
    keys = dict.fromkeys(PRECISIONS, key) | {OTHER: jax.random.fold_in(key, 1)}
    ids = {}
    for name, noise in keys.items():
        seen = stored(reference, "float32" if name == OTHER else name)
        found = strata.choose(noise, learner, seen, config, loss="sigmoid", size=SIZE)
        ids[name] = np.asarray(found.ids)
    uniform = np.random.default_rng(t).choice(len(learner.zimg), SIZE, replace=False)
    start = strata.batch_score(learner, reference, uniform, "sigmoid")
    kept = set(ids["float32"].tolist())
    return {
        name: (
            len(kept & set(chosen.tolist())) / SIZE,
            strata.batch_score(learner, reference, chosen, "sigmoid") - start,
        )
        for name, chosen in ids.items()
    }


def main(argv: list[str]) -> None:
    """Measures, and writes the table after every super-batch."""
    del argv
    candidates = SelectionConfig(chunks=CHUNKS).super_batch_size(SIZE)
    found = {gain: [] for gain in GAINS}
    batches = strata.Run(flags.FLAGS.workdir).super_batches(candidates, flags.FLAGS.batches)
    for t, (learner, reference, _) in enumerate(batches):
        rows = []
        for gain, measured in found.items():
            measured.append(measure(learner, reference, gain, t))
            most = np.array([one["float32"][1] for one in measured])
            for name in measured[0]:
                overlap, gained = np.array([one[name] for one in measured]).T
                share, count = gained.mean() / most.mean(), len(measured)
                spread = (gained - share * most).std(ddof=min(1, count - 1)) / most.mean()
                cells = f"{overlap.mean():.4f}", f"{share:.4f}", f"{spread / count**0.5:.4f}"
                rows.append((count, candidates, SIZE, gain, name, *cells))
                print(*rows[-1], flush=True)
        with open(flags.FLAGS.out, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    app.run(main)
