"""Chooses sentences among the images' neighbours within a budget."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt64


def ranked(
    hashes: Sequence[UInt64[np.ndarray, "_ k"]],
    scores: Sequence[Float[np.ndarray, "_ k"]],
    room: int,
    taken: UInt64[np.ndarray, " t"],
) -> UInt64[np.ndarray, " r"]:
    """Sentences sorted by their best rank with any image, then by score, then by hash.

    So all nearest neighbours come before all second ones, and so on.

    Args:
        hashes: hashes of the neighbours of images, the nearest first, in several arrays.
        scores: similarities of the neighbours; -inf for empty places.
        room: maximum number of sentences to take.
        taken: hashes that are not taken again.
    """
    chosen, seen = [np.empty(0, np.uint64)], np.sort(taken)
    for rank in range(hashes[0].shape[1]):
        if room <= 0:
            break
        column = np.concatenate([h[:, rank] for h in hashes])
        score = np.concatenate([s[:, rank] for s in scores])
        is_valid = score > -np.inf
        column, score = column[is_valid], score[is_valid]
        order = np.lexsort((column, -score))  # the best first, which `unique` keeps
        distinct, first = np.unique(column[order], return_index=True)
        first = np.sort(first[~np.isin(distinct, seen, assume_unique=True)])[:room]
        chosen.append(column[order][first])
        seen = np.union1d(seen, chosen[-1])
        room -= len(first)
    return np.concatenate(chosen)


def kept(
    hashes: Sequence[UInt64[np.ndarray, "_ k"]],
    scores: Sequence[Float[np.ndarray, "_ k"]],
    chosen: UInt64[np.ndarray, " r"],
) -> dict[str, float]:
    """Statistics of the neighbours that are among `chosen`.

    Returns:
        The share of images whose nearest neighbour is chosen, and the mean similarity of images
        and their chosen neighbours.
    """
    chosen = np.sort(chosen)
    first, images, total, pairs = 0, 0, 0.0, 0
    for h, score in zip(hashes, scores, strict=True):
        is_valid = score > -np.inf
        is_kept = np.isin(h, chosen) & is_valid
        first, images = first + int(is_kept[:, 0].sum()), images + int(is_valid[:, 0].sum())
        total += float(score[is_kept].sum(dtype=np.float64))
        pairs += int(is_kept.sum())
    return {
        "first_neighbour_kept": first / max(images, 1),
        "neighbour_similarity": total / max(pairs, 1),
    }
