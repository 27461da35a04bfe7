"""The steps that are measured, and the columns of their table."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.device.rows import Rows

COLUMNS = ("device", "case", "batch", "candidates", "step_s", "best_step_s", "steps")
COLUMNS += ("examples_per_s", "tflops_per_s", "mfu", "peak_gb", "planned_gb", "limit_gb")
COLUMNS += ("compile_s", "limit")
KEY = ("device", "case", "batch")


@dataclasses.dataclass(frozen=True)
class Case:
    """A recipe, and what is changed of it."""

    recipe: str  # of configs/
    arguments: tuple[str, ...] = ()  # of its get_config
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # settings by path
    first: int = 2048  # the batch to begin with
    needs_gpu: bool = False


IID = "siglip_b16"
CASES = {
    IID: Case("siglip_b16"),
    "acid_b16_online": Case("acid_b16"),
    "acid_b16_cached": Case("acid_b16", ("cache=memory",)),
    "aced_f1": Case("aced_f1", first=512),
    "kd_b16": Case("kd_b16"),
    "siglip_b16_cudnn": Case(
        "siglip_b16", changes={"method.model.attention": "cudnn"}, needs_gpu=True
    ),
}


def is_done(rows: Rows, device: str, case: str) -> bool:
    """Whether the largest batch of a case is known."""
    return any(row["limit"] for row in rows.find(device=device, case=case))


def largest_batch(rows: Rows, device: str, case: str) -> int | None:
    """The largest batch of a case that was run; None: it was not."""
    return max((int(row["batch"]) for row in rows.find(device=device, case=case)), default=None)
