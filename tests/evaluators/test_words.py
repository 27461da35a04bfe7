import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import evaluators
from aced.config import ConfigError
from aced.data.answers import normalized, soft_accuracy
from aced.data.sources import DataConfig
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import EvalConfig, words
from aced.models import generation
from aced.models.generation import GenerationConfig
from aced.models.two_tower import TwoTowerConfig
from aced.parallel import mesh as meshes
from tests.evaluators import task_records
from tests.models import tiny_coca

HOW = GenerationConfig(kind="greedy")
CONFIG = EvalConfig(kind="words", batch_size=4, generation=HOW, data=DataConfig(num_threads=0))
MODEL = task_records.model()


def one_device():
    return meshes.make_mesh(devices=jax.devices()[:1])


def evaluate(params, records, monkeypatch, **changes):
    monkeypatch.setattr(words, "open_source", lambda config: records)
    with jax.set_mesh(one_device()):
        return evaluators.build(dataclasses.replace(CONFIG, **changes), MODEL, one_device())(params)


def written(params, records):
    """The answer to each question that can be read, one by one, and its record."""
    tokenizer = get_tokenizer(MODEL.tokenizer)
    for record in records.kept():
        if record["texts"]:
            image = jnp.asarray(record["image"])[None]
            prompt = jnp.asarray(tokenizer(record["texts"][:1]))
            ids = generation.generate(MODEL, HOW, params, image, prompt=prompt).ids
            yield tokenizer.decode(np.asarray(ids))[0], record


@pytest.mark.slow
def test_written_answers_equal_those_question_by_question(monkeypatch):
    """Half of them equal the most frequent answer; one question has no answers."""
    params = tiny_coca.params(MODEL, 8)
    given = [[f"no {i}", "what"] for i in range(19)]
    given[2] = []
    records = task_records.Records(unknown=range(19), given=given)
    for i, (answer, record) in enumerate(written(params, records)):
        if record["answers"] and i % 2:
            record["answers"] = [f"The {answer}."] * 3 + record["answers"]
    scores = [
        (normalized(answer) == normalized(record["answers"][0]), soft_accuracy(answer, answers))
        for answer, record in written(params, records)
        if (answers := record["answers"])
    ]
    found = evaluate(params, records, monkeypatch, bootstrap=20)
    exact, soft = np.mean(scores, axis=0)
    assert 0.3 < exact < 0.7
    assert found["exact"] == pytest.approx(exact)
    assert found["soft_accuracy"] == pytest.approx(soft)
    assert found["exact_low"] <= exact <= found["exact_high"]
    assert found["examples"] == len(scores) == 19 - 3


@pytest.mark.slow
def test_name_of_the_label_is_right_without_answers(monkeypatch):
    params, records = tiny_coca.params(MODEL, 8), task_records.Records(n=4, classes=2)
    names = (next(written(params, records))[0], "something else")
    found = evaluate(params, records, monkeypatch, class_names=names)
    right = [
        names[r["label"]] == answer for answer, r in written(params, records) if r["label"] >= 0
    ]
    assert found["exact"] == pytest.approx(np.mean(right))
    assert "soft_accuracy" not in found
    with pytest.raises(ConfigError, match="needs questions with answers, and some records has"):
        evaluate(params, records, monkeypatch)


def test_two_towers_cannot_write_and_are_refused():
    with pytest.raises(ConfigError, match="two towers write nothing"):
        evaluators.build(CONFIG, TwoTowerConfig(), one_device())
