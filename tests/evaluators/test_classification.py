import jax
import numpy as np
import pytest

from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.evaluators import EvalConfig, zeroshot
from aced.evaluators.classification import Prompts, accuracy, numbers
from aced.evaluators.embed import Embedder
from aced.parallel import mesh as meshes
from tests.evaluators import task_records


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


def test_first_of_equal_scores_is_chosen_as_by_argmax():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (400, 9)).astype(np.float32)
    label = rng.integers(0, 9, 400)
    found = accuracy(scores, label)
    assert found["top1"] == pytest.approx(np.mean(scores.argmax(axis=1) == label))
    five = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    assert found["top5"] == pytest.approx(np.mean((five == label[:, None]).any(axis=1)))
    shown = rng.random((400, 9)) < 0.3
    expected = np.mean(shown[np.arange(400), scores.argmax(axis=1)])
    assert numbers(scores, shown)["top1"] == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_nan_is_never_right(classes):
    scores, label = np.full((10, classes), np.nan, np.float32), np.arange(10) % classes
    found = accuracy(scores, label)
    assert found["top1"] == found["top5"] == found["mean_per_class"] == 0.0
    assert numbers(scores, np.eye(classes, dtype=bool)[label])["top1"] == 0.0


class Perfect(Embedder):
    """Replaces a model: the embedding of a text is a noisy one-hot vector of its first word."""

    def __init__(self, tokenizer):
        self.tokenizer, self.seen = tokenizer, []

    def texts(self, params, texts):
        self.seen += texts
        rng = np.random.default_rng(len(self.seen))
        z = 1e-3 * rng.normal(size=(len(texts), 99)).astype(np.float32)
        z[np.arange(len(texts)), self.tokenizer(texts)[:, 1]] += 1.0
        return z / np.linalg.norm(z, axis=1, keepdims=True)


def test_pictures_of_a_repeated_class_name_count_for_the_first_class():
    tokenizer = get_tokenizer(TokenizerConfig(kind="shapes", length=6))
    names = ("red", "blue", "Red", "green", "blue", "black")  # lower-cased, two are repeated
    prompts = Prompts(names, ("a {}", "the {}"), tokenizer)
    assert sorted(prompts.repeated) == [["blue", "blue"], ["red", "Red"]]
    model, label = Perfect(tokenizer), np.arange(6).repeat(10)
    zimg = np.eye(99, dtype=np.float32)[tokenizer([f"a {name}" for name in names])[:, 1]][label]
    scores = prompts.scores(model, None, zimg)
    assert len(model.seen) == 4 * 2
    np.testing.assert_array_equal(scores[:, [0, 1]], scores[:, [2, 4]])
    found = accuracy(scores, label)
    assert found["top1"] == pytest.approx(4 / 6)
    assert found["top5"] == 1.0
    assert prompts.weights(model, None).shape == (6, 99)
    assert Prompts(("red", "blue"), ("a {}",), tokenizer).repeated == []


def test_repeated_class_names_are_named_in_the_log(monkeypatch, caplog):
    records = task_records.Records(unknown=(), classes=4)
    monkeypatch.setattr(zeroshot, "open_source", lambda config: records)
    for names, warned in ((("red", "star", "Red", "blue"), True), (("red", "star"), False)):
        caplog.clear()
        config = EvalConfig(kind="zeroshot", class_names=names)
        zeroshot.ZeroShot(config, task_records.model(), meshes.make_mesh(jax.devices()[:1]))
        assert ("read alike to the model" in caplog.text) == warned
        assert ("'red', 'Red'" in caplog.text) == warned


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


def test_f1_and_the_worst_group_by_counting():
    rng = np.random.default_rng(0)
    label = rng.integers(1, 5, size=200)  # classes 0 and 5 do not occur
    scores = rng.normal(size=(200, 6)) + np.eye(6)[label]
    group = rng.integers(-1, 4, size=200)
    found, chosen = accuracy(scores, label, group), scores.argmax(axis=1)
    f1 = []
    for c in range(1, 5):
        hits = np.sum((chosen == c) & (label == c))
        precision, recall = hits / np.sum(chosen == c), hits / np.sum(label == c)
        f1.append(2 * precision * recall / (precision + recall))
    assert found["f1_macro"] == pytest.approx(np.mean(f1))
    five = (np.argsort(-scores, axis=1)[:, :5] == label[:, None]).any(axis=1)
    for name, right in (("top1", chosen == label), ("top5", five)):
        worst = min(right[group == g].mean() for g in range(4))
        assert found[f"worst_group_{name}"] == pytest.approx(worst)
    assert "worst_group_top1" not in accuracy(scores, label)
    assert "worst_group_top1" not in accuracy(scores, label, np.full(200, -1))
    assert accuracy(np.full((200, 6), np.nan), label)["f1_macro"] == 0.0


def test_f1_equals_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the 'parity' extra")
    rng = np.random.default_rng(1)
    label, scores = rng.integers(0, 20, size=60), rng.normal(size=(60, 30))
    expected = metrics.f1_score(
        label, scores.argmax(axis=1), average="macro", labels=np.unique(label)
    )
    assert accuracy(scores, label)["f1_macro"] == pytest.approx(expected)
