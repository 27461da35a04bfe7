"""Cached embeddings of a data set by a frozen model, read by example id."""

import dataclasses
from collections.abc import Callable

from jaxtyping import PyTree

from aced.cache import fingerprint
from aced.cache.description import CacheError, refuse
from aced.cache.reader import Cache
from aced.data.records import Source
from aced.data.sources import DataConfig

__all__ = ["Cache", "CacheError", "open_for"]


def open_for(
    folder: str, source: Source, data: DataConfig, weights: Callable[[], PyTree] | None
) -> Cache:
    """Opens the cache of a frozen model, and compares it with the data set and model of a run.

    Args:
        folder: of the cache.
        source: the data set.
        data: its settings.
        weights: returns the parameters of the model as host arrays; None: they are not compared.

    Raises:
        CacheError: the cache is incomplete, or is of other data, augmentations, weights or
            decoding; a cache of exactly decoded, full pictures may be read with any decoding.
    """
    cache = Cache(folder)
    plan = cache.description.plan
    expected = fingerprint.of_inputs(source, data)
    exact = dataclasses.replace(data, decode="exact", thumbnails=False)
    if plan.fingerprint.get("decode") == fingerprint.of_decoding(exact):
        # The model has read the pictures in full, however fast this run decodes them.
        expected |= {"decode": plan.fingerprint["decode"]}
    if weights is not None:
        expected["weights"] = fingerprint.of_weights(weights())
    lines = plan.other_fingerprints(expected) + plan.other_augmentations(data)
    if plan.examples != len(source):
        lines.append(f"examples: here {len(source)}, there {plan.examples}")
    refuse(folder, lines)
    return cache
