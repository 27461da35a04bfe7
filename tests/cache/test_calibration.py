"""The fit of scale and bias, against scipy on the loss written out, and against SigLIP's loss."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from aced.cache import calibration
from aced.losses.contrastive import sigmoid_loss
from aced.outputs import Embeddings


def pairs(n=60, d=16, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    text = image + noise * d**0.5 * rng.normal(size=(n, d))
    return [
        (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32) for z in (image, text)
    ]


def loss(at, zimg, ztxt, batch_size):
    cosines = zimg.astype(np.float64) @ ztxt.T.astype(np.float64)
    n, total = len(cosines), 0.0
    for i in range(n):
        for j in range(n):
            logit = at[0] * cosines[i, j] + at[1]
            weight = 1.0 if i == j else (batch_size - 1) / (n - 1)
            total += weight * np.logaddexp(0, -logit if i == j else logit)
    return total / n


@pytest.mark.parametrize("batch_size", [4, 60, 32_768])
def test_least_loss_matches_scipy(batch_size):
    zimg, ztxt = pairs()
    found = calibration.fit(zimg, ztxt, batch_size)
    expected = optimize.minimize(
        loss, (5.0, -5.0), (zimg, ztxt, batch_size), method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-12, "maxiter": 400},
    )  # fmt: skip
    assert found.loss == pytest.approx(expected.fun, rel=1e-7)
    assert (found.scale, found.bias) == pytest.approx(tuple(expected.x), rel=1e-3)
    assert (found.pairs, found.batch_size) == (60, batch_size)


def test_loss_of_all_pairs_is_the_sigmoid_loss():
    zimg, ztxt = pairs(noise=0.5)
    found = calibration.fit(zimg, ztxt, 60)

    def training_loss(scale, bias):
        model = Embeddings(*map(jnp.asarray, (zimg, ztxt)), jnp.float32(scale), jnp.float32(bias))
        return float(sigmoid_loss(model))

    best = training_loss(found.scale, found.bias)
    assert best == pytest.approx(found.loss, rel=1e-5)
    for scale in (0.9, 1.1):
        assert training_loss(found.scale * scale, found.bias) > best
    for bias in (-0.5, 0.5):
        assert training_loss(found.scale, found.bias + bias) > best


def test_no_fit_without_a_best_scale():
    zimg, ztxt = pairs()
    assert calibration.fit(zimg, zimg, 8) is None  # all pairs are separated
    assert calibration.fit(zimg[:1], ztxt[:1], 8) is None
    assert calibration.fit(zimg, ztxt, 1) is None  # there are no other pairs
    assert calibration.fit(zimg, -ztxt, 8) is None  # pairs are less alike than others


def test_far_starts_come_home():
    """Cosines all near 0.8, as towers with a cone give, want a bias of minus dozens."""
    zimg, ztxt = pairs(n=200, noise=0.4)
    shift = np.ones((200, 4), np.float32)
    zimg, ztxt = (
        (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
        for z in (np.hstack([0.2 * zimg, shift]), np.hstack([0.2 * ztxt, shift]))
    )
    found = calibration.fit(zimg, ztxt, 1024)
    at = np.array([found.scale, found.bias])
    cosines = zimg.astype(np.float64) @ ztxt.T.astype(np.float64)
    wrong = 1 / (1 + np.exp(-(at[0] * cosines + at[1])))
    weights = np.where(np.eye(200), 1.0, 1023 / 199)
    slope = weights * (wrong - np.eye(200)) / 200
    assert np.abs([(slope * cosines).sum(), slope.sum()]).max() < 1e-4
    assert found.bias < -30
