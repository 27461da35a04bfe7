"""Against formulas in float64 loops, and numeric derivatives of those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.losses.distillation import (
    distillation_loss,
    feature_matching,
    init_projection,
    sigmoid_kd,
    softmax_kd,
)
from aced.outputs import Embeddings

PARTS = ("zimg", "ztxt", "scale", "bias")


def arrays(seed: int, d: int, scale: float, bias: float, n: int = 5) -> list[np.ndarray]:
    z = np.random.default_rng(seed).normal(size=(2, n, d))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return [z[0], z[1], np.array(scale), np.array(bias)]


def embeddings(parts) -> Embeddings:
    values = [jnp.asarray(x, jnp.float32) for x in parts]
    return Embeddings(**dict(zip(PARTS, values, strict=True)))


STUDENT = arrays(0, 4, 6.0, -1.0)
TEACHER = arrays(1, 7, 11.0, -3.0)
OTHER = arrays(2, 3, 4.0, 0.5)


def all_logits(parts):
    zimg, ztxt, scale, bias = parts
    return scale * zimg @ ztxt.T + bias


def softmax_kd_oracle(student, teacher) -> float:
    return softmax_kd_of_logits(all_logits(student), all_logits(teacher))


def softmax_kd_of_logits(student, teacher) -> float:
    total, n = 0.0, len(student)
    q, p = np.exp(student), np.exp(teacher)
    for i in range(n):
        for j in range(n):
            total -= p[i, j] / p[i].sum() * np.log(q[i, j] / q[i].sum())
            total -= p[i, j] / p[:, j].sum() * np.log(q[i, j] / q[:, j].sum())
    return total / (2 * n)


def sigmoid_kd_oracle(student, teacher) -> float:
    return sigmoid_kd_of_logits(all_logits(student), all_logits(teacher))


def sigmoid_kd_of_logits(student, teacher) -> float:
    q, p = (1 / (1 + np.exp(-x)) for x in (student, teacher))
    return -(p * np.log(q) + (1 - p) * np.log(1 - q)).sum() / len(p)


KD = {"softmax": (softmax_kd, softmax_kd_oracle), "sigmoid": (sigmoid_kd, sigmoid_kd_oracle)}


@pytest.mark.parametrize("kind", KD)
def test_value_with_unequal_widths_and_temperatures(kind):
    loss, oracle = KD[kind]
    value = loss(embeddings(STUDENT), embeddings(TEACHER))
    np.testing.assert_allclose(value, oracle(STUDENT, TEACHER), rtol=1e-5)


@pytest.mark.parametrize("part", range(4), ids=PARTS)
@pytest.mark.parametrize("kind", KD)
def test_gradient(kind, part):
    loss, oracle = KD[kind]
    gradient = getattr(jax.grad(loss)(embeddings(STUDENT), embeddings(TEACHER)), PARTS[part])
    expected, step = np.zeros_like(STUDENT[part]), 1e-5
    for at in np.ndindex(expected.shape):
        high, low = ([x.copy() for x in STUDENT] for _ in range(2))
        high[part][at] += step
        low[part][at] -= step
        expected[at] = (oracle(high, TEACHER) - oracle(low, TEACHER)) / (2 * step)
    np.testing.assert_allclose(gradient, expected, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("kind", KD)
def test_gradient_is_zero_if_student_equals_teacher(kind):
    model = embeddings(TEACHER)
    for leaf in jax.tree.leaves(jax.grad(KD[kind][0])(model, model)):
        np.testing.assert_allclose(leaf, 0, atol=3e-6)


@pytest.mark.parametrize("kind", KD)
def test_several_teachers_average_the_losses_and_so_the_probabilities(kind):
    loss, oracle = KD[kind]
    expected = (oracle(STUDENT, TEACHER) + oracle(STUDENT, OTHER)) / 2
    value = loss(embeddings(STUDENT), embeddings(TEACHER), embeddings(OTHER))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    teachers = {"b16": embeddings(TEACHER), "l14": embeddings(OTHER)}
    by_name = distillation_loss(kind, embeddings(STUDENT), teachers)
    np.testing.assert_allclose(by_name, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KD)
def test_teachers_averaged_before_the_softmax(kind):
    """The loss of one teacher whose logits are the mean; and unlike that of mean probabilities."""
    mean = (all_logits(TEACHER) + all_logits(OTHER)) / 2
    of_logits = {"softmax": softmax_kd_of_logits, "sigmoid": sigmoid_kd_of_logits}[kind]
    expected = of_logits(all_logits(STUDENT), mean)
    teachers = {"b16": embeddings(TEACHER), "l14": embeddings(OTHER)}
    value = distillation_loss(kind, embeddings(STUDENT), teachers, average="logits")
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    other = distillation_loss(kind, embeddings(STUDENT), teachers)
    assert abs(float(other) - expected) > 1e-3
    alone = {"b16": embeddings(TEACHER)}
    np.testing.assert_array_equal(
        distillation_loss(kind, embeddings(STUDENT), alone, average="logits"),
        distillation_loss(kind, embeddings(STUDENT), alone),
    )


def projection(teacher_width: int, seed: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(4, teacher_width)) for name in ("image", "text")}


def as_float32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def feature_oracle(student, teacher, weights) -> float:
    total = 0.0
    for side, name in enumerate(("image", "text")):
        for s, t in zip(student[side], teacher[side], strict=True):
            total += np.sum((s @ weights[name] - t) ** 2)
    return total / (2 * len(student[0]))


def test_feature_matching_value_and_projection_gradient():
    weights = projection(7)
    value, gradient = jax.value_and_grad(feature_matching, argnums=2)(
        embeddings(STUDENT), embeddings(TEACHER), as_float32(weights)
    )
    np.testing.assert_allclose(value, feature_oracle(STUDENT, TEACHER, weights), rtol=1e-5)
    # d/dW of ||Z W - T||^2 / 2n
    expected = STUDENT[1].T @ (STUDENT[1] @ weights["text"] - TEACHER[1]) / len(STUDENT[0])
    np.testing.assert_allclose(gradient["text"], expected, rtol=1e-4, atol=1e-6)


def test_feature_matching_averages_teachers_each_with_its_projection():
    weights = {"a": projection(7, 1), "b": projection(3, 2)}
    value = distillation_loss(
        "feature",
        embeddings(STUDENT),
        {"a": embeddings(TEACHER), "b": embeddings(OTHER)},
        as_float32(weights),
    )
    expected = feature_oracle(STUDENT, TEACHER, weights["a"])
    expected += feature_oracle(STUDENT, OTHER, weights["b"])
    np.testing.assert_allclose(value, expected / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "feature"])
def test_no_gradient_reaches_the_teacher(kind):
    def loss(teacher):
        weights = {"t": as_float32(projection(7))}
        return distillation_loss(kind, embeddings(STUDENT), {"t": teacher}, weights)

    for leaf in jax.tree.leaves(jax.grad(loss)(embeddings(TEACHER))):
        np.testing.assert_array_equal(leaf, 0)


def test_projection_shapes_and_spread():
    weights = init_projection(jax.random.key(0), 64, 96)
    assert {name: w.shape for name, w in weights.items()} == {"image": (64, 96), "text": (64, 96)}
    assert not np.array_equal(weights["image"], weights["text"])
    assert float(jnp.std(weights["image"])) == pytest.approx(64**-0.5, rel=0.1)


def test_refusals():
    student, teacher = embeddings(STUDENT), embeddings(TEACHER)
    for call, message in [
        (lambda: softmax_kd(student), "at least one teacher"),
        (lambda: distillation_loss("sigmoid", student, {}), "at least one teacher"),
        (lambda: distillation_loss("cosine", student, {"t": teacher}), "'cosine' is unknown"),
        (lambda: distillation_loss("feature", student, {"t": teacher}), r"projection \['t'\]"),
    ]:
        with pytest.raises(ConfigError, match=message):
            call()
