"""What crosses devices, according to the compiled program."""

import math
import re

OPERATION = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def crossing(hlo: str) -> list[tuple[str, str, int]]:
    """Name, element type and number of elements of everything that devices exchange."""
    return [
        (name, dtype, math.prod(int(size) for size in dims.split(",") if size))
        for shapes, name in OPERATION.findall(hlo)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
