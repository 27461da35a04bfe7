"""Temporary memory of the pairwise losses on each of eight devices: full form against ring.

    python -m benchmarks.ring --out benchmarks/results/ring.csv

Value and gradients for the embeddings, scale and bias, compiled but not run, for eight CPU devices.
`temp_mb` is what the compiler sets aside on one device beside inputs and outputs. KD has one
teacher of the student's width.
"""

import argparse
import csv
import functools
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp

from aced.losses.contrastive import sigmoid_loss, softmax_loss
from aced.losses.distillation import sigmoid_kd, softmax_kd
from aced.outputs import Embeddings
from aced.parallel.mesh import by_example, make_mesh, replicated

N, WIDTH = 8192, 512
LOSSES = {
    "sigmoid": (sigmoid_loss, 1),
    "softmax": (softmax_loss, 1),
    "softmax-KD": (softmax_kd, 2),
    "sigmoid-KD": (sigmoid_kd, 2),
}
COLUMNS = ("loss", "N", "d", "devices", "form", "temp_mb", "ratio")


def temp_mb(loss, models: int, form: str, mesh) -> float:
    """Megabytes of temporaries on one device."""
    z = jax.ShapeDtypeStruct((N, WIDTH), jnp.float32, sharding=by_example(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    embeddings = Embeddings(z, z, scalar, scalar)
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(functools.partial(loss, form=form)))
        compiled = step.lower(*[embeddings] * models).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


def main():
    """Compiles every loss in both forms and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/ring.csv")
    out = parser.parse_args().out
    mesh = make_mesh()
    rows = []
    for name, (loss, models) in LOSSES.items():
        full = temp_mb(loss, models, "full", mesh)
        ring = temp_mb(loss, models, "ring", mesh)
        for form, temp in (("full", full), ("ring", ring)):
            row = [name, N, WIDTH, mesh.size, form, f"{temp:.1f}", f"{temp / full:.3f}"]
            rows.append(row)
            print(*row, sep=", ")
    with open(out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
