"""CIDEr-D: agreement of captions with human references (arXiv 1411.5726, sections 4 and 5).

n-grams that occur in the references of many images have a low weight. Term frequencies are counts,
as in the authors' code that published numbers use; equation 1 of the paper divides by the length.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from aced.evaluators.bleu import runs

LONGEST = 4  # n-grams up to this n
_SIGMA = 6.0  # difference in length with a penalty of exp(-1/2), in words

# tf-idf weights of the n-grams; index 0 has n = 1.
_Weights = list[dict[tuple[str, ...], float]]


def cider(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> float:
    """CIDEr-D of a data set, times 10 as published: the mean of `cider_by_image`."""
    return float(cider_by_image(captions, references).mean())


def cider_by_image(
    captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> Float[np.ndarray, " n"]:
    """CIDEr-D of each image, times 10: 10 if its caption equals its only reference.

    Args:
        captions: words of one caption per image.
        references: words of one or more references per image. They define document frequencies,
            so a data set of a single image gives 0.
    """
    pictures = collections.Counter()
    for texts in references:
        pictures.update(set().union(*map(_all_runs, texts)))
    rarity = {run: math.log(len(references) / count) for run, count in pictures.items()}
    unknown = math.log(len(references))  # as for an n-gram in the references of one image

    def weights(words: Sequence[str]) -> _Weights:
        return [
            {run: count * rarity.get(run, unknown) for run, count in runs(words, n).items()}
            for n in range(1, LONGEST + 1)
        ]

    scores = []
    for caption, texts in zip(captions, references, strict=True):
        own = weights(caption)
        similarities = [
            _similarity(own, weights(text))
            * math.exp(-((len(caption) - len(text)) ** 2) / (2 * _SIGMA**2))
            for text in texts
        ]
        scores.append(sum(similarities) / len(similarities))
    return 10 * np.array(scores)


def _all_runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    return {run for n in range(1, LONGEST + 1) for run in runs(words, n)}


def _similarity(caption: _Weights, reference: _Weights) -> float:
    """The mean over n of cosines, with a caption's weights clipped at the reference's.

    Clipping removes the gain from repeated n-grams (section 5, CIDEr-D).
    """
    cosines = []
    for own, other in zip(caption, reference, strict=True):
        norms = math.hypot(*own.values()) * math.hypot(*other.values())
        product = sum(min(w, other[run]) * other[run] for run, w in own.items() if run in other)
        cosines.append(product / norms if norms else 0.0)
    return sum(cosines) / len(cosines)
