"""BLEU-4: which runs of words captions have in common with references (ACL P02-1040)."""

import collections
import math
from collections.abc import Sequence

LONGEST = 4  # words in a run


def runs(words: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return collections.Counter(zip(*(words[i:] for i in range(n)), strict=False))


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """BLEU-4 of a data set in [0, 1], without smoothing: 0 where no run of four words is right.

    Args:
        captions: words of one caption per picture.
        references: words of one or more references per picture.
    """
    right, given = [0] * LONGEST, [0] * LONGEST
    length, wanted = 0, 0
    for caption, texts in zip(captions, references, strict=True):
        length += len(caption)
        # Of the reference whose length is nearest, the shorter one of two.
        wanted += min((abs(len(text) - len(caption)), len(text)) for text in texts)[1]
        for n in range(1, LONGEST + 1):
            allowed = collections.Counter()
            for text in texts:
                allowed |= runs(text, n)  # the larger of both counts
            found = runs(caption, n)
            right[n - 1] += (found & allowed).total()
            given[n - 1] += found.total()
    if not all(right):
        return 0.0
    precision = math.exp(sum(map(math.log, right)) / LONGEST - sum(map(math.log, given)) / LONGEST)
    return precision * math.exp(min(0.0, 1 - wanted / length))
