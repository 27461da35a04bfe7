"""Joint selection against the paper's pseudo-code, which scores with the full B x B matrix.

    python benchmarks/selection.py --out benchmarks/results/selection.csv

One row per super-batch and implementation: CPU seconds (all threads; best of 3), temporary memory
as compiled, and whether the picks drawn with the same noise are the same: `same_chunks`, every
chunk has the same members; `reordered`, positions at which the two differ, which are float32
rounding at near-ties inside a chunk, where order has no meaning. CPU only; times on a busy machine
are noisy, so read the ratios. Softmax has no matrix
form of its own; its ratios are to that of the sigmoid.
"""

import argparse
import csv
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from aced.embeddings import Embeddings
from aced.selection import SelectionConfig
from aced.selection.joint import select_joint
from aced.selection.scores import score_terms, softplus

SHAPES = ((4096, 256, 816), (8192, 512, 1632))  # B, d, b: f = 0.8, b divisible by 16 chunks
COLUMNS = ("B", "d", "b", "chunks", "loss", "implementation", "cpu_s", "temp_mb", "cpu_ratio")
COLUMNS += ("temp_ratio", "same_chunks", "reordered")


def embeddings(key, n: int, d: int, spread: float) -> Embeddings:
    """Unit vectors around one direction per pair; a larger `spread` is a worse model."""
    keys = jax.random.split(key, 2)
    centre = jax.random.normal(jax.random.key(0), (n, d))
    zimg, ztxt = (centre + spread * jax.random.normal(k, (n, d)) for k in keys)
    zimg, ztxt = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, ztxt))
    return Embeddings(zimg=zimg, ztxt=ztxt, scale=jnp.array(10.0), bias=jnp.array(-7.0))


def matrix_form(noise, learner, reference, config, size):
    """JEST's algorithm 1: the pairwise score matrix, then its masked row and column sums per chunk.

    Made as fast as it gets: the masked sums are matrix-vector products, the elementwise part is
    that of `aced.selection`, and the draw is by Gumbel top-k, since exp() overflows.
    """
    n = noise.shape[1]
    sign = 1 - 2 * jnp.eye(n)

    def nll(e):
        logits = e.scale * jnp.einsum("id,jd->ij", e.zimg, e.ztxt, precision="highest") + e.bias
        return softplus(sign * logits)

    scores = nll(learner) - nll(reference)

    def step(sampled, chunk_noise):
        given = jnp.matmul(scores, sampled, precision="highest")
        given += jnp.matmul(sampled, scores, precision="highest")
        logits = config.gain * (jnp.diag(scores) + given) + chunk_noise
        logits = jnp.where(sampled == 1, -jnp.inf, logits)
        chunk = jax.lax.top_k(logits, size // config.chunks)[1]
        return sampled.at[chunk].set(1), chunk

    return jax.lax.scan(step, jnp.zeros(n), noise)[1].reshape(-1)


def blocks_form(noise, learner, reference, config, size, loss="sigmoid"):
    """The one in `aced.selection`."""
    terms = score_terms(config.score, learner, reference)
    return select_joint(noise, terms, config, loss=loss, size=size)[0]


def softmax_form(start):
    """The softmax version, with one of its two first chunks."""

    def form(noise, learner, reference, config, size):
        config = dataclasses.replace(config, softmax_start=start)
        return blocks_form(noise, learner, reference, config, size, loss="softmax")

    return form


def same_chunks(ids, expected, chunks):
    """Whether every chunk has the same members."""
    return np.array_equal(*(np.sort(x.reshape(chunks, -1), axis=1) for x in (ids, expected)))


def measure(function, *args):
    """Ids, CPU seconds (best of 3) and temporary megabytes of `function(*args)`, jitted."""
    compiled = jax.jit(function).lower(*args).compile()
    seconds = []
    for _ in range(3):
        start = time.process_time()
        ids = jax.block_until_ready(compiled(*args))
        seconds.append(time.process_time() - start)
    return np.asarray(ids), min(seconds), compiled.memory_analysis().temp_size_in_bytes / 1e6


def main():
    """Measures every shape and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/selection.csv")
    out = parser.parse_args().out
    config = SelectionConfig()
    rows = []
    for n, d, size in SHAPES:
        noise = jax.random.gumbel(jax.random.key(3), (config.chunks, n))
        models = embeddings(jax.random.key(1), n, d, 2.0), embeddings(jax.random.key(2), n, d, 1.0)
        settings = {"config": config, "size": size}
        expected = None
        for loss, name, form in (
            ("sigmoid", "full matrix", matrix_form),
            ("sigmoid", "blocks", blocks_form),
            ("softmax, start alone", "blocks", softmax_form("alone")),
            ("softmax, start super_batch", "blocks", softmax_form("super_batch")),
        ):
            ids, cpu, temp = measure(functools.partial(form, **settings), noise, *models)
            if expected is None:
                expected, matrix_cpu, matrix_temp = ids, cpu, temp
            row = [n, d, size, config.chunks, loss, name, f"{cpu:.3f}", f"{temp:.2f}"]
            row += [f"{cpu / matrix_cpu:.3f}", f"{temp / matrix_temp:.4f}"]
            row += [same_chunks(ids, expected, config.chunks), (ids != expected).sum()]
            rows.append(row if loss == "sigmoid" else [*row[:-2], "", ""])
            print(*rows[-1], sep=", ")
    with open(out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
