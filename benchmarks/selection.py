"""Joint selection against the paper's pseudo-code, which scores with the full B x B matrix.

    python -m benchmarks.selection --out benchmarks/results/selection.csv

One row per super-batch and implementation: CPU seconds (best of 3, on one core), temporary memory
as compiled, and whether the picks drawn with the same noise are the same: `same_chunks`, every
chunk has the same members; `reordered`, positions at which the two differ, which are float32
rounding at near-ties inside a chunk, where order has no meaning. CPU only; the implementations take
turns, and times on a busy machine are noisy, so read the ratios. Softmax has no matrix form of its
own; its ratios are to that of the sigmoid.
"""

import argparse
import csv
import dataclasses
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from aced.outputs import Embeddings
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


def softmax_form(first):
    """The softmax version, with one of its two first chunks."""

    def form(noise, learner, reference, config, size):
        config = dataclasses.replace(config, first_chunk=first)
        return blocks_form(noise, learner, reference, config, size, loss="softmax")

    return form


FORMS = (
    ("sigmoid", "full matrix", matrix_form),  # first: the others are compared with it
    ("sigmoid", "blocks", blocks_form),
    ("softmax, start alone", "blocks", softmax_form("uniform")),
    ("softmax, start super_batch", "blocks", softmax_form("score")),
)


def same_chunks(ids, expected, chunks):
    """Whether every chunk has the same members."""
    return np.array_equal(*(np.sort(x.reshape(chunks, -1), axis=1) for x in (ids, expected)))


def measure(functions, *args):
    """Ids, CPU seconds (best of 3) and temporary megabytes of every `function(*args)`, jitted."""
    compiled = [jax.jit(function).lower(*args).compile() for function in functions]
    ids, seconds = [None] * len(compiled), [[] for _ in compiled]
    for _ in range(3):
        for i, run in enumerate(compiled):
            start = time.process_time()
            ids[i] = jax.block_until_ready(run(*args))
            seconds[i].append(time.process_time() - start)
    temp = [run.memory_analysis().temp_size_in_bytes / 1e6 for run in compiled]
    return [np.asarray(x) for x in ids], [min(x) for x in seconds], temp


def main():
    """Measures every shape and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks/results/selection.csv")
    out = parser.parse_args().out
    jax.config.update("jax_platforms", "cpu")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # JAX's threads, made later, inherit it
    config = SelectionConfig(strata=1)  # the paper's algorithm
    rows = []
    for n, d, size in SHAPES:
        noise = jax.random.gumbel(jax.random.key(3), (config.chunks, n))
        models = embeddings(jax.random.key(1), n, d, 2.0), embeddings(jax.random.key(2), n, d, 1.0)
        settings = {"config": config, "size": size}
        forms = [functools.partial(form, **settings) for _, _, form in FORMS]
        ids, cpu, temp = measure(forms, noise, *models)
        for i, (loss, name, _) in enumerate(FORMS):
            row = [n, d, size, config.chunks, loss, name, f"{cpu[i]:.3f}", f"{temp[i]:.2f}"]
            row += [f"{cpu[i] / cpu[0]:.3f}", f"{temp[i] / temp[0]:.4f}"]
            row += [same_chunks(ids[i], ids[0], config.chunks), (ids[i] != ids[0]).sum()]
            rows.append(row if loss == "sigmoid" else [*row[:-2], "", ""])
            print(*rows[-1], sep=", ")
    with open(out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
