import math

import numpy as np
import pytest

from aced.evaluators import EvalConfig, bleu, bootstrap
from aced.evaluators.classification import accuracy, numbers
from aced.evaluators.retrieval import recall

RNG = np.random.default_rng(0)


def test_a_mean_has_the_interval_of_the_central_limit():
    values = RNG.normal(3.0, 2.0, size=4000)
    found = bootstrap.numbers({"x": bootstrap.mean(values)}, 4000, 2000)
    assert found["x"] == pytest.approx(values.mean())
    half = 1.96 * values.std() / math.sqrt(4000)
    assert found["x_low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["x_high"] == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap.numbers({"x": bootstrap.mean(values)}, 4000, 2000) == found
    assert bootstrap.numbers({"x": bootstrap.mean(values)}, 4000).keys() == {"x"}


def test_intervals_of_classification_equal_those_of_repeated_examples(monkeypatch):
    """Of every number, ROC and mean average precision included."""
    label = RNG.integers(0, 2, 40)
    scores = np.round(RNG.normal(size=(40, 2)) + np.eye(2)[label], 1)  # with ties
    shown = RNG.random((40, 3)) < 0.4
    several = np.round(RNG.normal(size=(40, 3)) + shown, 1)
    seen = []

    def of_samples(statistics, examples, samples=0):
        counts = np.random.default_rng(1).multinomial(examples, [1 / examples] * examples, 5)
        seen.append((counts, {k: f(counts.astype(float)) for k, f in statistics.items()}))
        return {}

    monkeypatch.setattr(bootstrap, "numbers", of_samples)
    accuracy(scores, label)
    numbers(several, shown, scale=3.0)
    monkeypatch.undo()
    one, many = seen
    for counts, found, of in (
        (*one, lambda rows: accuracy(scores[rows], label[rows])),
        (*many, lambda rows: numbers(several[rows], shown[rows], scale=3.0)),
    ):
        for i, count in enumerate(counts):
            expected = of(np.repeat(np.arange(40), count))
            assert {k: x[i] for k, x in found.items()} == pytest.approx(
                {k: v for k, v in expected.items() if k != "examples"}
            )


def test_pictures_are_resampled_with_their_captions():
    owner = np.repeat(np.arange(30), 2)
    zimg = RNG.normal(size=(30, 4))
    ztxt = zimg[owner] + RNG.normal(size=(60, 4))
    found = recall(zimg, ztxt, owner, samples=500)
    assert found["mean_r1_low"] < found["mean_r1"] < found["mean_r1_high"]
    assert found["captions"] == 60
    plain = recall(zimg, ztxt, owner)
    assert plain == {k: v for k, v in found.items() if not k.endswith(("_low", "_high"))}
    # Captions that are right or wrong together tell less than as many independent ones.
    ranks = (np.repeat(RNG.random(200) < 0.5, 5)).astype(float)
    together = bootstrap.mean(ranks, np.repeat(np.arange(200), 5))
    apart = bootstrap.mean(ranks)
    a = bootstrap.numbers({"x": together}, 200, 500)
    b = bootstrap.numbers({"x": apart}, 1000, 500)
    assert a["x_high"] - a["x_low"] > 1.7 * (b["x_high"] - b["x_low"])


def test_bleu_of_a_sample_is_that_of_repeated_pictures():
    words = ["a", "red", "star", "on", "the", "blue", "sky", "moon"]
    references = [[[*RNG.choice(words, 9)]] for _ in range(6)]
    captions = [[*texts[0][: RNG.integers(5, 9)], "x"] for texts in references]
    counts = np.array([[2, 0, 1, 1, 0, 2], [1] * 6, [6, 0, 0, 0, 0, 0]])
    found = bleu.statistic_of(captions, references)(counts.astype(float))
    for value, count in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(6), count)
        expected = bleu.bleu([captions[i] for i in rows], [references[i] for i in rows])
        assert value == pytest.approx(expected)


def test_undefined_samples_are_left_out():
    """With three examples and only one of class 1, most samples have no ROC curve."""
    found = accuracy(np.array([[0, 1], [1, 0], [1, 0.0]]), np.array([1, 0, 0]), samples=200)
    assert found["roc_auc"] == found["roc_auc_low"] == found["roc_auc_high"] == 1.0


def test_no_intervals_by_default():
    assert EvalConfig().bootstrap == 0
