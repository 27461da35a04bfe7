"""Devices and micro-batches change nothing that a step computes, and no pixel crosses devices."""

import re

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.methods.contrastive import Contrastive
from aced.parallel import mesh as meshes

B, STRATA = 64, 8
COLLECTIVE = re.compile(
    r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def settings(micro_batch=0):
    return by_hand.settings(
        "aced_iid",
        reference=by_hand.model(resolution=16, patch=8, scale=20.0),
        selection={"strata": STRATA},
        score_micro_batch=micro_batch,
    )


def run(devices, micro_batch=0):
    """Returns (metrics, compiled text) of a step over so many devices."""
    method = Contrastive(settings(micro_batch))
    mesh = meshes.make_mesh(jax.devices()[:devices])
    models = by_hand.state_of(method), by_hand.frozen_of(method)
    models = jax.device_put(models, meshes.replicated(mesh))
    with jax.set_mesh(mesh):
        batch = by_hand.batch_of(method, B)
        batch = meshes.global_batch(jax.tree.map(np.asarray, batch), mesh)
        compiled = by_hand.jitted(method).lower(*models, batch).compile()
        new, metrics = compiled(*models, batch)
    return jax.device_get((new.params, metrics)), compiled.as_text()


def exchanged(hlo):
    """Element types of everything that devices exchange."""
    return {dtype for shapes in COLLECTIVE.findall(hlo) for dtype in re.findall(r"(\w+)\[", shapes)}


def test_the_pattern_finds_pixels_where_they_move():
    mesh = meshes.make_mesh()
    image = jax.device_put(jnp.zeros((B, 4, 4, 3), jnp.uint8), meshes.by_example(mesh))
    naive = jax.jit(lambda x, ids: x[ids], out_shardings=meshes.by_example(mesh))
    assert "u8" in exchanged(naive.lower(image, jnp.arange(16)).compile().as_text())


def test_same_step_on_any_devices_in_any_micro_batches():
    (params, metrics), alone = run(1, 16)
    assert not exchanged(alone)
    assert len(set(metrics["picks"])) == 16
    for devices, micro_batch in [(2, 0), (8, 0), (8, 16)]:
        (other_params, other), hlo = run(devices, micro_batch)
        np.testing.assert_array_equal(other["picks"], metrics["picks"])
        for name in metrics:
            np.testing.assert_allclose(other[name], metrics[name], rtol=1e-5, atol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            other_params,
            params,
        )
        # Gradients and embeddings do cross; pixels stay where they were read.
        assert "f32" in exchanged(hlo)
        assert "u8" not in exchanged(hlo)


def test_a_micro_batch_that_does_not_fit_is_refused():
    method = Contrastive(settings(micro_batch=24))
    args = by_hand.state_of(method), by_hand.frozen_of(method), by_hand.batch_of(method, B)
    with pytest.raises(ConfigError, match=r"method\.score_micro_batch"):
        by_hand.jitted(method).lower(*args)
