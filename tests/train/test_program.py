"""What is compiled: the shapes that a run really has, and frozen models in half the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from aced.config import ConfigError
from aced.data import sources
from aced.data.pipeline import InputCounters
from aced.models.two_tower import TwoTower, TwoTowerConfig
from aced.parallel import mesh as meshes
from aced.parallel.mesh import MeshConfig
from aced.train import program
from aced.train.config import parse
from aced.train.setup import input_batches, set_up
from configs import smoke


def settings(**changes):
    config = smoke.get_config("tiny,method=iid")
    config.update_from_flattened_dict(changes)
    return parse(config)


@pytest.mark.slow
def test_a_batch_has_the_shapes_of_the_pipelines(tmp_path):
    parsed = settings()
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        source = sources.open_source(parsed.data)
        run = set_up(parsed, mesh, epath.Path(tmp_path), source)
        real = next(input_batches(run, 0, InputCounters()))
    expected = run.program.batch(("label", "is_noisy"))
    assert set(expected) == set(real)
    for name, rows in real.items():
        assert (expected[name].shape, expected[name].dtype) == (rows.shape, rows.dtype), name
    run.checkpoints.close()


def test_state_is_initialised_with_its_sharding():
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        prog = program.build(settings(), mesh)
        born = prog.new_state(jax.random.key(0), {})
    one = meshes.make_mesh(jax.devices()[:1])
    with jax.set_mesh(one):
        alone = program.build(settings(), one)
        expected = alone.new_state(jax.random.key(0), {})
    jax.tree.map(
        lambda x, shape: x.sharding.is_equivalent_to(shape.sharding, x.ndim) or 1 / 0,
        born,
        prog.state,
    )
    for x, y in zip(jax.tree.leaves(born.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    kernel = born.params["model"]["image"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


def test_init_is_traced_once(monkeypatch):
    traced, init = [], TwoTowerConfig.init
    monkeypatch.setattr(TwoTowerConfig, "init", lambda *args: traced.append(args) or init(*args))
    mesh = meshes.make_mesh(jax.devices()[:2])
    with jax.set_mesh(mesh):
        program.build(settings(), mesh).new_state.trace(jax.random.key(0), {})
    assert len(traced) == 1


@pytest.mark.slow
def test_frozen_kernels_in_the_compute_type_change_no_bit():
    model = settings(
        **{"method.model.dtype": "bfloat16", "method.model.image.pool": "map"}
    ).method.model
    mesh = meshes.make_mesh(jax.devices()[:1])
    shapes = program.frozen_shapes(model, mesh, ())
    params = jax.jit(model.init)(jax.random.key(3))
    held = jax.tree.map(lambda x, shape: x.astype(shape.dtype), params, shapes)
    assert sum(x.nbytes for x in jax.tree.leaves(held)) < 0.7 * sum(
        x.nbytes for x in jax.tree.leaves(params)
    )
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    text = rng.integers(1, 20, (4, 16), np.int32)
    embed = jax.jit(
        lambda p: TwoTower(model).apply({"params": p}, jnp.array(image), jnp.array(text))
    )
    for a, b in zip(jax.tree.leaves(embed(params)), jax.tree.leaves(embed(held)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_that_devices_cannot_share():
    with pytest.raises(ConfigError, match=r"batch_size = 12 cannot be shared by 8 devices"):
        program.build(settings(batch_size=12), meshes.make_mesh())
