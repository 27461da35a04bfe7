"""Devices, meshes and micro-batches change nothing of a step; few pixels move, or none."""

import functools
import re

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.methods.contrastive import Contrastive
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig

B, STRATA = 64, 8
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def settings(micro_batch=0, strata=STRATA):
    return by_hand.settings(
        "aced_iid",
        reference=by_hand.model(resolution=16, patch=8, scale=20.0),
        selection={"strata": strata},
        score_micro_batch=micro_batch,
    )


def run(devices, micro_batch=0, strata=STRATA, **axes):
    """Returns the metrics and the compiled text of a step, with parameters sharded by the rules."""
    method = Contrastive(settings(micro_batch, strata))
    mesh = meshes.make_mesh(jax.devices()[:devices], MeshConfig(**axes))
    train_state, frozen = by_hand.state_of(method), by_hand.frozen_of(method)
    train_state = jax.device_put(train_state, rules.state_shardings(train_state, mesh))
    frozen = {k: jax.device_put(v, rules.shardings(v, mesh)) for k, v in frozen.items()}
    with jax.set_mesh(mesh):
        batch = by_hand.batch_of(method, B)
        batch = meshes.global_batch(jax.tree.map(np.asarray, batch), mesh)
        compiled = by_hand.jitted(method).lower(train_state, frozen, batch).compile()
        new, metrics = compiled(train_state, frozen, batch)
    return jax.device_get((new.params, metrics)), compiled.as_text()


def exchanged(hlo):
    """Element types of everything that devices exchange, with the kinds of the collectives."""
    out = {}
    for shapes, kind in COLLECTIVE.findall(hlo):
        for dtype in re.findall(r"(\w+)\[", shapes):
            out.setdefault(dtype, set()).add(kind)
    return out


def test_the_pattern_finds_pixels_where_they_move():
    mesh = meshes.make_mesh()
    image = jax.device_put(jnp.zeros((B, 4, 4, 3), jnp.uint8), meshes.by_example(mesh))
    naive = jax.jit(lambda x, ids: x[ids], out_shardings=meshes.by_example(mesh))
    assert "u8" in exchanged(naive.lower(image, jnp.arange(16)).compile().as_text())


def assert_same(found, expected):
    (params, metrics), (other_params, other) = found, expected
    np.testing.assert_array_equal(other["picks"], metrics["picks"])
    for name in metrics:
        np.testing.assert_allclose(other[name], metrics[name], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other_params, params
    )


@pytest.fixture(scope="module")
def alone():
    """The step on one device, by the number of strata."""

    @functools.cache
    def numbers(strata):
        found, hlo = run(1, 16, strata)
        assert not exchanged(hlo)
        assert len(set(found[1]["picks"])) == 16
        return found

    return numbers


@pytest.mark.parametrize(
    ("devices", "micro_batch", "axes"),
    [
        (8, 0, {}),
        pytest.param(2, 0, {}, marks=pytest.mark.slow),
        pytest.param(8, 16, {}, marks=pytest.mark.slow),
        pytest.param(8, 16, {"fsdp": 4}, marks=pytest.mark.slow),
        pytest.param(8, 0, {"fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    ],
)
def test_same_step_on_any_mesh_in_any_micro_batches(alone, devices, micro_batch, axes):
    numbers, hlo = run(devices, micro_batch, **axes)
    assert_same(numbers, alone(STRATA))
    # Gradients and embeddings do cross; pixels stay where they were read.
    assert "f32" in exchanged(hlo)
    assert "u8" not in exchanged(hlo)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{}, {"fsdp": 2, "tensor": 2}])
def test_selection_without_strata_exchanges_rows_between_neighbours(alone, axes):
    numbers, hlo = run(8, 0, strata=1, **axes)
    assert_same(numbers, alone(1))
    assert not np.array_equal(alone(1)[1]["picks"], alone(STRATA)[1]["picks"])
    assert exchanged(hlo)["u8"] == {"collective-permute"}


def test_a_micro_batch_that_does_not_fit_is_refused():
    method = Contrastive(settings(micro_batch=24))
    args = by_hand.state_of(method), by_hand.frozen_of(method), by_hand.batch_of(method, B)
    with pytest.raises(ConfigError, match=r"method\.score_micro_batch"):
        by_hand.jitted(method).lower(*args)
