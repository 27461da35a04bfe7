import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit, logsumexp

from aced import evaluators
from aced.config import ConfigError
from aced.data.images.augment import AugmentConfig
from aced.data.sources import DataConfig
from aced.evaluators import EvalConfig, linear_probe, zeroshot
from aced.evaluators.config import ProbeConfig
from aced.evaluators.linear_probe import Head, fit, mean_average_precision
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig
from tests.evaluators import task_records
from tests.models import tiny_coca

N, D, CLASSES = 60, 5, 3
PROBE = ProbeConfig(epochs=4, batch_size=16, learning_rates=(0.03, 0.3), weight_decays=(0.0, 0.1))


def examples(n=N):
    """Features with different means and spreads that correlate with the classes, and a head."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, n)
    x = rng.normal(size=(n, D)) + 0.7 * np.eye(CLASSES, D)[label]
    x = (x * [1, 2, 0.5, 3, 1] + [0, 5, 0, -2, 1]).astype(np.float32)
    kernel = 0.1 * rng.normal(size=(D, CLASSES))
    return x, label, Head(kernel.astype(np.float32), np.float32([0.2, 0.0, -0.1]))


def by_hand(x, label, head, learning_rate, weight_decay, epochs, probe=PROBE):
    """SGD in float64 on standardised features; yields after every epoch the head of `x`."""
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    z = (x - mean) / std
    kernel = head.kernel.astype(np.float64) * std[:, None]
    bias = head.bias + mean @ head.kernel.astype(np.float64)
    speed = [np.zeros_like(kernel), np.zeros_like(bias)]
    for epoch in range(epochs + 1):
        own = kernel / std[:, None]
        yield own, bias - mean @ own
        key = jax.random.fold_in(jax.random.key(probe.seed), epoch)
        order = np.asarray(jax.random.permutation(key, len(x)))
        for i in range(0, len(x), probe.batch_size):
            rows = order[i : i + probe.batch_size]
            logits = z[rows] @ kernel + bias
            if label.ndim == 1:
                error = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
                error[np.arange(len(rows)), label[rows]] -= 1
            else:  # several classes each: the mean over them
                error = (expit(logits) - label[rows]) / CLASSES
            grads = z[rows].T @ error / len(rows) + weight_decay * kernel, error.mean(0)
            speed = [probe.momentum * s + g for s, g in zip(speed, grads, strict=True)]
            kernel, bias = kernel - learning_rate * speed[0], bias - learning_rate * speed[1]


def share_right(scores, label):
    return np.mean(scores.argmax(1) == label)


def eleven_points(scores, shown):
    scores, shown = jnp.float32(scores), jnp.asarray(shown)
    return float(mean_average_precision(scores, shown))


@pytest.mark.parametrize("number", ["validation_top1", "validation_map_11point"])
def test_the_search_and_the_training_after_it_equal_sgd_by_hand(number):
    x, label, start = examples()
    quality = share_right
    if number == "validation_map_11point":
        also = np.random.default_rng(1).random((N, CLASSES)) < 0.3
        label, quality = np.eye(CLASSES, dtype=bool)[label] | also, eleven_points
    order = np.random.default_rng(PROBE.seed).permutation(N)
    kept, held = np.sort(order[N // 5 :]), np.sort(order[: N // 5])
    found = {}
    for setting in itertools.product(PROBE.learning_rates, PROBE.weight_decays):
        for epoch, (kernel, bias) in enumerate(by_hand(x[kept], label[kept], start, *setting, 4)):
            found[epoch, *setting] = quality(x[held] @ kernel + bias, label[held])
    epochs, *setting = max(sorted(found), key=found.get)  # the first of equal ones
    expected = [epochs, *setting, found[epochs, *setting]]
    assert epochs > 0, "a test of nothing"
    chosen, head = fit(x, label, start, PROBE)
    numbers = ("epochs", "learning_rate", "weight_decay", number)
    assert [chosen[name] for name in numbers] == pytest.approx(expected)
    *_, (kernel, bias) = by_hand(x, label, start, *setting, epochs)
    np.testing.assert_allclose(head.kernel, kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.bias, bias, rtol=1e-4, atol=1e-5)


def test_long_training_ends_at_the_regularised_optimum(monkeypatch):
    x, label, start = examples()
    probe = ProbeConfig(
        epochs=600, batch_size=N, learning_rates=(0.5,), weight_decays=(0.05,), momentum=0.5
    )
    # With few examples any number of epochs may be the best; here all epochs have to run.
    monkeypatch.setattr(np, "unravel_index", lambda *_: (probe.epochs, 0))
    _, head = fit(x, label, start, probe)
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    z = (x - mean) / std

    def objective(w):
        kernel, bias = w[:-CLASSES].reshape(D, CLASSES), w[-CLASSES:]
        logits = z @ kernel + bias
        loss = logsumexp(logits, axis=1) - logits[np.arange(N), label]
        return loss.mean() + 0.05 / 2 * np.sum(kernel**2)

    best = scipy.optimize.minimize(objective, np.zeros((D + 1) * CLASSES), method="BFGS").x
    logits = z @ best[:-CLASSES].reshape(D, CLASSES) + best[-CLASSES:]
    ours = x @ head.kernel + head.bias
    centred = [found - found.mean(1, keepdims=True) for found in (ours, logits)]
    np.testing.assert_allclose(*centred, atol=1e-3)


def meshes_to_try():
    yield meshes.make_mesh(devices=jax.devices()[:1])
    yield meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))


NAMES = ("red", "star", "black")
CONFIG = EvalConfig(
    kind="linear_probe",
    batch_size=4,
    class_names=NAMES,
    data=DataConfig(num_threads=0),
    probe=dataclasses.replace(PROBE, data=DataConfig(num_threads=0)),
)


class Shown(task_records.Records):
    """Records whose texts are one to three class names; some have none."""

    def __getitem__(self, index):
        texts = tuple(name for bit, name in enumerate(NAMES) if (index % 8) >> bit & 1)
        return super().__getitem__(index) | {"texts": texts}


def evaluate(monkeypatch, config, mesh):
    for kind in (linear_probe, zeroshot):
        source = task_records.Records(unknown=(), classes=3)
        if config.classes_in == "captions":
            source = Shown()
        monkeypatch.setattr(kind, "open_source", lambda config, source=source: source)
    model = task_records.model()
    with jax.set_mesh(mesh):
        params = tiny_coca.params(model)
        params = jax.device_put(params, rules.shardings(params, mesh))
        return evaluators.build(config, model, mesh)(params)


@pytest.mark.slow
@pytest.mark.parametrize("classes_in", ["label", "captions"])
def test_a_head_from_texts_that_is_not_trained_is_the_zero_shot_classifier(monkeypatch, classes_in):
    probe = dataclasses.replace(CONFIG.probe, learning_rates=(0.0,))
    for mesh in meshes_to_try():
        config = dataclasses.replace(CONFIG, probe=probe, classes_in=classes_in)
        found = evaluate(monkeypatch, config, mesh)
        expected = evaluate(monkeypatch, dataclasses.replace(config, kind="zeroshot"), mesh)
        expected.pop("map_11point_elevater", None)  # of a softmax with another scale
        assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.slow
def test_pictures_of_several_classes(monkeypatch, caplog):
    config = dataclasses.replace(CONFIG, classes_in="captions")
    first, second = (evaluate(monkeypatch, config, mesh) for mesh in meshes_to_try())
    assert first == pytest.approx(second)
    # Of 19 pictures one is broken, and two more have no class.
    assert first["trained_on"] == first["examples"] == 19 - 1 - len([0, 8, 16])
    assert "leaves out 3 of 18 pictures of some records: they have no label" in caplog.text
    assert 0 < first["map"] <= 1
    assert first["validation_map_11point"] > 0
    (mesh, _) = meshes_to_try()
    with pytest.raises(ConfigError, match="'black', which is not a class name"):
        evaluate(monkeypatch, dataclasses.replace(config, class_names=("red", "star")), mesh)
    with pytest.raises(ConfigError, match="needs class names"):
        evaluate(monkeypatch, dataclasses.replace(config, class_names=()), mesh)


@pytest.mark.slow
def test_any_mesh_gives_the_same_numbers_and_names_what_was_chosen(monkeypatch):
    first, second = (evaluate(monkeypatch, CONFIG, mesh) for mesh in meshes_to_try())
    assert first == pytest.approx(second)
    assert first["trained_on"] == first["examples"] > 0
    assert first["learning_rate"] in PROBE.learning_rates


def test_without_class_names_a_probe_starts_at_zero_or_is_refused(monkeypatch):
    (mesh, _) = meshes_to_try()
    unnamed = dataclasses.replace(CONFIG, class_names=())
    with pytest.raises(ConfigError, match=r"probe\.start = 'zeros'"):
        evaluate(monkeypatch, unnamed, mesh)
    probe = dataclasses.replace(CONFIG.probe, start="zeros", learning_rates=(0.0,))
    found = evaluate(monkeypatch, dataclasses.replace(unnamed, probe=probe), mesh)
    # All classes have equal scores, so the first one is chosen.
    first = [r["label"] == 0 for r in task_records.Records(unknown=(), classes=3).kept()]
    assert found["top1"] == pytest.approx(np.mean(first))


def test_too_few_pictures_are_refused():
    x, label, start = examples(2)
    with pytest.raises(ConfigError, match="20 % of 2 labelled pictures"):
        fit(x, label, start, PROBE)


def test_stored_augmentations_are_refused_where_they_would_not_be_read():
    data = DataConfig(augmentations=2, augment=AugmentConfig(flip=0.5))
    with pytest.raises(ConfigError, match=r"^data\.augmentations = 2 is for training"):
        EvalConfig(data=data)
    with pytest.raises(ConfigError, match=r"^probe\.data\.augmentations = 2 is for training"):
        EvalConfig(probe=ProbeConfig(data=data))
