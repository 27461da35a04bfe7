"""What weights in 8-bit integers cost in accuracy: the evaluations of the smoke run's models.

    python -m aced.main --config=configs/smoke.py
    python -m benchmarks.int8 --run=runs/smoke

Each row has the numbers of one model in one precision, and the megabytes of its parameters.
"""

import argparse
import pathlib

import jax
from jaxtyping import PyTree

from aced import evaluate, inference
from aced.evaluate import EvaluateConfig
from aced.models import int8_weights
from benchmarks import table
from configs import smoke

MODELS = {"ACED learner": "", "reference": "reference"}  # folders in the run's
PRECISIONS = ("float32", "bfloat16", "int8_weights")


def megabytes(folder: str, precision: str) -> float:
    """The size of a model's parameters; in bfloat16 as they are kept for inference."""
    model = inference.read(folder)
    if precision == "int8_weights":
        return _bytes(int8_weights.quantized(model.params)) / 1e6
    return _bytes(inference.Towers(model.config, model.params, precision).params) / 1e6


def _bytes(params: PyTree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(params))


def main() -> None:
    """Evaluates and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=pathlib.Path, default="runs/smoke")
    parser.add_argument("--out", default=table.RESULTS / "int8.csv")
    options = parser.parse_args()
    rows = []
    for name, place in MODELS.items():
        folder = str(options.run / place)
        for precision in PRECISIONS:
            wanted = EvaluateConfig(model=folder, precision=precision)
            numbers = evaluate.run(smoke.get_config("method=iid"), wanted, str(options.run))
            row = {"model": name, "precision": precision}
            row["megabytes"] = f"{megabytes(folder, precision):.3f}"
            row |= {key: f"{value:.4f}" for key, value in numbers.items()}
            rows.append(row)
            print(row, flush=True)
    table.write(options.out, rows)


if __name__ == "__main__":
    main()
