"""Every method on noisy pairs: noise among the picks, retrieval, and what it cost.

    python -m benchmarks.compare --work=/tmp/shapes --out=benchmarks/results/shapes.csv
    python -m benchmarks.openclipart --out=data/openclipart
    python -m benchmarks.compare --data=data/openclipart --work=/tmp/openclipart \\
        --methods=iid,h_acid,aced --out=benchmarks/results/openclipart.csv

Trains one reference on clean pairs, then a small learner by every method on the noisy ones, at
equal examples trained; and IID once more at the FLOPs of H-ACID, scoring included. Without --data
the pairs are the embedded `shapes`, of whose captions half are wrong. An interrupted benchmark
goes on where it stopped.
"""

import pathlib

import ml_collections
from absl import app, flags

from aced import summary, train
from benchmarks import table
from configs import methods, small, smoke

_WORK = flags.DEFINE_string("work", None, "Folder for the runs.", required=True)
_OUT = flags.DEFINE_string("out", None, "The CSV to write.", required=True)
_DATA = flags.DEFINE_string("data", None, "Folder with the data sets all/ and clean/.")
_METHODS = flags.DEFINE_list("methods", list(methods.METHODS), "Which methods.")
_SEEDS = flags.DEFINE_integer("seeds", 2, "Runs of each method.")
_STEPS = flags.DEFINE_integer("steps", 500, "Steps of each learner, of 64 examples.")
_REFERENCE_STEPS = flags.DEFINE_integer("reference_steps", 1500, "Steps of the reference.")
_EQUAL_FLOPS = flags.DEFINE_bool("equal_flops", True, "IID at the FLOPs of H-ACID, too.")

NUMBERS = (
    "examples_trained",
    "examples_scored",
    "flops",
    "selection/noisy_share",
    "retrieval/i2t_r1",
    "retrieval/t2i_r1",
    "retrieval/mean_r1",
    "classes/top1",  # shapes only
)
COLUMNS = ("run", "seed", *NUMBERS)


def main(argv: list[str]) -> None:
    """Runs what is missing and writes the table."""
    del argv
    work = pathlib.Path(_WORK.value)
    size = {"depth": 4, "width": 128, "steps": _REFERENCE_STEPS.value, "seed": 1000}
    if _DATA.value:
        reference = small.run(f"{_DATA.value}/clean", f"{_DATA.value}/all", **size)
    else:
        reference = smoke.run(**size)
    rows = [_row("reference", 0, reference, work / "reference")]
    for seed in range(_SEEDS.value):
        for method in _METHODS.value:
            config = _learner(method, seed, _STEPS.value)
            rows.append(_row(method, seed, config, work / f"{method}-{seed}"))
            table.write(_OUT.value, rows, COLUMNS)
    if _EQUAL_FLOPS.value:
        flops = {row["run"]: float(row["flops"]) for row in rows}
        steps = round(_STEPS.value * flops["h_acid"] / flops["iid"])
        rows.append(_row("iid, equal FLOPs", 0, _learner("iid", 0, steps), work / "iid-flops"))
        table.write(_OUT.value, rows, COLUMNS)


def _learner(method: str, seed: int, steps: int) -> ml_collections.ConfigDict:
    arg = f"method={method},seed={seed},steps={steps}"
    if methods.uses_reference(method):
        arg += f",reference={pathlib.Path(_WORK.value) / 'reference'}"
    return (
        small.get_config(f"{arg},data={_DATA.value}/all") if _DATA.value else smoke.get_config(arg)
    )


def _row(run: str, seed: int, config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
    train.run(config, str(workdir))
    values = summary.values(workdir)
    found = {name: values[name] for name in NUMBERS if name in values}
    row = {k: v if isinstance(v, int) else f"{v:.4f}" for k, v in found.items()}
    print(run, seed, row, flush=True)
    return {"run": run, "seed": seed, **row}


if __name__ == "__main__":
    app.run(main)
