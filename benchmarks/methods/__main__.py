"""Trains what a suite of runs lists and is not in its table yet.

    python -m benchmarks.methods --suite=main --work=/tmp/methods \\
        --out=benchmarks/results/methods.csv

A killed command goes on with the run that it was killed in. Several commands with `--shard=0/2`,
`--shard=1/2` share a suite and a table; --work keeps the scenes, references and embeddings.
"""

import fcntl
import pathlib

from absl import app, flags

from benchmarks.methods import suites
from benchmarks.methods.runs import NUMBERS, Bench, Run
from benchmarks.table import Runs

_SUITE = flags.DEFINE_enum("suite", "main", list(suites.SUITES), "Which runs; see suites.py.")
_WORK = flags.DEFINE_string("work", None, "Folder for what runs share.", required=True)
_OUT = flags.DEFINE_string("out", None, "The CSV to add to.", required=True)
_SHARD = flags.DEFINE_string("shard", "0/1", "Which part of the runs: NUMBER/PARTS.")
_PAIRS = flags.DEFINE_integer("pairs", 60_000, "Pairs of a pool.", 1)
_REFERENCE_STEPS = flags.DEFINE_integer("reference_steps", 3000, "Steps of a reference.", 1)


def main(argv: list[str]) -> None:
    """Runs what is missing."""
    del argv
    index, parts = (int(number) for number in _SHARD.value.split("/"))
    bench = Bench(_WORK.value, _PAIRS.value, _REFERENCE_STEPS.value)
    table = Runs(_OUT.value, Run, NUMBERS)
    runs = suites.SUITES[_SUITE.value]()
    missing = [run for run in runs[index::parts] if not table.has(run)]
    for number, run in enumerate(missing, 1):
        # What runs share is made by one command at a time.
        pathlib.Path(_WORK.value).mkdir(parents=True, exist_ok=True)
        with open(pathlib.Path(_WORK.value) / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bench.prepare(run)
        rows = bench.train(run)
        table.add(run, rows)
        last = rows[-1]
        print(
            f"{number}/{len(missing)} {run.method} b={run.batch_size} wrong={run.wrong} "
            f"seed={run.seed} {run.settings}: R@1 {last['r1']:.1%}, noise {last['noise']:.1%}, "
            f"{last['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
