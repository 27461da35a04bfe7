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
def test_pieces_give_the_whole(devices, size):
    tree = {
        "x": np.random.default_rng(0).normal(size=(48, 5)).astype(np.float32),
        "z": np.arange(48),
    }
    mesh = meshes.make_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        batch = meshes.global_batch(tree, mesh)
        out = jax.jit(lambda b: map_micro_batches(_square, b, size))(batch)
    np.testing.assert_allclose(out["y"], np.square(tree["x"]).sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(out["z"], tree["z"] + 1)


def test_no_row_changes_its_device():
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        batch = meshes.global_batch({"x": np.ones((64, 5), np.float32), "z": np.arange(64)}, mesh)
        compiled = jax.jit(lambda b: map_micro_batches(_square, b, 16)).lower(batch).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text


@pytest.mark.parametrize(("size", "devices"), [(10, 1), (4, 8)])
def test_sizes_that_do_not_fit(size, devices):
    with (
        jax.set_mesh(meshes.make_mesh(jax.devices()[:devices])),
        pytest.raises(ConfigError, match="score_micro_batch"),
    ):
        map_micro_batches(_square, {"x": jnp.ones((48, 5)), "z": jnp.arange(48)}, size)
