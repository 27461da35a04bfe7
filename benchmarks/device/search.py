"""The largest batch that fits, by doubling."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class DoesNotFitError(RuntimeError):
    """The device has not the memory for it."""


class Found(NamedTuple, Generic[T]):
    """The largest size that was run, what came of it, and why no larger one was."""

    size: int
    result: T
    limit: str


def largest(
    first: int, run: Callable[[int], T], stop: Callable[[int, T], str], least: int = 1
) -> Found[T] | None:
    """Doubles from `first` as long as it fits, or else halves until it does.

    Args:
        first: the size to begin with.
        run: tries a size; raises `DoesNotFitError` where memory is short.
        stop: says why twice a size that fits is not to be tried; empty: it is.
        least: sizes below are not tried.

    Returns:
        None where nothing fits.
    """
    size, best = first, None
    while size >= least:
        try:
            result = run(size)
        except DoesNotFitError:
            if best is not None:
                return Found(*best, "memory")
            size //= 2
            continue
        if size < first:
            return Found(size, result, "memory")
        if limit := stop(size, result):
            return Found(size, result, limit)
        best = size, result
        size *= 2
    return None
