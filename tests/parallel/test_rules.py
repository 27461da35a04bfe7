"""Every parameter of every real model has its place, and its optimizer state the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from aced.config import ConfigError
from aced.models import presets, two_tower
from aced.optim import optimizer, state
from aced.optim.optimizer import OptimizerConfig
from aced.optim.schedules import ScheduleConfig
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig

MESH = meshes.make_mesh(config=MeshConfig(fsdp=4, tensor=2))


def shapes_of(name):
    model = two_tower.preset(name)
    return jax.eval_shape(model.init, jax.random.key(0))


def by_name(tree):
    return {rules.name_of(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize("name", presets.MODELS)
def test_a_device_holds_its_share_of_every_model(name):
    shapes = shapes_of(name)
    placed = rules.shardings(shapes, MESH)
    whole = sum(x.size for x in jax.tree.leaves(shapes))
    parts = jax.tree.map(lambda x, s: np.prod(s.shard_shape(x.shape)), shapes, placed)
    # An eighth of the kernels of the blocks, a quarter of the tables, all of the vectors.
    assert sum(jax.tree.leaves(parts)) < whole * 0.19


def test_block_is_split_as_in_megatron():
    placed = by_name(rules.shardings(shapes_of("SigLIP-B/16-256"), MESH))
    specs = {name: sharding.spec for name, sharding in placed.items()}
    block = "image/blocks/"
    assert specs[f"{block}attention/q/kernel"] == P(None, "fsdp", "tensor")
    assert specs[f"{block}attention/q/bias"] == P(None, "tensor")
    assert specs[f"{block}attention/out/kernel"] == P(None, "tensor", "fsdp")
    assert specs[f"{block}attention/out/bias"] == P(None, None)
    assert specs[f"{block}mlp/fc1/kernel"] == P(None, "fsdp", "tensor")
    assert specs[f"{block}mlp/fc2/kernel"] == P(None, "tensor", "fsdp")
    assert specs[f"{block}norm1/scale"] == P(None, None)
    assert specs["image/map/attention/q/kernel"] == P("fsdp", "tensor")
    assert specs["text/token"] == P(None, "fsdp")
    assert specs["t"] == P()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_optimizer_state_is_sharded_like_its_parameter(name):
    model = shapes_of("ACED-F0")
    schedule = ScheduleConfig(kind="constant", peak=0.1, warmup_steps=0)
    config = OptimizerConfig(name=name, schedule=schedule, lr_rules=((".*/position", 0.0),))
    params = {
        "model": model,
        "projections": {"x": {"image": jax.ShapeDtypeStruct((8, 4), "float32")}},
    }
    tx, _ = optimizer.build(config, params, total_steps=10, batch_size=8)
    train_state = jax.eval_shape(
        functools.partial(state.create, tx=tx, key=jax.random.key(0), ema=True), params
    )
    placed = rules.state_shardings(train_state, MESH)
    found = by_name(placed)
    kernel = "model/image/blocks/mlp/fc1/kernel"
    expected = P(None, "fsdp", "tensor")
    assert found[f"params/{kernel}"].spec == expected
    assert found[f"ema/{kernel}"].spec == expected
    moments = {
        n: s.spec for n, s in found.items() if n.startswith("opt_state") and n.endswith(kernel)
    }
    shapes = by_name(train_state)
    whole = {n for n in moments if shapes[n].shape == shapes[f"params/{kernel}"].shape}
    assert len(whole) == {"adamw": 2, "lion": 1, "adafactor": 1}[name]
    assert all(moments[n] == expected for n in whole)
    # Factored moments and counters are small: everywhere.
    assert all(moments[n] == P() for n in moments.keys() - whole)
    assert found["step"].spec == found["key"].spec == P()


def test_gathered_parameters_are_shared_over_tensor_alone():
    params = {"fc1": {"kernel": jnp.arange(64.0).reshape(8, 8)}, "t": jnp.ones(())}
    assert rules.gathered(params) is params  # no mesh
    placed = jax.device_put(params, rules.shardings(params, MESH))
    with jax.set_mesh(MESH):
        found = jax.jit(rules.gathered)(placed)
    assert found["fc1"]["kernel"].sharding.spec == P(None, "tensor")
    assert found["t"].sharding.is_fully_replicated
    np.testing.assert_array_equal(found["fc1"]["kernel"], params["fc1"]["kernel"])


def test_parameters_that_common_rules_do_not_fit_keep_their_sharding():
    mesh = meshes.make_mesh(devices=jax.devices()[:2], config=MeshConfig(fsdp=2))
    odd = {"image": {"blocks": {"attention": {"k": {"kernel": jnp.ones((2, 33, 3, 11))}}}}}
    with jax.set_mesh(mesh):
        found = jax.jit(rules.gathered)(odd)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, odd)


def test_unknown_parameters_and_odd_sizes_are_errors():
    with pytest.raises(ConfigError, match="No sharding rule matches the parameter 'tower/gate'"):
        rules.shardings({"tower": {"gate": jnp.zeros(3)}}, MESH)
    odd = {"fc1": {"kernel": jnp.zeros((2, 6, 8))}}
    with pytest.raises(ConfigError, match=r"mesh.fsdp = 4 does not divide .*'fc1/kernel'"):
        rules.shardings(odd, MESH)
    own = (("fc1/kernel", (None, "tensor")),)
    assert rules.shardings(odd, MESH, own)["fc1"]["kernel"].spec == P(None, None, "tensor")
    with pytest.raises(ConfigError, match="its shape is"):
        rules.shardings({"t": jnp.zeros(())}, MESH, (("t", ("data",)),))
