"""CIDEr-D: how far captions agree with what people wrote (arXiv 1411.5726, sections 4 and 5).

Runs of words that say little, because they are in the references of many pictures, count little.
Counts, and not shares, of runs are weighted and cut, as in the authors' published code, by which
numbers are compared; the paper's equation 1 divides by the length.
"""

import collections
import math
from collections.abc import Sequence

from aced.evaluators.bleu import runs

LONGEST = 4  # words in a run
_SIGMA = 6.0  # words of difference in length that cost a factor of exp(-1/2)

# Weights of the runs of n words; at place 0 is n = 1.
_Weights = list[dict[tuple[str, ...], float]]


def cider(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    """CIDEr-D of a data set, times 10, as published: 10 where captions are the only references.

    Args:
        captions: words of one caption per picture.
        references: words of one or more references per picture. How rare a run is, is counted in
            them; so a data set of a single picture gives 0.
    """
    pictures = collections.Counter()
    for texts in references:
        pictures.update(set().union(*map(_all_runs, texts)))
    rarity = {run: math.log(len(references) / count) for run, count in pictures.items()}
    unknown = math.log(len(references))  # as if it were in the references of one picture

    def weights(words: Sequence[str]) -> _Weights:
        return [
            {run: count * rarity.get(run, unknown) for run, count in runs(words, n).items()}
            for n in range(1, LONGEST + 1)
        ]

    scores = []
    for caption, texts in zip(captions, references, strict=True):
        own = weights(caption)
        alike = [
            _similarity(own, weights(text)) * _length_penalty(len(caption) - len(text))
            for text in texts
        ]
        scores.append(sum(alike) / len(alike))
    return 10 * sum(scores) / len(scores)


def _all_runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {run for n in range(1, LONGEST + 1) for run in runs(words, n)}


def _length_penalty(difference: int) -> float:
    return math.exp(-(difference**2) / (2 * _SIGMA**2))


def _similarity(caption: _Weights, reference: _Weights) -> float:
    """The mean over n of cosines in which a caption's weights are cut at the reference's.

    Repeating a run gains nothing that way (section 5, CIDEr-D).
    """
    cosines = []
    for own, other in zip(caption, reference, strict=True):
        norms = math.hypot(*own.values()) * math.hypot(*other.values())
        product = sum(min(w, other[run]) * other[run] for run, w in own.items() if run in other)
        cosines.append(product / norms if norms else 0.0)
    return sum(cosines) / len(cosines)
