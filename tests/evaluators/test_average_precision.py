import jax.numpy as jnp
import numpy as np
import pytest

from aced.evaluators.classification import numbers
from aced.evaluators.linear_probe import mean_average_precision

RNG = np.random.default_rng(0)


def on_the_device(scores, shown):
    """The 11 points alone."""
    return float(mean_average_precision(jnp.float32(scores), jnp.asarray(shown)))


def by_thresholds(scores, shown):
    """11-point precision and area of one class by definition, over all thresholds in float64."""
    curve = []
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        curve.append((shown[found].sum() / shown.sum(), shown[found].mean()))
    eleven = [max(p for r, p in curve if r >= k / 10 - 1e-9) for k in range(11)]
    recalls = [0.0] + [r for r, _ in curve]
    area = sum((b - a) * p for a, b, (_, p) in zip(recalls[:-1], recalls[1:], curve, strict=True))
    return np.mean(eleven), area


@pytest.mark.parametrize("decimals", [1, 8])  # with ties, and without
@pytest.mark.parametrize("n", [7, 10, 300])
def test_equals_every_threshold_by_hand(decimals, n):
    shown = RNG.random((n, 5)) < [0.1, 0.5, 0.9, 0.3, 0.0]
    shown[0, :3], shown[:, 4] = True, False  # the last class does not occur, and does not count
    scores = np.round(RNG.normal(size=(n, 5)) + shown, decimals).astype(np.float32)
    seen = [c for c in range(5) if shown[:, c].any()]
    expected = np.mean([by_thresholds(scores[:, c], shown[:, c])[0] for c in seen])
    assert on_the_device(scores, shown) == pytest.approx(expected, abs=1e-6)
    order = RNG.permutation(n)
    assert on_the_device(scores[order], shown[order]) == pytest.approx(expected)


def on_the_host(scores, shown):
    found = numbers(np.asarray(scores, np.float32), np.asarray(shown, bool))
    return np.array([found["map_11point"], found["map"]])


@pytest.mark.parametrize("n", [7, 300])
def test_numbers_equal_every_threshold_by_hand(n):
    shown = RNG.random((n, 5)) < [0.1, 0.5, 0.9, 0.3, 0.0]
    shown[0, :3], shown[:, 4] = True, False
    scores = np.round(RNG.normal(size=(n, 5)) + shown, 1).astype(np.float32)
    seen = [c for c in range(5) if shown[:, c].any()]
    expected = np.mean([by_thresholds(scores[:, c], shown[:, c]) for c in seen], axis=0)
    assert on_the_host(scores, shown) == pytest.approx(expected)
    assert on_the_host(np.zeros((4, 3)), np.zeros((4, 3))).tolist() == [0, 0]


def test_eleven_points_of_elevater():
    """The golden value is of MeanAveragePrecisionNPointsEvaluator(11) with scikit-learn 1.9.1.

    It got the softmax of 100 times the scores, as the toolkit has it.
    """
    rng = np.random.default_rng(7)
    shown = rng.random((200, 4)) < [0.05, 0.2, 0.5, 0.1]
    scores = np.round(rng.normal(size=(200, 4)) * 0.05 + 0.04 * shown, 3).astype(np.float32)
    found = numbers(scores, shown, scale=100.0)
    assert found["map_11point_elevater"] == pytest.approx(0.38551649161639884, abs=1e-7)
    assert found["map_11point"] == pytest.approx(0.395151799779652)


def test_the_point_at_recall_zero_is_one_in_elevater():
    """The first of two thresholds is wrong: VOC's precision is 1/2 at every recall."""
    scores, shown = np.array([[2, 0], [1, 0.0]]), np.array([[0, 1], [1, 1]], bool)
    found = numbers(scores.astype(np.float32), shown)
    assert found["map_11point"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["map_11point_elevater"] == pytest.approx((6 / 11 + 1) / 2)


def test_perfect_random_and_empty_rankings():
    shown = RNG.random((40, 3)) < 0.25
    for of in (on_the_device, on_the_host):
        assert of(shown, shown) == pytest.approx(1)
        assert of(np.zeros((40, 3)), shown) == pytest.approx(shown.mean())
        assert np.all(np.equal(of(np.zeros((4, 3)), np.zeros((4, 3), bool)), 0))


def test_metrics_of_several_classes():
    shown = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], bool)
    scores = np.array([[0, 2, 1], [2, 1, 0], [1, 0, 1], [0, 0, 0]], float)
    found = numbers(scores, shown)
    # The first and the last picture are right; ties of scores go to the first class.
    assert found["top1"] == 0.5
    assert found["examples"] == 4
    expected = np.mean([by_thresholds(scores[:, c], shown[:, c]) for c in range(3)], axis=0)
    assert [found["map_11point"], found["map"]] == pytest.approx(expected)
    assert numbers(np.full((4, 3), np.nan), shown)["map"] == pytest.approx(shown.mean())
