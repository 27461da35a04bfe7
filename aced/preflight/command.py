"""Compiles the step of a run for a topology, and reports memory, time and cost."""

import dataclasses
import math
import sys
from typing import Any

import jax
from jaxtyping import PyTree

from aced.config import ConfigError
from aced.cost import hardware
from aced.cost.hardware import GIB, Topology
from aced.parallel import mesh as meshes
from aced.preflight import aot, plan, roofline
from aced.preflight.hlo import Facts
from aced.train import program

USUAL_MFU = 0.5  # assumed in the headers of recipes
SHOWN = 20  # collectives listed individually, largest first


def report(run: plan.Plan, topology: Topology, num_slices: int = 1) -> dict[str, Any]:
    """Returns the figures under the keys of `--json`, in bytes, FLOPs and seconds.

    `hbm`, `hbm_bytes` and `collectives` are per device; `flops` are of all devices.

    Raises:
        ConfigError: the settings are inconsistent, or do not fit the topology.
    """
    chip = topology.chip
    devices = aot.devices(topology, num_slices) if chip.tpu else jax.devices()[: topology.chips]
    built = plan.first_program(run, meshes.make_mesh(devices, run.settings.mesh))
    values = _by_settings(built, topology, num_slices)
    if chip.tpu:
        line = _compile(run, built, values, chip)
    else:
        line = _without_compiler(built, values, topology)
    if line is not None:
        values["time"] = dataclasses.asdict(line) | {
            "step": line.seconds,
            "bound_by": line.bound_by,
        }
        values["examples_per_second"] = built.batch_size / line.seconds
        peak = chip.bf16 * topology.chips
        values["mfu"] = values["flops"]["model"] / line.seconds / peak
        values["run"]["chip_hours"] = line.seconds * built.total_steps * topology.chips / 3600
    if run.exchanges(built.mesh, built.batch_size):
        values["notes"].append(
            "strata are not a multiple of the devices, so chosen pictures move between them"
        )
    if earlier := ", ".join(run.settings.before):
        values["notes"].append(f"earlier runs are not counted: {earlier}")
    values["assumed"] = run.assumed
    return values


def _by_settings(built: program.Program, topology: Topology, num_slices: int) -> dict[str, Any]:
    """The figures that need no compiler."""
    config, chip = built.method.config, topology.chip
    flops = built.method.flops_per_step(built.batch_size)
    run_flops = flops * built.total_steps + built.method.flops_before(built.batch_size)
    scored = (built.total_steps + built.method.ahead) * built.candidates
    return {
        "topology": topology.name,
        "num_slices": num_slices,
        "chip": chip.name,
        "chips": topology.chips,
        "mesh": dict(built.mesh.shape),
        "batch_size": built.batch_size,
        "super_batch_size": built.candidates,
        "strata": config.selection.strata if config.selects else None,
        "parameters": {"learner": _count(built.state.params)}
        | {name: _count(params) for name, params in built.frozen.items()},
        "hbm": {
            "limit": chip.hbm,
            "state": _bytes(built.state),
            "frozen": _bytes(built.frozen),
            "batch": _bytes(built.batch()),
        },
        "flops": {"model": flops},
        "run": {
            "steps": built.total_steps,
            "examples_trained": built.total_steps * built.batch_size,
            "examples_scored": scored if config.selects else 0,
            "flops": run_flops,
            "chip_hours_at_usual_mfu": run_flops / (chip.bf16 * USUAL_MFU) / 3600,
        },
        "largest_batch_size": None,
        "notes": [],
    }


