"""Accumulation: a step in micro-batches has the whole batch's gradient in every leaf.

Plain accumulation is wrong for contrastive losses (every example meets every other one), and a
known mistake of cached gradients multiplies that of the temperature by the number of pieces.
"""

import dataclasses

import by_hand
import jax
import numpy as np
import pytest

from aced.methods.contrastive import Contrastive
from aced.parallel import mesh as meshes
from aced.parallel.mesh import MeshConfig

B = 32


def step(settings, devices=1, fsdp=1):
    """The new parameters: with SGD at rate 1 they are the old ones less the gradient."""
    method = Contrastive(settings)
    mesh = meshes.make_mesh(jax.devices()[:devices], MeshConfig(fsdp=fsdp))
    models = by_hand.state_of(method), by_hand.frozen_of(method)
    models = jax.device_put(models, meshes.replicated(mesh))
    batch = jax.tree.map(np.asarray, by_hand.batch_of(method, B))
    with jax.set_mesh(mesh):
        new, metrics = by_hand.jitted(method)(*models, meshes.global_batch(batch, mesh))
    return jax.device_get((new.params, models[0].params, metrics))


def check(settings, **options):
    """The gradient in pieces against the gradient of the whole, leaf by leaf."""
    whole = dataclasses.replace(settings, train_micro_batch=0)
    expected, old, numbers = step(whole)
    found, _, others = step(settings, **options)
    np.testing.assert_array_equal(others["picks"], numbers["picks"])
    np.testing.assert_allclose(others["loss"], numbers["loss"], rtol=1e-6)
    scale = max(
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (expected, old)), strict=True)
    )
    assert scale > 1e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6 * max(1, scale)),
        found,
        expected,
    )
    gradients = [
        {name: old["model"][name] - new["model"][name] for name in ("t", "bias")}
        for new in (expected, found)
    ]
    assert abs(gradients[0]["t"]) > 1e-4
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-4, abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("h_acid", 4), ("aced", 1), ("aced_iid", 2)])
def test_with_selection_and_distillation(name, size):
    check(by_hand.settings(name, train_micro_batch=size))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("kd", ["softmax", "sigmoid", "feature"])
def test_every_loss(loss, kd):
    check(by_hand.settings("kd", loss=loss, kd=kd, train_micro_batch=8))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_with_rematerialised_blocks(remat):
    settings = by_hand.settings("aced", train_micro_batch=2)
    check(dataclasses.replace(settings, model=dataclasses.replace(settings.model, remat=remat)))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), (4, 2)])
def test_on_several_devices(devices, fsdp):
    check(by_hand.settings("aced", train_micro_batch=4), devices=devices, fsdp=fsdp)
