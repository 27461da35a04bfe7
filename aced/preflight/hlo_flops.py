"""FLOPs of one dot or convolution, as counted by XLA's HloCostAnalysis.

Two per multiply-add of existing elements, without padding and the gaps of dilation.
"""

import functools
import math
import re
from collections import Counter

from aced.preflight.hlo_text import Computation, Instruction


def product_flops(computation: Computation, i: Instruction) -> Counter:
    """FLOPs of a dot or convolution by operand type and precision: "bf16", "f32 highest"."""
    left, right = (computation.instructions[name].arrays[0] for name in i.operands[:2])
    (out,) = i.arrays
    if i.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis]
        multiplies = math.prod(out.shape) * math.prod(left.shape[axis] for axis in axes)
    else:
        multiplies = _convolution_macs(i.attributes, left.shape, right.shape, out.shape)
    precision = re.search(r"operand_precision=\{(\w+),", i.attributes)
    kind = left.dtype if left.bits >= right.bits else right.dtype
    if precision and precision[1] != "default":
        kind += f" {precision[1]}"
    return Counter({kind: 2 * multiplies})


def _convolution_macs(
    attributes: str, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> int:
    """Multiply-adds of a convolution; on TPUs every matrix product is a convolution."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(label for label in labels[1] if label.isdigit())
    total = out[labels[3].index("b")] * out[labels[3].index("f")] * right[labels[2].index("i")]

    def field(name: str, axis: int, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    for axis, label in enumerate(spatial):
        total *= _valid_positions(
            outputs=out[labels[3].index(label)],
            kernel=int(field("size", axis, "1")),
            inputs=left[labels[1].index(label)],
            stride=int(field("stride", axis, "1")),
            before=int(field("pad", axis, "0_0").split("_")[0]),
            input_dilation=int(field("lhs_dilate", axis, "1")),
            kernel_dilation=int(field("rhs_dilate", axis, "1")),
        )
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    return total // int(groups[1]) if groups else total


@functools.cache
def _valid_positions(
    *,
    outputs: int,
    kernel: int,
    inputs: int,
    stride: int,
    before: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Number of pairs of output and kernel positions that meet an existing element."""
    count = 0
    for k in range(kernel):
        for o in range(outputs):
            at, gap = divmod(o * stride + k * kernel_dilation - before, input_dilation)
            count += not gap and 0 <= at < inputs
    return count
