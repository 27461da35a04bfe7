"""Rows of embeddings as bytes: float32, bfloat16, or int8 with one float32 scale per row.

`Errors` measures the rounding errors of all rows that are stored.
"""

from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from jaxtyping import Float, UInt8

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS = get_args(Precision)

_FLOAT32 = np.dtype("<f4")
_LEVELS = 127  # symmetric int8: a row's largest entry becomes 127 or -127


def row_bytes(precision: Precision, width: int) -> int:
    """Bytes of one row of `width` numbers."""
    return {"float32": 4 * width, "bfloat16": 2 * width, "int8": 4 + width}[precision]


def encode(rows: Float[np.ndarray, "n d"], precision: Precision) -> UInt8[np.ndarray, "n bytes"]:
    """Returns `rows` as `row_bytes` bytes each, in little-endian order.

    In int8 a row is its scale, max |x| / 127, and round(x / scale), with errors of at most half of
    the scale.
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
    """Returns the rows that `encode` wrote as float32, with its rounding errors."""
    data = np.ascontiguousarray(data)
    if precision == "float32":
        return data.view(_FLOAT32)
    if precision == "bfloat16":
        return data.view(ml_dtypes.bfloat16).astype(np.float32)
    scales = np.ascontiguousarray(data[:, :4]).view(_FLOAT32)
    return data[:, 4:].view(np.int8) * scales


class Errors:
    """Rounding errors of each precision over all rows added.

    `distance` is |z' - z| of a row z of length 1 and its stored row z'; `cosine` is
    |<zimg', ztxt'> - <zimg, ztxt>| of a pair; times the model's scale it is a logit's error.
    """

    def __init__(self, sums: dict[str, Any] | None = None):
        """Starts from zero, or from the `sums` of another instance."""
        self.sums = sums or {
            precision: {
                kind: {"count": 0, "squares": 0.0, "max": 0.0} for kind in ("distance", "cosine")
            }
            for precision in PRECISIONS
        }

    def add(self, *towers: Float[np.ndarray, "n d"]) -> None:
        """Adds the rows of one tower, or pairs of rows of both."""
        for precision in PRECISIONS:
            stored = [decode(encode(rows, precision), precision) for rows in towers]
            for rows, rounded in zip(towers, stored, strict=True):
                self._count(precision, "distance", np.linalg.norm(rounded - rows, axis=1))
            if len(towers) == 2:
                errors = (stored[0] * stored[1]).sum(1) - (towers[0] * towers[1]).sum(1)
                self._count(precision, "cosine", np.abs(errors))

    def _count(self, precision: str, kind: str, errors: Float[np.ndarray, " n"]) -> None:
        errors = errors.astype(np.float64)
        largest = float(errors.max(initial=0.0))
        self._add(precision, kind, len(errors), float(np.square(errors).sum()), largest)

    def _add(self, precision: str, kind: str, count: int, squares: float, largest: float) -> None:
        total = self.sums[precision][kind]
        total["count"] += count
        total["squares"] += squares
        total["max"] = max(total["max"], largest)

    def merge(self, other: "Errors") -> None:
        """Adds the errors of another instance."""
        for precision, kinds in other.sums.items():
            for kind, sums in kinds.items():
                self._add(precision, kind, sums["count"], sums["squares"], sums["max"])

    def summary(self) -> dict[str, dict[str, Any]]:
        """Root mean square and maximum by precision and kind; kinds without rows are left out."""
        return {
            precision: {
                kind: {"rms": float(np.sqrt(s["squares"] / s["count"])), "max": s["max"]}
                for kind, s in kinds.items()
                if s["count"]
            }
            for precision, kinds in self.sums.items()
        }
