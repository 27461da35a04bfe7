"""Steps of the recipes on one accelerator: examples a second, share of its peak, and memory.

    python -m benchmarks.device.steps --case=acid_b16_cached --out=steps.csv --seconds=60

One case, as its recipe and the loop have it, on pixels, tokens and embeddings that are random and
on the device already, with frozen models of random parameters. The batch is doubled as long as it
fits and time is left; each size that fits is a row of its own, and the last one says in `limit` why
it is the last: "memory", "time" (no more is left, or the next step would take over `LONGEST`
seconds), or "size". Where doubling is sure to fail, by what the compiler has planned for the batch
before, it is not tried.

Columns: `step_s` the median and `best_step_s` the least of the steps' seconds; `examples_per_s`
counts the examples trained on; `mfu` without what is computed twice to save memory; `peak_gb` what
this process has held at most, `planned_gb` what the compiler says that the step holds; `compile_s`
tracing and compiling, less what an earlier call on the machine has compiled.
"""

import argparse
import gc
import importlib
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from aced.parallel import mesh as meshes
from aced.train import program
from aced.train.config import TrainConfig, parse
from benchmarks.device import timing
from benchmarks.device.cases import CASES, COLUMNS, KEY, Case, is_done
from benchmarks.device.rows import Rows
from benchmarks.device.search import DoesNotFitError, largest

AT_ONCE = 512  # candidates that are scored at a time
LONGEST = 10.0  # seconds of a step
TINY_MOST = 32  # examples trained on, in a dry run
GB = 1e9


def settings(case: Case, batch_size: int, tiny: bool = False) -> TrainConfig:
    """A case's settings for a batch."""
    module = importlib.import_module(f"configs.{case.recipe}")
    config = module.get_config(",".join((*case.arguments, "tiny") if tiny else case.arguments))
    config.update_from_flattened_dict(case.changes)
    config.batch_size = batch_size
    method = config.method
    method.selection.strata = 1  # one device
    if method.score_micro_batch:
        method.score_micro_batch = min(AT_ONCE, batch_size)
    for item in (method.reference, *method.teachers.values()):
        if item.cache:
            item.scale = 10.0
            item.bias = -10.0
        elif item.checkpoint and item.model is None:  # tiny.py would have it trained first
            item.model = method.model.copy_and_resolve_references()
    config.before = {}
    config.before_caches = {}
    return parse(config)


def random_frozen(built: program.Program) -> dict[str, PyTree]:
    """Random parameters of the frozen models, held as the loop holds them."""

    def init(name: str, key: jax.Array) -> PyTree:
        model = built.method.frozen[name].model
        params = model.init(key)
        return jax.tree.map(lambda x, held: x.astype(held.dtype), params, built.frozen[name])

    made = jax.jit(init, static_argnums=0)
    return {name: made(name, jax.random.key(1)) for name in built.frozen}


