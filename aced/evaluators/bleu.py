"""BLEU-4: n-gram precision of captions against references (ACL P02-1040)."""

import collections
import math
from collections.abc import Sequence

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
    matched, total = [0] * LONGEST, [0] * LONGEST
    length, reference_length = 0, 0
    for caption, texts in zip(captions, references, strict=True):
        length += len(caption)
        # The length of the closest reference; of two equally close ones, the shorter.
        reference_length += min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
        for n in range(1, LONGEST + 1):
            allowed = collections.Counter()
            for text in texts:
                allowed |= runs(text, n)  # the larger of both counts
            counts = runs(caption, n)
            matched[n - 1] += (counts & allowed).total()
            total[n - 1] += counts.total()
    if not all(matched):
        return 0.0
    logs = sum(map(math.log, matched)) / LONGEST - sum(map(math.log, total)) / LONGEST
    return math.exp(logs) * math.exp(min(0.0, 1 - reference_length / length))
