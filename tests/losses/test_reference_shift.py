"""DRRho's loss against its formula in float64 loops, and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.losses.contrastive import softmax_loss
from aced.losses.reference_shift import shifted
from aced.outputs import Embeddings
from aced.parallel import mesh as meshes

N, SCALE = 16, 9.0


def unit(seed, d):
    z = np.random.default_rng(seed).normal(size=(2, N, d))
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


LEARNER, REFERENCE = unit(0, 5), unit(1, 8)


def embeddings(z, scale):
    zimg, ztxt = (jnp.asarray(x, jnp.float32) for x in z)
    return Embeddings(zimg, ztxt, jnp.float32(scale), jnp.float32(0))


def oracle(z, scale):
    """Gaps of similarities, shifted by the reference's: the authors' `diff_image`, `diff_text`."""
    s, r, total = z[0] @ z[1].T, REFERENCE[0] @ REFERENCE[1].T, 0.0
    for i in range(N):
        for gap in (
            [(s[i, j] - s[i, i]) - (r[i, j] - r[i, i]) for j in range(N)],
            [(s[j, i] - s[i, i]) - (r[j, i] - r[i, i]) for j in range(N)],
        ):
            total += np.log(sum(np.exp(scale * x) for x in gap)) / 2
    return total / N


def loss(z, scale, reference_scale=3.0, form="full"):
    model = shifted(embeddings(z, scale), embeddings(REFERENCE, reference_scale))
    return softmax_loss(model, form=form)


def test_value_of_the_shifted_loss():
    assert loss(LEARNER, SCALE) == pytest.approx(oracle(LEARNER, SCALE), rel=1e-5)
    # Only the reference's embeddings count, and a learner equal to its reference has log n.
    assert loss(LEARNER, SCALE, reference_scale=50.0) == loss(LEARNER, SCALE)
    assert loss(REFERENCE, SCALE) == pytest.approx(np.log(N), rel=1e-5)


def test_gradient_of_the_shifted_loss():
    gradient, of_scale = jax.grad(
        lambda zimg, scale: loss((zimg, LEARNER[1]), scale), argnums=(0, 1)
    )(jnp.asarray(LEARNER[0], jnp.float32), jnp.float32(SCALE))
    step = 1e-5
    for at in [(0, 0), (3, 4), (15, 2)]:
        moved = [LEARNER.copy() for _ in range(2)]
        moved[0][0][at] += step
        moved[1][0][at] -= step
        expected = (oracle(moved[0], SCALE) - oracle(moved[1], SCALE)) / (2 * step)
        assert gradient[at] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    expected = (oracle(LEARNER, SCALE + step) - oracle(LEARNER, SCALE - step)) / (2 * step)
    assert of_scale == pytest.approx(expected, rel=1e-3)


def test_no_gradient_reaches_the_reference():
    def of_reference(reference):
        return softmax_loss(shifted(embeddings(LEARNER, SCALE), reference))

    for leaf in jax.tree.leaves(jax.grad(of_reference)(embeddings(REFERENCE, 3.0))):
        np.testing.assert_array_equal(leaf, 0)


def test_the_ring_of_devices_gives_the_same():
    with jax.set_mesh(meshes.make_mesh()):
        found = jax.jit(lambda scale: loss(LEARNER, scale, form="ring"))(SCALE)
    assert found == pytest.approx(oracle(LEARNER, SCALE), rel=1e-5)
