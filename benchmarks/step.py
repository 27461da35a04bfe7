"""One training step on one CPU core: `aced`, big_vision, and plain JAX.

    git clone https://github.com/google-research/big_vision /tmp/big_vision
    python -m benchmarks.step --big_vision=/tmp/big_vision --out=benchmarks/results/step.csv \\
        --rounds=9 --malloc default --only aced "aced, unrolled" big_vision "plain JAX"

SigLIP's loss with ViT-Ti/16 at 112 px and a Ti text tower (64 tokens, vocabulary 32,000), 64
pairs, float32, AdamW with clipped gradients, donated state. All start with the same parameters and
see the same batch; that their losses agree, step after step, is checked. Each runs in a process of
its own on the same core, and they take their steps in turn, so that a busy machine hits all alike.

Columns: `malloc`, the C library's as it is, or with GLIBC_TUNABLES=glibc.malloc.hugetlb=1; `cpu_s`
the median and `best_cpu_s` the least CPU seconds of a step over all threads; `to_plain` and
`to_big_vision` the median over the rounds of the ratio to them within a round; `compile_cpu_s`,
tracing and compiling; `peak_gb`, resident memory, compiling included.
"""

import argparse
import contextlib
import csv
import functools
import json
import os
import resource
import subprocess
import sys
import time

import jax
import numpy as np

from aced.parallel import mesh as meshes
from aced.train import program
from aced.train.config import parse
from benchmarks import big_vision_step, plain_jax

SIZES = {
    "batch": 64,
    "resolution": 112,
    "patch": 16,
    "length": 64,
    "vocabulary": 32_000,
    "total_steps": 1000,
}
HEADS = 3  # of Ti
# Of aced, settings of the model; of the others, whether layers are scanned.
IMPLEMENTATIONS = {
    "aced": {},
    "big_vision": False,
    "plain JAX": False,
    "aced, unrolled": {"scan": False},
    "aced, remat dots": {"remat": "dots"},
    "aced, remat full": {"remat": "full"},
    "big_vision, scan and remat": True,
    "plain JAX, scan": True,
}
MALLOCS = {"default": "", "huge pages": "glibc.malloc.hugetlb=1"}
WARM_UP = 2  # steps
TOLERANCE = 1e-4  # of losses, relative: float32 summed in other orders, over some steps
COLUMNS = ("implementation", "malloc", "cpu_s", "best_cpu_s", "to_plain", "to_big_vision")
COLUMNS += ("compile_cpu_s", "peak_gb", "first_loss", "last_loss")


def aced_program(changes):
    """aced's step as `aced.train` builds it, and its mesh."""
    tower = {"size": "Ti"}
    config = {
        "batch_size": SIZES["batch"],
        "total_steps": SIZES["total_steps"],
        "method": {
            "model": {
                "image": tower | {"patch": SIZES["patch"], "resolution": SIZES["resolution"]},
                "text": tower | {"length": SIZES["length"], "vocab_size": SIZES["vocabulary"]},
                **changes,
            }
        },
    }
    mesh = meshes.make_mesh()
    return program.build(parse(config), mesh), mesh


def batch_of():
    """Random pictures, as uint8 pixels, and texts."""
    rng = np.random.default_rng(0)
    n, side = SIZES["batch"], SIZES["resolution"]
    image = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    text = rng.integers(0, SIZES["vocabulary"], (n, SIZES["length"]), dtype=np.int32)
    return image, text


def build(name, checkout):
    """What to run, as (step, state, arguments, loss_of, contexts).

    `step(state, *arguments)`, jitted, gives the next state and what `loss_of` finds the loss in;
    it is compiled and run within `contexts`.
    """
    image, text = batch_of()
    setting = IMPLEMENTATIONS[name]
    kind = name.partition(",")[0]
    prog, mesh = aced_program(setting if kind == "aced" else {})
    with jax.set_mesh(mesh):
        state = prog.new_state(jax.random.key(0), {})
    if kind == "aced":
        batch = meshes.global_batch(
            {"image": image, "text": text, "id": np.arange(len(text), dtype=np.int32)}, mesh
        )
        return prog.step, state, ({}, batch), lambda out: out["loss"], (jax.set_mesh(mesh),)
    params = jax.tree.map(jax.numpy.asarray, jax.device_get(state.params["model"]))
    if kind == "big_vision":
        step, state, contexts = big_vision_step.build(checkout, params, SIZES, setting)
        # It is fed floats: its input pipeline has done what aced and plain JAX do in the step.
        batch = {"image": jax.numpy.asarray(image / 127.5 - 1, "float32"), "labels": text}
        arguments = (jax.random.key(0), batch)
        return step, state, arguments, lambda out: out["training_loss"], contexts
    state = plain_jax.init(params if setting else plain_jax.unstack(params))
    fixed = {"patch": SIZES["patch"], "heads": HEADS, "total_steps": SIZES["total_steps"]}
    step = jax.jit(functools.partial(plain_jax.step, **fixed), donate_argnums=0)
    return step, state, ({"image": image, "text": text},), lambda out: out, ()


