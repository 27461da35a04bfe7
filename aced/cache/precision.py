"""Rows of embeddings as bytes: float32, bfloat16, or int8 with one float32 scale per row.

What a precision costs is measured on the rows themselves: `Errors` is told of all that are stored.
"""

from typing import Any, Literal

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8

PRECISIONS = ("float32", "bfloat16", "int8")
Precision = Literal["float32", "bfloat16", "int8"]

_FLOAT32 = np.dtype("<f4")
_LEVELS = 127  # int8 is used symmetrically: a row's largest entry becomes 127 or -127


def row_bytes(precision: Precision, width: int) -> int:
    """Bytes of one row of `width` numbers."""
    return {"float32": 4 * width, "bfloat16": 2 * width, "int8": 4 + width}[precision]


def encode(rows: Float[np.ndarray, "n d"], precision: Precision) -> UInt8[np.ndarray, "n bytes"]:
    """Returns `rows` as `row_bytes` bytes each, in little-endian order.

    In int8 a row is its scale, max |x| / 127, and round(x / scale): no entry is off by more than
    half of the scale.
    """
    rows = np.ascontiguousarray(rows, _FLOAT32)
    if precision == "float32":
        return rows.view(np.uint8)
    if precision == "bfloat16":
        return rows.astype(ml_dtypes.bfloat16).view(np.uint8)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(_LEVELS)
    levels = np.rint(rows / np.where(scales > 0, scales, 1)).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), levels.view(np.uint8)], axis=1)


def decode(data: UInt8[np.ndarray, "n bytes"], precision: Precision) -> Float[np.ndarray, "n d"]:
    """Returns the float32 rows that `encode` wrote, as far as the precision has kept them."""
    data = np.ascontiguousarray(data)
    if precision == "float32":
        return data.view(_FLOAT32)
    if precision == "bfloat16":
        return data.view(ml_dtypes.bfloat16).astype(np.float32)
    scales = np.ascontiguousarray(data[:, :4]).view(_FLOAT32)
    return data[:, 4:].view(np.int8) * scales


class Errors:
    """How far each precision is off, over all rows that it was told of.

    `distance` is |z' - z| of a row z, which has length 1, and the row z' that is read again;
    `cosine` is |<zimg', ztxt'> - <zimg, ztxt>| of a pair, which times the model's scale is the
    error of a logit.
    """

    def __init__(self, sums: dict[str, Any] | None = None):
        """Starts at nothing, or goes on from the `sums` of another one."""
        self.sums = sums or {
            precision: {
                kind: {"count": 0, "squares": 0.0, "max": 0.0} for kind in ("distance", "cosine")
            }
            for precision in PRECISIONS
        }

    def add(self, *towers: Float[np.ndarray, "n d"]) -> None:
        """Counts the rows of one or both towers, which then are pairs."""
        for precision in PRECISIONS:
            stored = [decode(encode(rows, precision), precision) for rows in towers]
            for rows, found in zip(towers, stored, strict=True):
                self._count(precision, "distance", np.linalg.norm(found - rows, axis=1))
            if len(towers) == 2:
                off = (stored[0] * stored[1]).sum(1) - (towers[0] * towers[1]).sum(1)
                self._count(precision, "cosine", np.abs(off))

    def _count(self, precision: str, kind: str, off: Float[np.ndarray, " n"]) -> None:
        into, off = self.sums[precision][kind], off.astype(np.float64)
        into["count"] += len(off)
        into["squares"] += float(np.square(off).sum())
        into["max"] = max(into["max"], float(off.max(initial=0.0)))

    def merge(self, other: "Errors") -> None:
        """Adds what another one was told of."""
        for precision, kinds in other.sums.items():
            for kind, found in kinds.items():
                into = self.sums[precision][kind]
                into["count"] += found["count"]
                into["squares"] += found["squares"]
                into["max"] = max(into["max"], found["max"])

    def summary(self) -> dict[str, dict[str, Any]]:
        """By precision and kind, root mean square and maximum; without kinds of no rows."""
        return {
            precision: {
                kind: {"rms": float(np.sqrt(s["squares"] / s["count"])), "max": s["max"]}
                for kind, s in kinds.items()
                if s["count"]
            }
            for precision, kinds in self.sums.items()
        }
