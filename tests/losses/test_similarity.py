"""DIME-FM's losses against float64 matrices and gradients by hand, whole and around the ring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from aced.config import ConfigError
from aced.losses.similarity import SimilarityConfig, similarity_loss, similarity_losses
from aced.parallel.mesh import MeshConfig, global_batch, make_mesh

IMAGES, SENTENCES, WIDTH = 24, 16, 12
CONFIG = SimilarityConfig(scale=20.0, score_weight=0.68, pseudo_weight=0.22, distance_weight=0.1)
MESHES = {"1": (1, MeshConfig()), "8": (8, MeshConfig()), "fsdp": (8, MeshConfig(fsdp=4))}


def unit(rng, *shape):
    z = rng.normal(size=shape) + 0.7  # not orthogonal: softmaxes that are not one-hot
    return jnp.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True), jnp.float32)


@pytest.fixture(name="zuv")
def _zuv():
    rng = np.random.default_rng(0)
    return unit(rng, IMAGES, WIDTH), unit(rng, IMAGES, WIDTH), unit(rng, SENTENCES, WIDTH)


def kl(target, scores):
    """The mean over rows of KL(softmax(target) || softmax(scores)), and its gradient in scores."""
    p, rows = softmax(target, axis=1), len(target)
    value = (p * (log_softmax(target, axis=1) - log_softmax(scores, axis=1))).sum() / rows
    return value, (softmax(scores, axis=1) - p) / rows


def by_hand(z, u, v, config):
    """The three terms, and the gradient of their weighted sum in z."""
    z, u, v = (np.float64(x) for x in (z, u, v))
    s1, s3, s7 = (
        config.scale / t
        for t in (config.score_temperature, config.pseudo_temperature, config.distance_temperature)
    )
    rows, g_rows = kl(s1 * u @ v.T, s1 * z @ v.T)
    columns, g_columns = kl(s1 * v @ u.T, s1 * v @ z.T)
    pseudo, g_pseudo = kl(s3 * u @ u.T, s3 * z @ u.T)
    distance, g_distance = kl(s7 * u @ u.T, s7 * z @ z.T)
    gradient = config.score_weight * s1 * (g_rows + g_columns.T) @ v
    gradient += config.pseudo_weight * 2 * s3 * g_pseudo @ u
    gradient += config.distance_weight * 2 * s7 * (g_distance + g_distance.T) @ z
    return {"score": rows + columns, "pseudo": 2 * pseudo, "distance": 2 * distance}, gradient


def loss(z, u, v, form="full", config=CONFIG):
    return similarity_loss(similarity_losses(z, u, v, config, form), config)


@pytest.mark.parametrize("form", ["full", "ring"])
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_values_and_gradient(zuv, form, mesh):
    devices, config = mesh
    expected, expected_gradient = by_hand(*zuv, CONFIG)
    total = 0.68 * expected["score"] + 0.22 * expected["pseudo"] + 0.1 * expected["distance"]
    mesh = make_mesh(jax.devices()[:devices], config)
    batch = global_batch({k: np.asarray(x) for k, x in zip("zuv", zuv, strict=True)}, mesh)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda z, u, v: similarity_losses(z, u, v, CONFIG, form))(**batch)
        value, gradients = jax.jit(
            jax.value_and_grad(functools.partial(loss, form=form), argnums=(0, 1, 2))
        )(*batch.values())
    assert expected.keys() == found.keys()
    for name, number in expected.items():
        np.testing.assert_allclose(found[name], number, rtol=2e-5)
    np.testing.assert_allclose(value, total, rtol=2e-5)
    np.testing.assert_allclose(gradients[0], expected_gradient, atol=3e-6)
    for of_teacher in gradients[1:]:
        np.testing.assert_array_equal(of_teacher, 0)


def test_a_student_that_equals_its_teacher_has_no_loss(zuv):
    _, u, v = zuv
    for number in similarity_losses(u, u, v, CONFIG).values():
        np.testing.assert_allclose(number, 0, atol=1e-6)


def test_pseudo_term_does_not_see_the_sentences(zuv):
    z, u, v = zuv
    config = SimilarityConfig(score_weight=0.0, pseudo_weight=1.0)
    np.testing.assert_array_equal(
        loss(z, u, v, config=config), loss(z, u, v[::-1] * -1, config=config)
    )


def test_only_terms_with_a_weight_are_computed(zuv):
    assert set(similarity_losses(*zuv, SimilarityConfig())) == {"score", "pseudo"}


def test_published_defaults():
    """Weights 0.7, 0.3, 0 and temperatures 1, 3, 7 at scale 100, with logits of hundreds."""
    rng = np.random.default_rng(1)
    z, u, v = unit(rng, 8, WIDTH), unit(rng, 8, WIDTH), unit(rng, 8, WIDTH)
    expected, _ = by_hand(z, u, v, SimilarityConfig())
    found = similarity_losses(z, u, v, SimilarityConfig())
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4)
    np.testing.assert_allclose(
        similarity_loss(found, SimilarityConfig()),
        0.7 * expected["score"] + 0.3 * expected["pseudo"],
        rtol=1e-4,
    )


def test_invalid_weights_are_refused():
    with pytest.raises(ConfigError, match="distance_weight must be positive"):
        SimilarityConfig(score_weight=0.0, pseudo_weight=0.0)
    with pytest.raises(ConfigError, match="score_temperature must be above 0"):
        SimilarityConfig(score_temperature=0.0)


@pytest.mark.slow
def test_ring_holds_one_block_of_similarities():
    """Compiled temporary memory of the ring is below a third of the full form's."""
    n, d = 4096, 64
    rng = np.random.default_rng(2)
    mesh = make_mesh()
    batch = global_batch({name: np.asarray(unit(rng, n, d)) for name in "zuv"}, mesh)
    with jax.set_mesh(mesh):
        size = {
            form: jax.jit(jax.grad(functools.partial(loss, form=form)))
            .lower(*batch.values())
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
            for form in ("full", "ring")
        }
    assert size["ring"] < size["full"] / 3
