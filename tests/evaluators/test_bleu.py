import math

import numpy as np
import pytest

from aced.evaluators.bleu import bleu

CAT = ["the", "cat", "sat", "on", "the", "mat"]


def _count(words, run):
    return sum(words[i : i + len(run)] == run for i in range(len(words) - len(run) + 1))


def _by_hand(captions, references):
    """Papineni et al., section 2, run by run, each searched for in every text."""
    log_precision = 0.0
    for n in range(1, 5):
        right = given = 0
        for caption, texts in zip(captions, references, strict=True):
            places = [caption[i : i + n] for i in range(len(caption) - n + 1)]
            for run in {tuple(p) for p in places}:
                run = list(run)
                most = max(_count(text, run) for text in texts)
                right += min(_count(caption, run), most)
            given += len(places)
        if not right:
            return 0.0
        log_precision += math.log(right / given) / 4
    c = sum(map(len, captions))
    r = 0
    for caption, texts in zip(captions, references, strict=True):
        nearest = sorted(texts, key=lambda text: (abs(len(text) - len(caption)), len(text)))[0]
        r += len(nearest)
    return (1 if c > r else math.exp(1 - r / c)) * math.exp(log_precision)


def some_texts(seed=0, pictures=30, words=6):
    """Captions and references of few different words, so that longer runs recur."""
    rng = np.random.default_rng(seed)

    def text(low):
        return [str(w) for w in rng.integers(0, words, rng.integers(low, 12))]

    references = [[text(1) for _ in range(rng.integers(1, 5))] for _ in range(pictures)]
    captions = [text(0) for _ in range(pictures)]
    for i in range(0, pictures, 2):  # and half of them begin as a reference does
        captions[i] = references[i][0][:6] + captions[i][:3]
    return captions, references


def test_an_example_by_hand():
    """Runs: 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; the length is right."""
    caption = ["the", "cat", "sat", "on", "a", "mat"]
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert bleu([caption], [[CAT]]) == pytest.approx(expected)


def test_short_captions_are_penalised():
    """All of it is right, but 2 of 6 words are missing: exp(1 - 6/4)."""
    assert bleu([CAT[:4]], [[CAT]]) == pytest.approx(math.exp(-0.5))
    # Of references as near as each other, the shorter one counts: here none is missing.
    assert bleu([CAT[:4]], [[CAT[:5], CAT[:3]]]) == pytest.approx(1.0)


def test_repetition_counts_no_more_than_in_a_reference():
    assert bleu([["the"] * 7], [[CAT]]) == 0.0
    repeated = CAT + CAT
    expected = (6 * 5 * 4 * 3 / (12 * 11 * 10 * 9)) ** (1 / 4)
    assert bleu([repeated], [[CAT]]) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_bleu_equals_the_formula_run_by_run(seed):
    captions, references = some_texts(seed)
    expected = _by_hand(captions, references)
    assert 0 < expected < 1
    assert bleu(captions, references) == pytest.approx(expected)


def test_bleu_equals_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu")
    captions, references = some_texts()
    references = [texts[:1] for texts in references]
    score = sacrebleu.corpus_bleu(
        [" ".join(words) for words in captions],
        [[" ".join(texts[0]) for texts in references]],
        tokenize="none",
        smooth_method="none",
    )
    assert bleu(captions, references) == pytest.approx(score.score / 100)


def test_bleu_equals_nltks():
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    pairs = zip(*some_texts(), strict=True)
    # It counts a run that is not there in captions shorter than the run; sacrebleu does not.
    captions, references = zip(*(pair for pair in pairs if len(pair[0]) >= 4), strict=True)
    assert bleu(captions, references) == pytest.approx(nltk.corpus_bleu(references, captions))


def test_empty_captions_score_zero():
    assert bleu([[], []], [[CAT], [CAT]]) == 0.0
