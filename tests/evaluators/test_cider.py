import math

import numpy as np
import pytest

from aced.evaluators.cider import cider


def _runs_in_order(words, n):
    return [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]


def _by_hand(captions, references):
    """The authors' code in dense vectors over all runs of n words, in numpy."""
    total = np.zeros(len(captions))
    for n in range(1, 5):
        everything = [*captions, *(text for texts in references for text in texts)]
        index = sorted({run for words in everything for run in _runs_in_order(words, n)})
        of_pictures = [{r for t in texts for r in _runs_in_order(t, n)} for texts in references]
        seen = np.array([sum(run in runs for runs in of_pictures) for run in index])
        idf = np.log(len(references)) - np.log(np.maximum(seen, 1))

        def vector(words, n=n, index=index, idf=idf):
            found = _runs_in_order(words, n)
            return np.array([found.count(run) for run in index]) * idf

        for i, (caption, texts) in enumerate(zip(captions, references, strict=True)):
            for text in texts:
                h, r = vector(caption), vector(text)
                norm = np.linalg.norm(h) * np.linalg.norm(r)
                cosine = (np.minimum(h, r) * r).sum() / norm if norm else 0.0
                cosine *= np.exp(-((len(caption) - len(text)) ** 2) / 72)
                total[i] += cosine / len(texts) / 4
    return 10 * total.mean()


def some_texts(seed=0, pictures=20):
    rng = np.random.default_rng(seed)

    def text(low):
        return [f"w{i}" for i in rng.integers(0, 6, rng.integers(low, 12))]

    references = [[text(1) for _ in range(rng.integers(1, 5))] for _ in range(pictures)]
    captions = [text(0) for _ in range(pictures)]
    captions[::2] = [[*texts[0][:6], "new"] for texts in references[::2]]
    return captions, references


def test_captions_equal_to_their_only_reference_score_ten():
    texts = [["a", "red", "star", "above", "a", "ring"], ["two", "blue", "squares", "on", "gray"]]
    assert cider(texts, [[text] for text in texts]) == pytest.approx(10.0)


def test_an_example_by_hand():
    """Two pictures; "a" is said of both, so it weighs nothing: log(2/2) = 0.

    Runs of one word: caption and reference have star in common, of (red, star) and (blue, star),
    each of weight log 2: cosine 1/2. Of two: "a red", "red star" and "a blue", "blue star": 0.
    Longer ones: 0. So (1/2 + 0 + 0 + 0) / 4 of the first picture, and 0 of the second.
    """
    captions = [["a", "red", "star"], ["x", "y"]]
    references = [[["a", "blue", "star"]], [["a", "green", "ring"]]]
    assert cider(captions, references) == pytest.approx(10 * (0.5 / 4 + 0) / 2)


def test_length_and_repetition_cost():
    """star star star: weights are cut at the reference's 1, and the norm is that of 3.

    (1 * 1) / (3 * 1) = 1/3, and 2 words too many: exp(-4 / 72). Only runs of one word exist in
    the reference, the other n give 0.
    """
    captions = [["star"] * 3, ["ring"]]
    references = [[["star"]], [["ring"]]]
    first, second = math.exp(-4 / 72) / 3 / 4, 1 / 4
    assert cider(captions, references) == pytest.approx(10 * (first + second) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_cider_equals_dense_vectors(seed):
    captions, references = some_texts(seed)
    expected = _by_hand(captions, references)
    assert expected > 0.1
    assert cider(captions, references) == pytest.approx(expected)


def test_cider_equals_pycocoevalcaps():
    scorer = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    captions, references = some_texts()
    # Its lengths count pairs of words: an empty caption is as long as one of a single word.
    expected, _ = scorer.compute_score(
        {i: [" ".join(text) for text in texts] for i, texts in enumerate(references)},
        {i: [" ".join(text)] for i, text in enumerate(captions)},
    )
    assert cider(captions, references) == pytest.approx(expected)


def test_single_image_scores_zero():
    assert cider([["a", "star"]], [[["a", "star"]]]) == 0.0
