"""Both forms of the pairwise losses against float64 matrices, on one device and on meshes.

The gradients come by hand, too: of the logits, then of what the logits are made of.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from aced.losses.contrastive import sigmoid_loss, softmax_loss
from aced.losses.distillation import distillation_loss, sigmoid_kd, softmax_kd
from aced.outputs import Embeddings
from aced.parallel.mesh import MeshConfig, global_batch, make_mesh

N = 40  # five on each of eight devices

MESHES = {
    "1": (1, MeshConfig()),
    "2": (2, MeshConfig()),
    "8": (8, MeshConfig()),
    "data 2, fsdp 4": (8, MeshConfig(fsdp=4)),
    "data 2, fsdp 2, tensor 2": (8, MeshConfig(fsdp=2, tensor=2)),
}


class Model(NamedTuple):
    """The fields of `Embeddings`, in NumPy."""

    zimg: np.ndarray
    ztxt: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


def model(seed: int, d: int, scale: float, bias: float) -> Model:
    """Pairs that match more or less."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(9).normal(size=(N, 8)) @ rng.normal(size=(8, d))
    z = centre + rng.normal(size=(2, N, d)) * 2
    z = np.float32(z / np.linalg.norm(z, axis=-1, keepdims=True))
    return Model(z[0], z[1], np.array(scale, np.float32), np.array(bias, np.float32))


MODELS = (model(0, 6, 7.0, -1.5), model(1, 9, 12.0, -3.0), model(2, 3, 4.0, 0.5))


def sigmoid_by_hand(scores):
    sign = 2 * np.eye(N) - 1
    return np.logaddexp(0, -sign * scores).sum() / N, (expit(scores) - np.eye(N)) / N


def softmax_by_hand(scores):
    log_q = [log_softmax(scores, axis) for axis in (1, 0)]
    value = -sum(np.trace(x) for x in log_q) / (2 * N)
    return value, (sum(np.exp(x) for x in log_q) / 2 - np.eye(N)) / N


def softmax_kd_by_hand(scores, *targets):
    value, gradient = 0.0, np.zeros_like(scores)
    for axis in (1, 0):
        p = np.mean([softmax(target, axis) for target in targets], axis=0)
        value -= (p * log_softmax(scores, axis)).sum() / (2 * N)
        gradient += (softmax(scores, axis) - p) / (2 * N)
    return value, gradient


def sigmoid_kd_by_hand(scores, *targets):
    p = np.mean([expit(target) for target in targets], axis=0)
    value = p * np.logaddexp(0, -scores) + (1 - p) * np.logaddexp(0, scores)
    return value.sum() / N, (expit(scores) - p) / N


LOSSES = {
    "sigmoid": (sigmoid_loss, sigmoid_by_hand, 1),
    "softmax": (softmax_loss, softmax_by_hand, 1),
    "softmax-KD": (softmax_kd, softmax_kd_by_hand, 3),
    "sigmoid-KD": (sigmoid_kd, sigmoid_kd_by_hand, 3),
}


@functools.cache
def expected(name: str) -> tuple[float, Model]:
    """Value and gradient for the first model, in float64."""
    _, by_hand, count = LOSSES[name]
    exact = [Model(*map(np.float64, model)) for model in MODELS[:count]]
    value, g = by_hand(*(e.scale * e.zimg @ e.ztxt.T + e.bias for e in exact))
    e = exact[0]
    by_cosine = (g * (e.zimg @ e.ztxt.T)).sum()
    return value, Model(e.scale * g @ e.ztxt, e.scale * g.T @ e.zimg, by_cosine, g.sum())


def embeddings(model: Model, mesh=None) -> Embeddings:
    rows = {"zimg": model.zimg, "ztxt": model.ztxt}
    rows = global_batch(rows, mesh) if mesh else jax.tree.map(jnp.asarray, rows)
    return Embeddings(**rows, scale=jnp.asarray(model.scale), bias=jnp.asarray(model.bias))