def _count(tree: PyTree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(tree: PyTree) -> int:
    """Bytes on one device, without padding."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _compile(
    run: plan.Plan, built: program.Program, values: dict[str, Any], chip: hardware.Chip
) -> roofline.Roofline | None:
    """Adds the compiler's figures to `values`. Returns None if the step does not fit."""
    limit, hbm = chip.hbm, values["hbm"]
    _log(f"compiling for {values['chips']} chips, which takes a minute or more for large models")
    attempt = aot.compile_step(built, limit)
    values |= {"method": "compiled", "fits": attempt.fits, "compile_seconds": attempt.seconds}
    hbm |= {"used": attempt.used, "free": limit - attempt.used}
    if not attempt.fits:
        best = aot.largest_batch(
            attempt,
            run.smaller_batches(built.mesh),
            lambda size: _compile_at(run, built, size, limit),
            limit,
        )
        values["largest_batch_size"] = best and best.batch_size
        return None
    hbm |= {
        "padding": attempt.memory.arguments - hbm["state"] - hbm["frozen"] - hbm["batch"],
        "temporaries": attempt.memory.temporaries,
        "code": attempt.memory.code,
    }
    values |= _of_facts(attempt.facts, values)
    return roofline.of_program(attempt.facts, chip)


def _compile_at(
    run: plan.Plan, built: program.Program, size: int, limit: int | float
) -> aot.Attempt | None:
    try:
        attempt = aot.compile_step(run.program(built.mesh, size), limit)
    except ConfigError as error:
        _log(f"batch_size {size:,} is not possible: {error}")
        return None
    _log(f"batch_size {size:,} needs {attempt.used / GIB:.2f} of {limit / GIB:.2f} GiB")
    return attempt


def _of_facts(facts: Facts, values: dict[str, Any]) -> dict[str, Any]:
    chips = values["chips"]
    kinds = {}
    for kind in dict.fromkeys(c.kind for c in facts.collectives):
        same = [c for c in facts.collectives if c.kind == kind]
        kinds[kind] = {
            "count": sum(c.times for c in same),
            "bytes": sum(c.times * c.bytes for c in same),
            "sent": sum(c.times * c.sent for c in same),
        }
    out = {
        "flops": values["flops"]
        | {
            "compiled": sum(facts.flops.values()) * chips,
            "by_type": {kind: count * chips for kind, count in facts.flops.items()},
        },
        "hbm_bytes": facts.hbm_bytes,
        "collectives": kinds,
        # By element type, over all arrays of all collectives: pixels are u8.
        "collective_bytes": _by_dtype(facts),
        "largest_collectives": [
            {
                "kind": c.kind,
                "dtype": c.dtype,
                "bytes": c.bytes,
                "count": c.times,
                "arrays": len(c.arrays),
                "shape": list(max(c.arrays, key=lambda a: a.bytes).shape),
                "origin": c.origin,
            }
            for c in sorted(facts.collectives, key=lambda c: -c.bytes)[:SHOWN]
        ],
    }
    if facts.unknown_loops:
        values["notes"].append(f"loops of unknown length, counted once: {len(facts.unknown_loops)}")
    if facts.branch_flops:
        share = facts.branch_flops / sum(facts.flops.values())
        values["notes"].append(
            f"{share:.0%} of the compiled FLOPs are in branches that not every step takes; the "
            "times are those of a step that takes them"
        )
    if facts.opaque:
        names = ", ".join(sorted(set(facts.opaque)))
        values["notes"].append(f"the FLOPs of these kernels are missing: {names}")
    if values["num_slices"] > 1:
        values["notes"].append("between slices the network is slower than what is assumed here")
    return out


def _by_dtype(facts: Facts) -> dict[str, int]:
    totals: dict[str, int] = {}
    for collective in facts.collectives:
        for array in collective.arrays:
            size = collective.times * array.bytes
            totals[array.dtype] = totals.get(array.dtype, 0) + size
    return totals


def _without_compiler(
    built: program.Program, values: dict[str, Any], topology: Topology
) -> roofline.Roofline:
    """Adds lower bounds for GPUs to `values`."""
    hbm, chip = values["hbm"], topology.chip
    used = hbm["state"] + hbm["frozen"] + hbm["batch"]
    hbm |= {"used": used, "free": chip.hbm - used}
    values |= {"method": "roofline", "fits": used <= chip.hbm}
    values["notes"].append(
        "only a roofline, nothing is compiled: temporaries, recomputation by remat, and the "
        "traffic of activations and embeddings are left out"
    )
    if topology.chips > 8:
        values["notes"].append("NVLink connects 8 cards; between machines the network is slower")
    return roofline.of_settings(
        flops=values["flops"]["model"] / topology.chips,
        state_bytes=hbm["state"],
        read_bytes=hbm["frozen"] + hbm["batch"],
        parameter_bytes=sum(
            math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(built.state.params)
        ),
        mesh=values["mesh"],
        chip=chip,
    )


def _log(text: str) -> None:
    print(f"preflight: {text}", file=sys.stderr, flush=True)
