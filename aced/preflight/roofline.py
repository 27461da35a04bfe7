"""Lower bounds on the time of a step: by compute, memory and interconnect."""

import dataclasses
from collections.abc import Mapping

from aced.cost.hardware import Chip
from aced.preflight.hlo import Facts

# Passes of bfloat16 units for a float32 product (XLA's BF16_BF16_F32_X3, _X6).
_PASSES = {"high": 3, "highest": 6}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds on one device. With perfect overlap a step takes the maximum."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The lower bound on the time of a step."""
        return max(dataclasses.astuple(self))

    @property
    def bound_by(self) -> str:
        """The name of the maximum."""
        times = dataclasses.asdict(self)
        return max(times, key=times.get)


def of_program(facts: Facts, chip: Chip) -> Roofline:
    """The roofline of a compiled program."""
    return Roofline(
        compute=_compute_seconds(facts.flops, chip),
        memory=facts.hbm_bytes / chip.hbm_bandwidth,
        interconnect=sum(c.sent * c.times for c in facts.collectives) / chip.interconnect,
    )


def of_settings(
    *,
    flops: int | float,
    state_bytes: int | float,
    read_bytes: int | float,
    parameter_bytes: int | float,
    mesh: Mapping[str, int],
    chip: Chip,
) -> Roofline:
    """The roofline of a step from its settings: a lower bound, on one device.

    Gradients are summed over `data`; over `fsdp` parameters are gathered forward and backward, and
    gradients scattered.

    Args:
        flops: per device, without rematerialisation.
        state_bytes: parameters and optimizer state per device; read and written once.
        read_bytes: batch and frozen parameters per device; read once.
        parameter_bytes: of one copy of the learner.
        mesh: lengths of the axes data, fsdp and tensor.
        chip: the device.
    """
    data, fsdp, tensor = (mesh[axis] for axis in ("data", "fsdp", "tensor"))
    whole = parameter_bytes / tensor
    sent = 2 * (data - 1) / data * whole / fsdp + 3 * (fsdp - 1) / fsdp * whole
    return Roofline(
        compute=flops / chip.bf16,
        memory=(2 * state_bytes + read_bytes) / chip.hbm_bandwidth,
        interconnect=sent / chip.interconnect,
    )


def _compute_seconds(flops: Mapping[str, int | float], chip: Chip) -> float:
    seconds = 0.0
    for kind, count in flops.items():
        dtype, _, precision = kind.partition(" ")
        is_integer = dtype in ("s8", "u8", "s4", "u4")
        rate = chip.int8 if is_integer and chip.int8 else chip.bf16
        passes = _PASSES.get(precision, 1) if dtype == "f32" else 1
        seconds += count * passes / rate
    return seconds
