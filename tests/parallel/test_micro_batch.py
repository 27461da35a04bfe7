import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.parallel import mesh as meshes
from aced.parallel.micro_batch import map_micro_batches


def _square(tree):
    return {"y": jnp.square(tree["x"]).sum(axis=1), "z": tree["z"] + 1}


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("size", [0, 8, 16, 48])
def test_pieces_equal_the_whole(devices, size):
    tree = {
        "x": np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32),
        "z": np.arange(48),
    }
    mesh = meshes.make_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        batch = meshes.global_batch(tree, mesh)
        out = jax.jit(lambda b: map_micro_batches(_square, b, size, "size"))(batch)
    np.testing.assert_allclose(out["y"], np.square(tree["x"]).sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(out["z"], tree["z"] + 1)


def test_no_row_changes_its_device():
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        batch = meshes.global_batch({"x": np.ones((64, 5), np.float32), "z": np.arange(64)}, mesh)
        compiled = (
            jax.jit(lambda b: map_micro_batches(_square, b, 16, "size")).lower(batch).compile()
        )
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text


@pytest.mark.parametrize(("size", "devices"), [(10, 1), (4, 8)])
def test_sizes_that_do_not_fit(size, devices):
    tree = {"x": jnp.ones((48, 5)), "z": jnp.arange(48)}
    with (
        jax.set_mesh(meshes.make_mesh(jax.devices()[:devices])),
        pytest.raises(ConfigError, match=r"method\.score_micro_batch = \d+ must divide"),
    ):
        map_micro_batches(_square, tree, size, "method.score_micro_batch")


def test_gradients_of_pieces_equal_the_whole_and_store_no_activations():
    def loss(weights, x, size):
        def layers(tree):
            return jnp.tanh(jnp.tanh(tree["x"] @ weights) @ weights.T)

        z = map_micro_batches(layers, {"x": x}, size, "size")
        return jnp.square(z @ z.T).sum()  # every example meets every other

    rng = np.random.default_rng(1)
    weights, x = rng.normal(size=(16, 4096)), rng.normal(size=(512, 16))
    weights, x = jnp.asarray(weights, jnp.float32) / 64, jnp.asarray(x, jnp.float32)
    step = jax.jit(jax.value_and_grad(loss), static_argnums=2)
    (whole, expected), (pieces, found) = step(weights, x, 0), step(weights, x, 32)
    np.testing.assert_allclose(pieces, whole, rtol=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    temp = [step.lower(weights, x, size).compile().memory_analysis() for size in (0, 32)]
    # The 512 x 4096 activations are a piece's, a sixteenth; what is left is the 512 x 512 loss.
    assert temp[1].temp_size_in_bytes < temp[0].temp_size_in_bytes / 2
