"""Fits a scale and a bias for the sigmoid loss to embeddings trained with another loss.

A model that was trained with the softmax loss has no bias, and its scale suits that loss. With
fixed embeddings the sigmoid loss (SigLIP, algorithm 1) of batches of b pairs

    mean_i [ log(1 + exp(-(t c_ii + a))) + (b - 1) mean_{j != i} log(1 + exp(t c_ij + a)) ]

of the cosines c_ij is a weighted logistic regression on one number, convex in scale t and bias a.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

_STEPS = 100
_TOLERANCE = 1e-10  # of the Newton decrement, in nats of the loss
_ROWS = 512  # of the cosines, at a time


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The fitted scale and bias of the logits, and their loss."""

    scale: float
    bias: float
    loss: float
    pairs: int
    batch_size: int


def fit(
    zimg: Float[np.ndarray, "n d"], ztxt: Float[np.ndarray, "n d"], batch_size: int
) -> Calibration | None:
    """Returns the scale and bias with the least sigmoid loss in batches of `batch_size` pairs.

    Uses Newton's method with step halving, in float64, on all n^2 cosines. Returns None if the
    minimum does not exist: fewer than 2 pairs, all pairs more similar than all non-pairs (the scale
    diverges), or pairs no more similar than non-pairs.
    """
    n = len(zimg)
    if n < 2 or batch_size < 2 or _are_separable(zimg, ztxt):
        return None
    weight = (batch_size - 1) / (n - 1)
    at = np.array([10.0, -np.log(batch_size)])
    loss, gradient, hessian = _derivatives(zimg, ztxt, weight, at)
    for _ in range(_STEPS):
        hessian = hessian + 1e-12 * np.trace(hessian) * np.eye(2)
        step = -np.linalg.solve(hessian, gradient)
        decrement = -gradient @ step
        if decrement < _TOLERANCE:
            scale, bias = (float(x) for x in at)
            return Calibration(scale, bias, loss, n, batch_size) if scale > 0 else None
        length = 1.0
        while True:
            trial = _derivatives(zimg, ztxt, weight, at + length * step)
            if trial[0] <= loss - 1e-4 * length * decrement or length < 1e-10:
                break
            length /= 2
        at, (loss, gradient, hessian) = at + length * step, trial
    return None


def _derivatives(
    zimg: np.ndarray, ztxt: np.ndarray, weight: float, at: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss at (scale, bias), its gradient and its Hessian."""
    n = len(zimg)
    loss, gradient, hessian = 0.0, np.zeros(2), np.zeros((2, 2))
    texts = ztxt.astype(np.float64)
    for first in range(0, n, _ROWS):
        cosines = zimg[first : first + _ROWS].astype(np.float64) @ texts.T
        rows = np.arange(len(cosines))
        is_match = np.zeros_like(cosines, bool)
        is_match[rows, first + rows] = True
        logits = at[0] * cosines + at[1]
        signed = np.where(is_match, -logits, logits)  # log(1 + exp(signed)) is the loss
        weights = np.where(is_match, 1.0, weight)
        wrong = np.exp(-np.logaddexp(0, -signed))
        slope = weights * wrong * np.where(is_match, -1.0, 1.0)
        curve = weights * wrong * (1 - wrong)
        loss += float((weights * np.logaddexp(0, signed)).sum())
        gradient += ((slope * cosines).sum(), slope.sum())
        mixed = (curve * cosines).sum()
        hessian += (((curve * cosines**2).sum(), mixed), (mixed, curve.sum()))
    return loss / n, gradient / n, hessian / n


def _are_separable(zimg: np.ndarray, ztxt: np.ndarray) -> bool:
    """Whether every pair is more similar than every non-pair."""
    least, most = np.inf, -np.inf
    for first in range(0, len(zimg), _ROWS):
        cosines = zimg[first : first + _ROWS] @ ztxt.T
        rows = np.arange(len(cosines))
        least = min(least, cosines[rows, first + rows].min())
        cosines[rows, first + rows] = -np.inf
        most = max(most, cosines.max())
    return bool(least > most)
