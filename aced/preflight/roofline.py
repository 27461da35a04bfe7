"""The least time that a step can take: by its products, by its memory, by its interconnect."""

import dataclasses
from collections.abc import Mapping

from aced.cost.hardware import Chip
from aced.preflight.hlo import Facts

# Products of float32 run on bfloat16 units in so many passes (XLA's BF16_BF16_F32_X3, _X6).
_PASSES = {"high": 3, "highest": 6}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds on one device. What overlaps perfectly takes as long as the longest."""

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The least time of a step."""
        return max(dataclasses.astuple(self))

    @property
    def bound_by(self) -> str:
        """Which of the three it is."""
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
    """The roofline of a step that is not compiled: what it does at least, on one device.

    Args:
        flops: of the device, without what is computed again.
        state_bytes: parameters and optimizer of the device; read and written once.
        read_bytes: batch and frozen parameters of the device; read once.
        parameter_bytes: the learner's, on all devices that share a copy together.
        mesh: lengths of the axes data, fsdp and tensor.
        chip: the device.

    Gradients are summed over `data`; over `fsdp` parameters are gathered forward and backward, and
    gradients scattered.
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
