import numpy as np
import pytest

from aced.evaluators.zeroshot import accuracy


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