def work(name, checkout):
    """Takes a step for each line of standard input; tells what it took, as lines of JSON."""
    step, state, arguments, loss_of, contexts = build(name, checkout)
    arguments = jax.block_until_ready(jax.device_put(arguments))
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        start = time.process_time()
        compiled = step.lower(state, *arguments).compile()
        print(json.dumps({"compile_cpu_s": time.process_time() - start}), flush=True)
        for _ in sys.stdin:
            start = time.process_time()
            state, out = jax.block_until_ready(compiled(state, *arguments))
            answer = {"cpu_s": time.process_time() - start, "loss": float(loss_of(out))}
            answer["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(json.dumps(answer), flush=True)


class Worker:
    """A process that runs one implementation."""

    def __init__(self, name, malloc, checkout):
        command = [
            sys.executable,
            "-m",
            "benchmarks.step",
            f"--work={name}",
            f"--big_vision={checkout}",
        ]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": MALLOCS[malloc]}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.name, self.process = name, subprocess.Popen(command, env=env, **pipes)
        self.compile_cpu_s = self._answer()["compile_cpu_s"]
        self.steps = []

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}; see above.")
        return json.loads(line)

    def step(self):
        """One step."""
        print(file=self.process.stdin, flush=True)
        self.steps.append(self._answer())
        print(self.name, self.steps[-1], flush=True)

    def of_steps(self, key, start=0):
        """The values of `key` in the answers of the steps from `start` on."""
        return np.array([step[key] for step in self.steps[start:]])

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def rows_of(names, malloc, rounds, checkout):
    """The table's rows of all implementations with one allocator."""
    workers = []
    try:
        for name in names:
            workers.append(Worker(name, malloc, checkout))
            print(
                f"{name} ({malloc}): compiled in {workers[-1].compile_cpu_s:.1f} CPU-s", flush=True
            )
        for _ in range(WARM_UP + rounds):
            for worker in workers:
                worker.step()
    finally:
        for worker in workers:
            worker.close()
    seconds = {worker.name: worker.of_steps("cpu_s", WARM_UP) for worker in workers}
    expected = workers[0].of_steps("loss")
    rows = []
    for worker in workers:
        losses, own = worker.of_steps("loss"), seconds[worker.name]
        np.testing.assert_allclose(losses, expected, rtol=TOLERANCE, err_msg=worker.name)
        numbers = [np.median(own), own.min()]
        numbers += [
            np.median(own / seconds[other]) if other in seconds else np.nan
            for other in ("plain JAX", "big_vision")
        ]
        numbers += [worker.compile_cpu_s, worker.steps[-1]["peak_gb"]]
        cells = [f"{number:.3f}" for number in numbers]
        rows.append([worker.name, malloc, *cells, f"{losses[0]:.6f}", f"{losses[-1]:.6f}"])
        print(*rows[-1], sep=", ", flush=True)
    return rows


def main():
    """Measures every implementation with both allocators and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--big_vision", required=True, help="The folder of a checkout.")
    parser.add_argument("--out", help="The CSV to write.")
    parser.add_argument("--rounds", type=int, default=15, help="Steps of each that are measured.")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--malloc", nargs="+", choices=MALLOCS, default=MALLOCS)
    parser.add_argument("--only", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.big_vision)
        return
    # Processes and their threads inherit it, and XLA makes as many threads as there are cores.
    os.sched_setaffinity(0, {args.core})
    rows = []
    for malloc in args.malloc:
        rows += rows_of(args.only, malloc, args.rounds, args.big_vision)
    if args.out:
        with open(args.out, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
