"""Work done ahead, in threads, in order, a bounded number of items at a time."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ahead(function: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """Yields `function(item)` of all `items` in their order; at most 4 per thread are waiting."""
    waiting: collections.deque[futures.Future[U]] = collections.deque()
    with futures.ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
