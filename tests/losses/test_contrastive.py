"""Against the papers' formulas in float64 loops, and numeric derivatives of those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.losses import LOSSES
from aced.losses.contrastive import PRECISION, block_logits, pairs, softmax_loss
from aced.outputs import Embeddings

SCALE, BIAS = 7.3, -2.1
PARTS = ("zimg", "ztxt", "scale", "bias")


def arrays(n: int = 6, d: int = 5) -> list[np.ndarray]:
    z = np.random.default_rng(0).normal(size=(2, n, d))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return [z[0], z[1], np.array(SCALE), np.array(BIAS)]


def embeddings(parts: list[np.ndarray]) -> Embeddings:
    values = [jnp.asarray(x, jnp.float32) for x in parts]
    return Embeddings(**dict(zip(PARTS, values, strict=True)))


def logits(e: Embeddings) -> jax.Array:
    return block_logits(pairs(e), PRECISION)


def sigmoid_oracle(zimg, ztxt, scale, bias) -> float:
    n, total = len(zimg), 0.0
    for i in range(n):
        for j in range(n):
            s = 1 if i == j else -1
            total += np.log1p(np.exp(-s * (scale * zimg[i] @ ztxt[j] + bias)))
    return total / n


def softmax_oracle(zimg, ztxt, scale, bias) -> float:
    n, total = len(zimg), 0.0
    weights = np.exp(scale * zimg @ ztxt.T + bias)
    for i in range(n):
        total -= 0.5 * np.log(weights[i, i] / weights[i].sum())
        total -= 0.5 * np.log(weights[i, i] / weights[:, i].sum())
    return total / n


ORACLES = {"sigmoid": sigmoid_oracle, "softmax": softmax_oracle}


def numeric_gradient(function, parts, index, step=1e-5):
    out = np.zeros_like(parts[index])
    for at in np.ndindex(out.shape):
        moved = [[x.copy() for x in parts] for _ in range(2)]
        moved[0][index][at] += step
        moved[1][index][at] -= step
        out[at] = (function(*moved[0]) - function(*moved[1])) / (2 * step)
    return out


@pytest.mark.parametrize("name", LOSSES)
def test_value(name):
    parts = arrays()
    np.testing.assert_allclose(LOSSES[name](embeddings(parts)), ORACLES[name](*parts), rtol=1e-5)


@pytest.mark.parametrize("index", range(4), ids=PARTS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name, index):
    parts = arrays()
    gradient = getattr(jax.grad(LOSSES[name])(embeddings(parts)), PARTS[index])
    expected = numeric_gradient(ORACLES[name], parts, index)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-6)


def test_logits_put_images_in_rows():
    parts = arrays()
    expected = SCALE * parts[0][2] @ parts[1][4] + BIAS
    assert float(logits(embeddings(parts))[2, 4]) == pytest.approx(expected, abs=1e-5)


def test_logits_are_float32_from_bfloat16():
    parts = embeddings(arrays())
    half = parts.replace(zimg=parts.zimg.astype(jnp.bfloat16), ztxt=parts.ztxt.astype(jnp.bfloat16))
    assert logits(half).dtype == jnp.float32
    as_float = half.replace(zimg=half.zimg.astype(jnp.float32), ztxt=half.ztxt.astype(jnp.float32))
    np.testing.assert_array_equal(logits(half), logits(as_float))


def test_softmax_ignores_the_bias_and_is_symmetric_in_the_modalities():
    zimg, ztxt, scale, bias = arrays()
    value = float(softmax_loss(embeddings([zimg, ztxt, scale, bias])))
    swapped = softmax_loss(embeddings([ztxt, zimg, scale, bias + 5]))
    assert value == pytest.approx(float(swapped), rel=1e-5)


def test_extreme_scales_stay_finite():
    parts = arrays()
    parts[2] = np.array(1e4)
    for name, loss in LOSSES.items():
        value, gradient = jax.value_and_grad(loss)(embeddings(parts))
        assert np.isfinite(value), name
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient)), name
