"""How a step is timed, and what follows from its seconds."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from aced.cost import hardware

WARM_UP = 1  # steps
LEAST, MOST, ABOUT = 3, 20, 5.0  # timed steps, and seconds for them


def seconds(step: Callable[[], Any]) -> list[float]:
    """Seconds of each of some steps; `step` returns when its work is done."""
    for _ in range(WARM_UP):
        step()
    found: list[float] = []
    while len(found) < LEAST or (len(found) < MOST and sum(found) < ABOUT):
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return found


def numbers(found: Sequence[float], *, batch: int, flops: int, device: str) -> dict[str, Any]:
    """A row's numbers; MFU only where the device's peak is known.

    Args:
        found: seconds of the steps.
        batch: b, examples trained on per step.
        flops: of a step, by `aced.cost.flops`: what is computed twice to save memory counts once.
        device: its kind.
    """
    step, peak = statistics.median(found), hardware.peak_flops(device)
    return {
        "steps": len(found),
        "step_s": step,
        "best_step_s": min(found),
        "examples_per_s": batch / step,
        "tflops_per_s": flops / step / 1e12,
        "mfu": "" if peak is None else flops / step / peak,
    }