def random_batch(built: program.Program) -> dict[str, jax.Array]:
    """A batch as the data would give it, made on the device."""
    words = min(model.text.vocab_size for model in built.method.models.values())

    def one(name: str, x: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
        if name == "id":
            return jnp.arange(len(x), dtype=x.dtype)
        if x.dtype == jnp.uint8:
            return jax.random.bits(key, x.shape, x.dtype)
        if x.dtype == jnp.int32:
            return jax.random.randint(key, x.shape, 0, words, x.dtype)
        z = jax.random.normal(key, x.shape, x.dtype)
        return z / jnp.linalg.norm(z, axis=-1, keepdims=True)

    shapes = built.batch()
    keys = jax.random.split(jax.random.key(2), len(shapes))
    made = jax.jit(one, static_argnums=(0, 1))
    return {name: made(name, x, key) for (name, x), key in zip(shapes.items(), keys, strict=True)}


class Steps:
    """The steps of a case, at any batch, as rows of the table."""

    def __init__(self, name: str, rows: Rows, seconds: float, tiny: bool = False):
        self._name, self._rows, self._tiny = name, rows, tiny
        self._end = time.monotonic() + seconds
        self._device = jax.devices()[0]

    def run(self, batch_size: int) -> dict[str, Any]:
        """Compiles and times the step at a batch, adds its row and returns it.

        Raises:
            DoesNotFitError: the device has not the memory.
        """
        began = time.monotonic()
        message = ""
        try:
            row = self._measure(batch_size)
        except jax.errors.JaxRuntimeError as error:
            message = str(error)
            if "RESOURCE_EXHAUSTED" not in message and "out of memory" not in message.lower():
                raise
        if message:  # the arrays of the frames that failed are free now
            gc.collect()
            print(f"{self._name}: {batch_size} does not fit: {message[:200]}", flush=True)
            raise DoesNotFitError(message)
        row["seconds"] = time.monotonic() - began
        self._rows.put([row])
        print(self._name, {k: v for k, v in row.items() if k not in KEY[:2]}, flush=True)
        return row

    def _measure(self, batch_size: int) -> dict[str, Any]:
        mesh = meshes.make_mesh([self._device])
        built = program.build(settings(CASES[self._name], batch_size, self._tiny), mesh)
        with jax.set_mesh(mesh):
            frozen = random_frozen(built)
            state = built.new_state(jax.random.key(0), frozen)
            batch = random_batch(built)
            start = time.perf_counter()
            compiled = built.step.lower(state, frozen, batch).compile()
            compile_s = time.perf_counter() - start
            fixed = sum(x.nbytes for x in jax.tree.leaves((state, frozen)))

            def step() -> None:
                nonlocal state
                state, out = compiled(state, frozen, batch)
                jax.block_until_ready((state, out))

            found = timing.seconds(step)
        plan = compiled.memory_analysis()
        planned = plan.argument_size_in_bytes + plan.output_size_in_bytes
        planned += plan.temp_size_in_bytes - plan.alias_size_in_bytes
        memory = self._device.memory_stats() or {}
        flops = built.method.flops_per_step(batch_size)
        kind = self._device.device_kind
        return {
            "device": kind,
            "case": self._name,
            "batch": batch_size,
            "candidates": built.candidates,
            **timing.numbers(found, batch=batch_size, flops=flops, device=kind),
            "compile_s": compile_s,
            "fixed_gb": fixed / GB,
            "planned_gb": planned / GB,
            "peak_gb": memory["peak_bytes_in_use"] / GB if memory else "",
            "limit_gb": memory["bytes_limit"] / GB if memory else "",
        }

    def stop(self, batch_size: int, row: dict[str, Any]) -> str:
        """Why twice the batch is not to be tried; empty: it is."""
        if batch_size >= (TINY_MOST if self._tiny else TrainConfig().batch_size):
            return "size"
        # All but parameters and optimizer grows with the batch.
        needed = 2 * row["planned_gb"] - row["fixed_gb"]
        if row["limit_gb"] and needed > row["limit_gb"]:
            return "memory"
        late = time.monotonic() + 2 * row["seconds"] - row["compile_s"] > self._end
        return "time" if late or 2 * row["step_s"] > LONGEST else ""

    def search(self) -> None:
        """Finds the largest batch."""
        first = 16 if self._tiny else CASES[self._name].first
        found = largest(first, self.run, self.stop, least=first // 8)
        if found is None:
            print(f"{self._name}: nothing fits, down to {first // 8}", flush=True)
        else:
            self._rows.put([found.result | {"limit": found.limit}])


def main() -> None:
    """Measures one case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", required=True, choices=CASES)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the CSV")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all sizes together")
    parser.add_argument("--tiny", action="store_true", help="a dry run with tiny models")
    args = parser.parse_args()
    rows, device = Rows(args.out, COLUMNS, KEY), jax.devices()[0]
    if CASES[args.case].needs_gpu and device.platform != "gpu":
        print(f"{args.case} is left out: it needs a GPU", flush=True)
    elif not is_done(rows, device.device_kind, args.case):
        Steps(args.case, rows, args.seconds, args.tiny).search()


if __name__ == "__main__":
    main()
