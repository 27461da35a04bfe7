"""Embeddings of a whole data set by a frozen model, made once, read by example id."""

from collections.abc import Callable
from typing import Any

from aced.cache import fingerprint
from aced.cache.description import CacheError, refuse
from aced.cache.reader import Cache
from aced.data.records import Source

__all__ = ["Cache", "CacheError", "open_for"]


def open_for(wanted: Any, source: Source, data: Any, load_model: Callable) -> Cache:
    """Opens the cache of a frozen model for a run.

    Args:
        wanted: the resolved `FrozenConfig`; with a checkpoint, its weights are compared, too.
        source: the data set of the run.
        data: its `DataConfig`.
        load_model: gives the parameters of a `CheckpointOf` as host arrays.

    Raises:
        CacheError: it is incomplete, or of other data, decoding or weights; the message says which.
    """
    cache = Cache(wanted.cache)
    plan = cache.description.plan
    expected = fingerprint.of_inputs(source, data)
    if wanted.checkpoint:
        expected["weights"] = fingerprint.of_weights(load_model(wanted, None))
    lines = plan.other_fingerprints(expected)
    if plan.examples != len(source):
        lines.append(f"examples: here {len(source)}, there {plan.examples}")
    refuse(wanted.cache, lines)
    return cache
