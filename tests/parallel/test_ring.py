"""The ring itself: every block once, what is held, what is sent, and that a TPU compiles it.

Values and gradients of the losses made of it are in tests/losses/test_ring_losses.py.
"""

import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.losses.contrastive import sigmoid_loss, softmax_loss
from aced.losses.distillation import sigmoid_kd, softmax_kd
from aced.outputs import Embeddings
from aced.parallel.mesh import MeshConfig, by_example, make_mesh, replicated
from aced.parallel.ring import Pairs, logsumexps, pair_sum
from aced.preflight import COMPILER_ENVIRONMENT

LOSSES = {"sigmoid": (sigmoid_loss, 1), "softmax": (softmax_loss, 1)}
LOSSES |= {"softmax-KD": (softmax_kd, 2), "sigmoid-KD": (sigmoid_kd, 2)}


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(fsdp=4), MeshConfig(tensor=4)])
def test_ring_visits_every_pair_once(config):
    images, texts = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    labels = np.float32(np.random.default_rng(1).integers(100, size=24))

    # Different for matches, and neither linear nor symmetric.
    def block(is_match, trained, given):
        table = jnp.sin(trained.images[:, None] * trained.shared) * trained.texts**2
        weights = given.images[:, None] + 1000 * given.texts
        return (jnp.where(is_match, 3.0, 1.0) * weights * table).sum()

    def total(images, texts, factor):
        given = Pairs(labels, labels, ())
        return pair_sum(block, Pairs(images, texts, factor), given)

    with jax.set_mesh(make_mesh(config=config)):
        run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
        value, (d_images, d_texts, d_factor) = run(images, texts, np.float32(0.7))

    x, y = np.float64(images)[:, None], np.float64(texts)
    weights = (1 + 2 * np.eye(24)) * (labels[:, None] + 1000 * labels)
    np.testing.assert_allclose(value, (weights * np.sin(0.7 * x) * y**2).sum(), rtol=1e-4)
    slope = weights * np.cos(0.7 * x) * y**2
    np.testing.assert_allclose(d_images, 0.7 * slope.sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(d_texts, (weights * np.sin(0.7 * x) * 2 * y).sum(axis=0), rtol=1e-3)
    np.testing.assert_allclose(d_factor, (slope * x).sum(), rtol=1e-4)


def test_logsumexps_and_their_gradient():
    images, texts = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32) * 3
    weights = np.random.default_rng(1).normal(size=(2, 24)).astype(np.float32)

    def outer(pairs):
        return pairs.images[:, None] * pairs.texts

    def weighted(images, texts):
        sums = logsumexps(outer, Pairs(images, texts, ()))
        return (weights[0] * sums[0]).sum() + (weights[1] * sums[1]).sum(), sums

    with jax.set_mesh(make_mesh()):
        run = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))
        gradients, sums = run(images, texts)
    x, y = np.float64(images), np.float64(texts)
    table = np.exp(np.outer(x, y))
    np.testing.assert_allclose(sums[0], np.log(table.sum(axis=1)), rtol=1e-5)
    np.testing.assert_allclose(sums[1], np.log(table.sum(axis=0)), rtol=1e-5)
    slope = weights[0][:, None] * table / table.sum(axis=1)[:, None]
    slope += weights[1] * table / table.sum(axis=0)
    np.testing.assert_allclose(gradients[0], slope @ y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients[1], slope.T @ x, rtol=1e-4, atol=1e-5)


def test_texts_are_passed_on_once_less_than_there_are_devices():
    pairs = Pairs(jnp.ones(16), jnp.ones(16), ())
    with jax.set_mesh(make_mesh()):
        forward = str(jax.make_jaxpr(functools.partial(pair_sum, _product))(pairs))
    assert forward.count("ppermute[") == 1
    assert re.search(r"length=7\b", forward)


def _product(is_match, pairs):
    return (pairs.images[:, None] * pairs.texts).sum()


def test_a_batch_that_cannot_be_shared():
    pairs = Pairs(jnp.ones(12), jnp.ones(12), ())
    with (
        jax.set_mesh(make_mesh()),
        pytest.raises(ConfigError, match="12 examples cannot be shared equally by 8"),
    ):
        pair_sum(_product, pairs)


def compiled(name: str, form: str, n: int, d: int, mesh):
    """Value and gradient of a loss, compiled for devices that need not be here."""
    loss, count = LOSSES[name]
    z = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=by_example(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))

    def of_parts(*models):
        return loss(*[Embeddings(*parts) for parts in models], form=form)

    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(of_parts))
        return step.lower(*[(z, z, scalar, scalar)] * count).compile()


@pytest.mark.parametrize("name", LOSSES)
def test_memory_is_at_most_a_third_of_the_full_form(name):
    ring, full = (
        compiled(name, form, 8192, 64, make_mesh()).memory_analysis().temp_size_in_bytes
        for form in ("ring", "full")
    )
    assert full > 8192 * 1024 * 4  # a device's rows of the logits
    assert ring < full / 3


@pytest.mark.parametrize("name", LOSSES)
def test_embeddings_travel_and_are_never_gathered(name):
    text = compiled(name, "ring", 64, 16, make_mesh()).as_text()
    assert "collective-permute" in text
    for collective in ("all-gather", "all-to-all"):
        assert collective not in text
    # What all devices add up: the loss, and the gradients of scale and bias.
    for shape in re.findall(r"= (.*) all-reduce(?:-start)?\(", text):
        assert not re.search(r"\[\d", shape), shape


_ON_TPU = """
from jax.experimental import topologies
from aced.parallel.mesh import MeshConfig, make_mesh
from test_ring import LOSSES, compiled

devices = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu").devices
mesh = make_mesh(devices, MeshConfig(fsdp=4))
for name in LOSSES:
    text = compiled(name, "ring", 1024, 128, mesh).as_text()
    print(name, "collective-permute" in text, "all-gather" in text)
"""


@pytest.mark.slow
def test_a_tpu_compiles_it():
    pytest.importorskip("libtpu")
    here = pathlib.Path(__file__)
    environment = (
        os.environ
        | COMPILER_ENVIRONMENT
        | {
            "PYTHONPATH": f"{here.parents[2]}:{here.parent}",
        }
    )
    done = subprocess.run(
        [sys.executable, "-c", _ON_TPU],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [f"{name} True False" for name in LOSSES]
