import numpy as np
import pytest

from aced.evaluators.classification import accuracy


def test_accuracy_equals_a_full_sort():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 12, size=300)
    scores = rng.normal(size=(300, 12)) + 1.5 * np.eye(12)[label]
    order = np.argsort(-scores, axis=1)
    found = accuracy(scores, label)
    assert found["top1"] == pytest.approx(np.mean(order[:, 0] == label))
    assert found["top5"] == pytest.approx(np.mean((order[:, :5] == label[:, None]).any(1)))
    per_class = [np.mean(order[label == c, 0] == c) for c in range(12)]
    assert found["mean_per_class"] == pytest.approx(np.mean(per_class))
    assert found["examples"] == 300


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_ties_are_wrong(value):
    assert accuracy(np.full((10, 7), value), np.arange(10) % 7)["top5"] == 0.0


def test_the_area_under_the_roc_curve_equals_all_pairs():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, size=60)
    scores = np.round(rng.normal(size=(60, 2)) + np.eye(2)[label], 1)  # with ties
    margin = scores[:, 1] - scores[:, 0]
    pairs = margin[label == 1][:, None] - margin[label == 0]
    pairs = np.round(pairs, 6)
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    scores[:, 0], scores[:, 1] = 0, np.round(margin, 6)
    assert accuracy(scores, label)["roc_auc"] == pytest.approx(expected)
    assert "roc_auc" not in accuracy(np.eye(3)[label], label)
