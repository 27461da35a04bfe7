"""Trains what a suite of runs lists and is not in its table yet.

    python -m benchmarks.methods --suite=main --work=data/methods \\
        --out=benchmarks/results/methods.csv

The learner is a pair of perceptrons (towers.py), so that a run takes half a minute on a CPU core:
what holds for it is to be confirmed for transformers, which benchmarks/device/methods.py compares
on an accelerator. Selection, losses and metrics are the project's. The suite `gain` belongs into
gain.csv, `icons` needs what benchmarks/icons.py writes. `r1` is the mean of R@1 of both
directions among 1,000 clean scenes, or held-out icons with different names; `zeroshot` the accuracy
over the names that icon families share; `noise` the share of wrong captions, or for icons of names
that fewer than three families have, among the pairs trained on.

A killed command goes on with the run that it was killed in. Several commands with `--shard=0/2`,
`--shard=1/2` share a suite and a table; --work keeps pairs and references.
"""

import fcntl
import pathlib
import time

from absl import app, flags

from benchmarks.methods import suites
from benchmarks.methods.runs import NUMBERS, Bench, Run
from benchmarks.table import Runs


def main(argv: list[str]) -> None:
    """Runs what is missing."""
    del argv
    options = flags.FLAGS
    index, parts = (int(number) for number in options.shard.split("/"))
    work, table = pathlib.Path(options.work), Runs(options.out, Run, NUMBERS)
    work.mkdir(parents=True, exist_ok=True)

    def add_reference(run: Run, rows: list[dict[str, float]]) -> None:
        if not table.has(run):  # another --work has had one
            table.add(run, rows)

    bench = Bench(options.work, options.icons, on_reference=add_reference)
    listed = [run for suite in options.suite for run in suites.SUITES[suite]()]
    missing = [run for run in listed[index::parts] if not table.has(run)]
    for number, run in enumerate(missing, 1):
        # What runs share is made by one command at a time.
        with open(work / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bench.frozen(run)
        since = time.monotonic()
        _, rows = bench.train(run)
        seconds = time.monotonic() - since
        table.add(run, rows)
        last = " ".join(f"{key}={value:.4g}" for key, value in rows[-1].items())
        print(f"{number}/{len(missing)} {run.method} {run}: {last}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    flags.DEFINE_multi_enum("suite", ["main"], list(suites.SUITES), "Which runs; see suites.py.")
    flags.DEFINE_string("work", None, "Folder for what runs share.", required=True)
    flags.DEFINE_string("icons", "data/icons", "What benchmarks/icons.py wrote.")
    flags.DEFINE_string("out", None, "The CSV to add to.", required=True)
    flags.DEFINE_string("shard", "0/1", "Which part of the runs: NUMBER/PARTS.")
    app.run(main)