def assert_equal(actual, expected):
    """Value and gradient agree to float32 rounding."""
    np.testing.assert_allclose(actual[0], expected[0], rtol=3e-6)
    for part in ("zimg", "ztxt", "scale", "bias"):
        ours, exact = (getattr(result[1], part) for result in (actual, expected))
        np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=2e-6, err_msg=part)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("form", ["ring", "full"])
def test_without_a_mesh(name, form):
    loss, _, count = LOSSES[name]
    models = [embeddings(model) for model in MODELS[:count]]
    # Not jitted, either.
    assert_equal(jax.value_and_grad(loss)(*models, form=form), expected(name))


@pytest.mark.parametrize(("form", "mesh"), [("full", "8"), *(("ring", mesh) for mesh in MESHES)])
@pytest.mark.parametrize("name", LOSSES)
def test_on_a_mesh(name, form, mesh):
    loss, _, count = LOSSES[name]
    devices, config = MESHES[mesh]
    mesh = make_mesh(jax.devices()[:devices], config)
    with jax.set_mesh(mesh):
        models = [embeddings(model, mesh) for model in MODELS[:count]]
        result = jax.jit(jax.value_and_grad(functools.partial(loss, form=form)))(*models)
    assert_equal(result, expected(name))
    assert result[1].zimg.is_fully_replicated == (devices == 1)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_no_gradient_reaches_a_teacher(kind):
    def loss(student, teachers):
        return distillation_loss(kind, student, teachers, form="ring")

    mesh = make_mesh()
    with jax.set_mesh(mesh):
        student, *teachers = (embeddings(model, mesh) for model in MODELS)
        teachers = dict(zip("ab", teachers, strict=True))
        value, gradient = jax.jit(jax.value_and_grad(loss, argnums=1))(student, teachers)
    np.testing.assert_allclose(value, expected(f"{kind}-KD")[0], rtol=3e-6)
    assert len(jax.tree.leaves(gradient)) == 8
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_embeddings_count_as_float32(name):
    loss, _, count = LOSSES[name]
    mesh = make_mesh()

    def halved(e: Embeddings) -> Embeddings:
        return e.replace(zimg=e.zimg.astype(jnp.bfloat16), ztxt=e.ztxt.astype(jnp.bfloat16))

    with jax.set_mesh(mesh):
        half = [halved(embeddings(model, mesh)) for model in MODELS[:count]]
        as_float = [jax.tree.map(lambda x: x.astype(jnp.float32), e) for e in half]
        run = jax.jit(jax.value_and_grad(functools.partial(loss, form="ring")))
        value, gradient = run(*half)
        exact_value, exact = run(*as_float)
    np.testing.assert_allclose(value, exact_value, rtol=1e-6)
    assert gradient.zimg.dtype == gradient.ztxt.dtype == jnp.bfloat16
    # Summed in float32 and rounded once: half a unit in the last of bfloat16's 8 bits.
    np.testing.assert_allclose(np.float32(gradient.ztxt), exact.ztxt, rtol=2.0**-8, atol=1e-7)
    np.testing.assert_allclose(gradient.scale, exact.scale, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_inside_a_rematerialised_model(name):
    loss, _, count = LOSSES[name]
    weights = np.float32(np.random.default_rng(3).normal(size=(6, 6)))

    def train(form, weights, student, *teachers):
        student = student.replace(zimg=student.zimg @ weights)
        return loss(student, *teachers, form=form)

    mesh = make_mesh(config=MeshConfig(fsdp=2))
    with jax.set_mesh(mesh):
        models = [embeddings(model, mesh) for model in MODELS[:count]]
        ring = jax.checkpoint(functools.partial(train, "ring"))
        gradient = jax.jit(jax.grad(ring))(weights, *models)
    full = functools.partial(train, "full")
    exact = jax.grad(full)(weights, *[embeddings(model) for model in MODELS[:count]])
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_scales_stay_finite(name):
    loss, _, count = LOSSES[name]
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        models = [
            embeddings(model._replace(scale=np.float32(1e4)), mesh) for model in MODELS[:count]
        ]
        value, gradient = jax.jit(jax.value_and_grad(functools.partial(loss, form="ring")))(*models)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
