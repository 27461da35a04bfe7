"""Compiles a step for TPUs that are not attached, and finds the largest batch that fits."""

import bisect
import dataclasses
import importlib.util
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from aced.config import ConfigError
from aced.cost.hardware import Topology
from aced.preflight import hlo
from aced.train import program

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MOST_COMPILES = 8  # in the search for a batch size
_WORTH_IT = 1.01  # least growth of the batch that is worth a compilation


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one device, in bytes, as planned by the compiler."""

    arguments: int
    temporaries: int  # alive at the peak, without arguments
    code: int

    @property
    def used(self) -> int:
        """Bytes that must be free on the device."""
        return self.arguments + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A step, compiled or found not to fit."""

    batch_size: int
    used: int | float  # bytes of HBM that are used or, if the step does not fit, needed
    fits: bool
    seconds: float  # of compilation
    memory: Memory | None = None  # None: does not fit
    facts: hlo.Facts | None = None


def devices(topology: Topology, num_slices: int = 1) -> list[Any]:
    """The devices of a topology, for compilation only.

    Raises:
        ConfigError: libtpu is missing, or does not support a slice of this shape.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "The TPU compiler is missing; install the extra [tpu]: pip install -e '.[tpu]'. It "
            "needs no TPU. --topology=gpu:... works without it."
        )
    slices = {"num_slices": num_slices} if num_slices > 1 else {}
    try:
        tpus = topologies.get_topology_desc(
            topology_name=topology.name, platform="tpu", **slices
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"libtpu refuses the topology {topology.name}: {error}") from error
    if len(tpus) != topology.chips:
        raise ConfigError(
            f"libtpu has {len(tpus)} devices in {topology.name}, and not one for each of its "
            f"{topology.chips} chips; such slices cannot be planned for."
        )
    return list(tpus)


def compile_step(step_of: program.Program, limit: int | float) -> Attempt:
    """Compiles the step of `step_of`, which was built on a mesh of `devices`.

    `limit` is the number of bytes of HBM on a device.

    Raises:
        ConfigError: the step cannot be traced with these settings.
    """
    start = time.perf_counter()
    try:
        with jax.set_mesh(step_of.mesh):
            lowered = step_of.step.lower(step_of.state, step_of.frozen, step_of.batch())
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_memory(str(error))
        if needed is None:
            raise
        return Attempt(step_of.batch_size, needed, False, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    stats = compiled.memory_analysis()
    # XLA compares its peak with the limit. Arguments and temporaries add up to more than the peak,
    # since not all temporaries are alive at once.
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.peak_memory_in_bytes - stats.argument_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    facts = hlo.read(compiled.as_text())
    return Attempt(step_of.batch_size, memory.used, memory.used <= limit, seconds, memory, facts)


def needed_memory(message: str) -> float | None:
    """The bytes needed, from an out-of-memory message of the compiler; None: another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+)([KMGT]?)"
    match = re.search(rf"Used {size} of {size} hbm", message) or re.search(
        rf"\({size}\) exceeds available HBM \({size}\)", message
    )
    return float(match[1]) * _UNITS[match[2]] if match else None


def largest_batch(
    first: Attempt,
    sizes: Sequence[int],
    compile_at: Callable[[int], Attempt | None],
    limit: int | float,
) -> Attempt | None:
    """Finds the largest batch that fits, by compiling; None: not even the smallest fits.

    Memory is nearly linear in the batch size, so the next size to try is where the line through two
    known points meets the limit. The search ends when the line predicts a gain below 1 %.

    Args:
        first: an attempt that does not fit.
        sizes: smaller batch sizes that are possible, ascending.
        compile_at: compiles the step for a batch size; None if the settings do not allow it.
        limit: bytes of HBM on a device.
    """
    sizes = list(sizes)
    known = [(first.batch_size, first.used)]
    best, below, above = None, -1, len(sizes)  # `sizes[below]` fits, `sizes[above]` does not
    guess = first.batch_size / 2
    for _ in range(_MOST_COMPILES):
        if below + 1 >= above:
            break
        place = min(max(bisect.bisect_right(sizes, guess) - 1, below + 1), above - 1)
        attempt = compile_at(sizes[place])
        if attempt is None:
            del sizes[place]
            above -= 1
            continue
        known.append((sizes[place], attempt.used))
        if attempt.fits:
            best, below = attempt, place
        else:
            above = place
        guess = _meeting_point(known, limit)
        if guess is None:
            guess = sizes[(below + above) // 2]
        elif best and guess < max(_WORTH_IT * best.batch_size, *sizes[below + 1 : below + 2], 0):
            break
    return best


def _meeting_point(known: Sequence[tuple[int, int | float]], limit: int | float) -> float | None:
    """Where the line through the two points nearest to `limit` meets it; None: not rising."""
    (x0, y0), (x1, y1) = sorted(known, key=lambda point: abs(point[1] - limit))[:2]
    slope = (y1 - y0) / (x1 - x0)
    return x0 + (limit - y0) / slope if slope > 0 else None
