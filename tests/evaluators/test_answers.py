import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import evaluators
from aced.config import ConfigError
from aced.data.answers import soft_accuracy
from aced.data.sources import DataConfig
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import EvalConfig, answers
from aced.models import coca
from aced.models.two_tower import TwoTowerConfig
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig
from tests.evaluators import task_records
from tests.models import tiny_coca

CLASSES = 5
CONFIG = EvalConfig(kind="answers", batch_size=4, data=DataConfig(num_threads=0))


def one_device():
    return meshes.make_mesh(devices=jax.devices()[:1])


def evaluate(model, params, records, monkeypatch, mesh=None, **changes):
    monkeypatch.setattr(answers, "open_source", lambda config: records)
    mesh = mesh or one_device()
    config = dataclasses.replace(CONFIG, **changes)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, rules.shardings(params, mesh))
        return evaluators.build(config, model, mesh)(params)


def by_hand(model, params, records):
    """The numbers, example by example, in float64."""
    tokenizer = get_tokenizer(model.tokenizer)
    answer = jax.jit(functools.partial(coca.answer, model))
    right, losses = {}, []
    for record in records.kept():
        if record["label"] < 0 or not record["texts"]:
            continue
        pictures = [record["image"], record["second"]][: model.pictures]
        images = tuple(jnp.asarray(x)[None] for x in pictures)
        text = jnp.asarray(tokenizer(record["texts"][:1]))
        scores = np.asarray(answer(params, images, text)[0], np.float64)
        right.setdefault(record["label"], []).append(scores.argmax() == record["label"])
        losses.append(np.log(np.exp(scores).sum()) - scores[record["label"]])
    every = np.concatenate(list(right.values()))
    return {
        "accuracy": every.mean(),
        "mean_per_class": np.mean([np.mean(x) for x in right.values()]),
        "loss": np.mean(losses),
        "examples": len(every),
    }


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [1, 2])
def test_answers_equal_those_example_by_example(pictures, monkeypatch):
    """Of what can be read, has a question and a label; and the same on eight devices."""
    model = task_records.model(classes=CLASSES, pictures=pictures)
    params, records = tiny_coca.params(model), task_records.Records(classes=CLASSES)
    expected = by_hand(model, params, records)
    assert expected["examples"] == 19 - 4
    assert 0 < expected["accuracy"] < 1
    assert evaluate(model, params, records, monkeypatch) == pytest.approx(expected, rel=1e-4)
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))
    shared = evaluate(model, params, records, monkeypatch, mesh=mesh)
    assert shared == pytest.approx(expected, rel=1e-4)


def test_the_first_examples_alone(monkeypatch):
    model = task_records.model(classes=CLASSES)
    records = task_records.Records(classes=CLASSES)
    found = evaluate(model, tiny_coca.params(model), records, monkeypatch, max_examples=8)
    assert found["examples"] == 8 - 3


def test_soft_accuracy_counts_every_question_with_answers(monkeypatch):
    """Also those whose answer is no class of the model; unreadable ones and silent ones do not."""
    model = task_records.model(classes=CLASSES)
    names = ("red", "blue", "two", "a cat", "yes")
    rng = np.random.default_rng(0)
    given = [[str(x) for x in rng.choice([*names, "2", "cat"], 10)] for _ in range(19)]
    given[1] = []
    params = tiny_coca.params(model)
    records = task_records.Records(classes=CLASSES, given=given)
    found = evaluate(model, params, records, monkeypatch, class_names=names, bootstrap=50)
    tokenizer = get_tokenizer(model.tokenizer)
    degrees = []
    for record in records.kept():
        if record["texts"] and record["answers"]:
            text = jnp.asarray(tokenizer(record["texts"][:1]))
            scores = coca.answer(model, params, (jnp.asarray(record["image"])[None],), text)[0]
            degrees.append(soft_accuracy(names[int(scores.argmax())], record["answers"]))
    assert found["soft_accuracy"] == pytest.approx(np.mean(degrees))
    assert found["questions"] == 19 - 3 == len(degrees)
    assert 0 < found["soft_accuracy_low"] < np.mean(degrees) < found["soft_accuracy_high"] < 1
    assert found["examples"] == 19 - 4
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    with pytest.raises(ConfigError, match=r"names of the model's 5 classes, .* 2 names"):
        evaluate(model, params, records, monkeypatch, class_names=names[:2])


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_constant_model_has_zero_accuracy(value, monkeypatch):
    model = task_records.model(classes=CLASSES)
    params = tiny_coca.params(model)
    head = jax.tree.map(lambda x: jnp.full_like(x, value), params["head"])
    records = task_records.Records(classes=CLASSES)
    found = evaluate(model, params | {"head": head}, records, monkeypatch)
    assert found["accuracy"] == found["mean_per_class"] == 0.0
    assert np.isnan(value) or found["loss"] == pytest.approx(np.log(CLASSES))


def test_labels_beyond_the_classes_are_refused(monkeypatch):
    model = task_records.model(classes=2)
    records = task_records.Records(classes=CLASSES)
    largest = max(record["label"] for record in records.kept())
    with pytest.raises(ConfigError, match=rf"some records has label {largest}.* classes = 2"):
        evaluate(model, tiny_coca.params(model), records, monkeypatch)


def test_a_data_set_without_answers_is_refused(monkeypatch):
    model = task_records.model(classes=CLASSES)
    records = task_records.Records(n=4, broken=(), unknown=range(4))
    with pytest.raises(ConfigError, match=r"labels, and some records has none"):
        evaluate(model, tiny_coca.params(model), records, monkeypatch)


@pytest.mark.parametrize("model", [TwoTowerConfig(), task_records.model()])
def test_models_without_a_head_are_refused(model):
    with pytest.raises(ConfigError, match="set the model's classes"):
        evaluators.build(CONFIG, model, one_device())
