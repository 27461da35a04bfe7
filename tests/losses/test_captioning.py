"""Chunked losses over words against float64 in NumPy and the full softmax; memory; meshes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.special import log_softmax, softmax

from aced.config import ConfigError
from aced.losses import captioning
from aced.outputs import Words
from aced.parallel import mesh as meshes
from aced.parallel.mesh import MeshConfig, make_mesh

B, L, V, T = 16, 5, 40, 2.0


def batch(b=B, seed=0):
    """Student and teacher of two widths, texts, and which words count."""
    rng = np.random.default_rng(seed)

    def model(d):
        states, kernel = rng.normal(size=(b, L, d)), rng.normal(size=(d, V))
        return Words(jnp.asarray(states, jnp.float32), jnp.asarray(kernel, jnp.float32))

    real = np.arange(L) < rng.integers(1, L + 1, (b, 1))
    return model(8), model(6), jnp.asarray(rng.integers(0, V, (b, L), np.int32)), jnp.asarray(real)


def by_hand(student, teacher, text, real):
    """The three averages, and the gradients of cross-entropy + 3 KL by the student, in float64."""
    text, real = np.asarray(text), np.asarray(real)
    x, kernel, x_t, kernel_t = (
        np.asarray(part, np.float64)
        for part in (student.states, student.kernel, teacher.states, teacher.kernel)
    )
    scores, targets, words = x @ kernel, x_t @ kernel_t, real.sum()
    log_q, log_p = log_softmax(scores / T, -1), log_softmax(targets / T, -1)
    picked = np.take_along_axis(log_softmax(scores, -1), text[..., None], -1)[..., 0]
    means = {
        "cross_entropy": -picked[real].mean(),
        "accuracy": (scores.argmax(-1) == text)[real].mean(),
        "kl": T * T * (np.exp(log_p) * (log_p - log_q)).sum(-1)[real].mean(),
    }
    of_scores = softmax(scores, -1) - np.eye(V)[text]
    of_scores += 3 * T * (np.exp(log_q) - np.exp(log_p))  # T^2, and 1 / T from inside
    of_scores *= real[..., None] / words
    gradient = of_scores @ kernel.T, np.einsum("bld,blv->dv", x, of_scores)
    return means, gradient


def total(student, teacher, text, real, chunk):
    out = captioning.word_losses(student, text, real, teacher, temperature=T, chunk=chunk)
    return out.cross_entropy + 3 * out.kl, out


def gradients(*inputs, chunk):
    of = jax.value_and_grad(functools.partial(total, chunk=chunk), argnums=(0, 1), has_aux=True)
    return jax.jit(of)(*inputs)


def same(found, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("chunk", [1000, 80, 16, 7])  # whole; whole; five; twelve, not even
def test_values_and_gradients_by_hand(chunk):
    inputs = batch()
    expected, (of_states, of_kernel) = by_hand(*inputs)
    (_, found), (student, teacher) = gradients(*inputs, chunk=chunk)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-6, err_msg=name)
    assert found.words == inputs[-1].sum()
    np.testing.assert_allclose(student.states, of_states, atol=1e-6)
    np.testing.assert_allclose(student.kernel, of_kernel, atol=1e-6)
    assert not any(np.any(x) for x in jax.tree.leaves(teacher))


def test_without_a_teacher_there_is_no_divergence():
    student, _, text, real = batch()
    found = captioning.word_losses(student, text, real, chunk=9)
    assert found.kl is None
    expected, _ = by_hand(*batch())
    np.testing.assert_allclose(found.cross_entropy, expected["cross_entropy"], rtol=1e-6)


def test_divergence_from_itself_is_zero():
    student, _, text, real = batch()
    found = captioning.word_losses(student, text, real, student)
    assert abs(found.kl) < 1e-6


def test_padding_counts_for_nothing():
    student, teacher, text, real = batch()
    rng = np.random.default_rng(1)
    noise = jnp.where(real[..., None], 0, rng.normal(size=student.states.shape))
    other = student.replace(states=student.states + noise)
    random = jnp.where(real, text, rng.integers(0, V, text.shape, np.int32))
    (_, a), (of_a, _) = gradients(student, teacher, text, real, chunk=7)
    (_, b), (of_b, _) = gradients(other, teacher, random, real, chunk=7)
    same(a, b, rtol=0)
    np.testing.assert_allclose(of_a.kernel, of_b.kernel, atol=1e-7)
    assert not np.any(of_b.states[~real])


def test_a_batch_without_words_has_no_loss():
    student, teacher, text, real = batch()
    (value, found), grads = gradients(student, teacher, text, jnp.zeros_like(real), chunk=7)
    assert value == found.words == 0
    assert not any(np.any(x) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("word", [V, -1])
def test_unknown_words_give_nan(word):
    student, _, text, real = batch()
    text = text.at[0, 0].set(word)
    assert np.isnan(captioning.word_losses(student, text, real).cross_entropy)


def test_half_precision_adds_up_in_float32():
    student, _, text, real = batch()
    half = student.replace(states=jnp.asarray(student.states, jnp.bfloat16))
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), student)
    expected, _ = by_hand(rounded, rounded, text, real)
    (_, found), (grads, _) = gradients(half, half, text, real, chunk=16)
    np.testing.assert_allclose(found.cross_entropy, expected["cross_entropy"], rtol=1e-5)
    assert grads.states.dtype == jnp.bfloat16
    assert grads.kernel.dtype == jnp.float32


def temporary_bytes(chunk, teacher):
    b, length, d, v = 32, 16, 16, 8192

    def loss(states, kernel, other, text, real):
        words = Words(states, kernel)
        out = captioning.word_losses(
            words, text, real, Words(other, kernel) if teacher else None, chunk=chunk
        )
        return out.cross_entropy + (out.kl if teacher else 0)

    states, kernel = (jax.ShapeDtypeStruct(x, "float32") for x in ((b, length, d), (d, v)))
    text, real = (jax.ShapeDtypeStruct((b, length), kind) for kind in ("int32", "bool"))
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compiled = step.lower(states, kernel, states, text, real).compile()
    return compiled.memory_analysis().temp_size_in_bytes, 4 * b * length * v


@pytest.mark.parametrize("teacher", [False, True])
def test_the_logits_of_a_batch_never_exist(teacher):
    found, whole = temporary_bytes(16, teacher)
    assert found < whole / 4
    at_once, _ = temporary_bytes(512, teacher)  # the measure sees them where they are
    assert at_once > whole


def place(mesh, student, teacher, text, real):
    """The batch by example, the student's kernel on the other axes, the teacher's everywhere."""
    kernel = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))

    def model(words, sharding):
        states = jax.device_put(words.states, meshes.by_example(mesh))
        return Words(states, jax.device_put(words.kernel, sharding))

    text, real = jax.device_put((text, real), meshes.by_example(mesh))
    return model(student, kernel), model(teacher, meshes.replicated(mesh)), text, real


@pytest.mark.parametrize("config", [MeshConfig(), MeshConfig(fsdp=2, tensor=2)])
def test_sharded_is_unsharded(config):
    inputs = batch()
    (value, expected), (of_student, _) = gradients(*inputs, chunk=7)
    mesh = make_mesh(config=config)
    with jax.set_mesh(mesh):
        (sharded, found), (grads, _) = gradients(*place(mesh, *inputs), chunk=4)
    np.testing.assert_allclose(sharded, value, rtol=1e-6)
    same(found, expected, rtol=1e-6)
    same(grads, of_student, atol=1e-6)


def test_no_message_is_sent_for_every_chunk():
    mesh = make_mesh(config=MeshConfig(fsdp=4))
    with jax.set_mesh(mesh):
        words, _, text, real = place(mesh, *batch())

        def loss(states, kernel):
            words = Words(states, kernel)
            return captioning.word_losses(words, text, real, chunk=2).cross_entropy

        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        compiled = step.lower(words.states, words.kernel).compile().as_text()
    parts = compiled.split("\n\n")
    entry = next(part for part in parts if part.lstrip().startswith("ENTRY"))
    assert " while(" in entry
    assert " all-gather(" in entry
    messages = r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
    assert not any(re.search(messages, part) for part in parts if part is not entry)


@pytest.mark.parametrize("settings", [{"chunk": 0}, {"temperature": 0.0}])
def test_settings_that_make_no_sense_are_refused(settings):
    student, _, text, real = batch()
    with pytest.raises(ConfigError, match="at least 1"):
        captioning.word_losses(student, text, real, **settings)


def test_examples_that_devices_cannot_share_are_refused():
    student, _, text, real = batch(b=12)
    with jax.set_mesh(make_mesh()), pytest.raises(ConfigError, match="12 examples"):
        captioning.word_losses(student, text, real)
