"""Which of the neighbours are taken, when there is room for so many sentences."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt64


def ranked(
    hashes: Sequence[UInt64[np.ndarray, "_ k"]],
    scores: Sequence[Float[np.ndarray, "_ k"]],
    room: int,
    taken: UInt64[np.ndarray, " t"],
) -> UInt64[np.ndarray, " r"]:
    """The sentences by the best rank that they have with any image, then by their score there.

    That is all first neighbours before all second ones, and so on; of equals the smaller hash.

    Args:
        hashes: of the neighbours of some images, the nearest first, in several arrays.
        scores: their similarity; -inf where there is none.
        room: how many to take at most.
        taken: hashes that are in already, and are not taken again.
    """
    chosen, seen = [np.empty(0, np.uint64)], np.sort(taken)
    for rank in range(hashes[0].shape[1]):
        if room <= 0:
            break
        column = np.concatenate([h[:, rank] for h in hashes])
        score = np.concatenate([s[:, rank] for s in scores])
        is_there = score > -np.inf
        column, score = column[is_there], score[is_there]
        order = np.lexsort((column, -score))  # best first, so that `unique` finds its best
        found, first = np.unique(column[order], return_index=True)
        first = np.sort(first[~np.isin(found, seen, assume_unique=True)])[:room]
        chosen.append(column[order][first])
        seen = np.union1d(seen, chosen[-1])
        room -= len(first)
    return np.concatenate(chosen)


def kept(
    hashes: Sequence[UInt64[np.ndarray, "_ k"]],
    scores: Sequence[Float[np.ndarray, "_ k"]],
    chosen: UInt64[np.ndarray, " r"],
) -> dict[str, float]:
    """What of the images' neighbours is among `chosen`.

    Returns:
        The share of images whose first neighbour is, and the mean similarity of an image and one of
        its neighbours that is.
    """
    chosen = np.sort(chosen)
    first, images, total, pairs = 0, 0, 0.0, 0
    for h, score in zip(hashes, scores, strict=True):
        is_there = score > -np.inf
        is_kept = np.isin(h, chosen) & is_there
        first, images = first + int(is_kept[:, 0].sum()), images + int(is_there[:, 0].sum())
        total += float(score[is_kept].sum(dtype=np.float64))
        pairs += int(is_kept.sum())
    return {
        "first_neighbour_kept": first / max(images, 1),
        "neighbour_similarity": total / max(pairs, 1),
    }
