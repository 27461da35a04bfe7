"""BLEU-4: n-gram precision of captions against references (ACL P02-1040)."""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from aced.evaluators.bootstrap import Statistic

LONGEST = 4  # n-grams up to this n


def runs(words: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    """Counts of the n-grams."""
    return collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """BLEU-4 of a data set in [0, 1], without smoothing: 0 if no 4-gram matches.

    Args:
        captions: words of one caption per picture.
        references: words of one or more references per picture.
    """
    return float(statistic_of(captions, references)(np.ones((1, len(captions))))[0])


def statistic_of(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> Statistic:
    """`bleu` as a function of how often each picture counts."""
    # Of each picture: matches and n-grams by n, and both lengths.
    table = np.zeros((len(captions), 2 * LONGEST + 2))
    for row, caption, texts in zip(table, captions, references, strict=True):
        # The length of the closest reference; of two equally close ones, the shorter.
        closest = min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
        row[-2:] = len(caption), closest
        for n in range(1, LONGEST + 1):
            allowed = collections.Counter()
            for text in texts:
                allowed |= runs(text, n)  # the larger of both counts
            counts = runs(caption, n)
            row[n - 1] = (counts & allowed).total()
            row[LONGEST + n - 1] = counts.total()

    def statistic(counts: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        sums = counts @ table
        matched, total = sums[:, :LONGEST], sums[:, LONGEST:-2]
        length, reference_length = sums[:, -2], sums[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = (np.log(matched) - np.log(total)).mean(axis=1)
            score = np.exp(logs) * np.exp(np.minimum(0.0, 1 - reference_length / length))
        return np.where(matched.all(axis=1), score, 0.0)

    return statistic
