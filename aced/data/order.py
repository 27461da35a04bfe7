"""The order in which examples are drawn: a function of the seed and the place alone.

Row i of super-batch t is draw k = t B + i of the whole run. Every order gives any draw at once, so
that nothing has to be saved or replayed, and goes through all examples once an epoch.

Where an example cannot be used, others stand in for it: random ones, which are a function of the
seed and the draw, too. So every usable example stands in for as many as any other. The next one in
the source would not do: after a shard of unusable ones, one example would stand in for all of them.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float, Int

from aced.config import ConfigError
from aced.data.draws import Draws
from aced.data.records import Source

_STAND_INS = 1  # the stream of random choices that is theirs
# Of grouped sources: windows that stand-ins are looked for in, and how many in each of them.
_WINDOWS, _IN_WINDOW = 8, 4


@runtime_checkable
class Order(Protocol):
    """Which example is drawn when."""

    def __getitem__(self, draw: int) -> int:
        """The example's index in its source."""

    def tries(self, draw: int) -> Iterator[int]:
        """The same, and then, each once, the others of its source or member, to stand in for it."""


def of(source: Source, *, seed: int, shuffle: bool, rows: int | float) -> Order:
    """The order of `source`.

    Args:
        source: read at random, in one permutation of all examples an epoch; by row groups, if it
            has `groups`; or a mixture, if it has `parts`.
        seed: in [0, 2^32).
        shuffle: otherwise in the source's order.
        rows: draws per super-batch, on average.
    """
    if parts := getattr(source, "parts", None):
        return MixedOrder(parts, seed=seed, shuffle=shuffle, rows=round(rows))
    if shuffle and hasattr(source, "groups"):
        return GroupedOrder(source, seed=seed, rows=rows)
    return SingleOrder(len(source), seed=seed, shuffle=shuffle)


class SingleOrder:
    """All examples in one permutation an epoch, or as they stand in the source."""

    def __init__(self, count: int, *, seed: int, shuffle: bool):
        order = grain.MapDataset.range(count).seed(seed)
        self._order = (order.shuffle() if shuffle else order).repeat()
        self._order[0]  # grain sets up its bookkeeping now, which must not be concurrent
        self._count, self._seed = count, seed

    def __getitem__(self, draw: int) -> int:
        return int(self._order[draw])

    def tries(self, draw: int) -> Iterator[int]:
        """See `Order`; any others stand in."""
        others = _anywhere(self._count, self._seed, draw)
        return _each_once(itertools.chain([self[draw]], others), self._count)


class GroupedOrder:
    """Two levels: row groups in a random order, and within a window of them all their rows.

    Each epoch's permutation of the groups is cut into windows of `source.window_bytes`. Within a
    window the rows of a group are drawn in random order by neighbouring rows of the super-batches:
    a super-batch has its share of every group of the window, while a process, which reads
    neighbouring rows, reads few groups, and no group is read by all of many processes.

    To stand in for an example, a few of its window are tried first, whose groups are in memory, and
    then a few of the window that another order of this kind has at the same draw, and so on. So
    what stands in for many unusable neighbours is spread over the source, and yet of few groups.
    """

    def __init__(self, source: Any, *, seed: int, rows: int | float):
        self._source = source
        self._sizes = np.array(source.groups, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._bytes = np.array(source.group_bytes, np.int64)
        self._limit, self._seed, self._rows = source.window_bytes, seed, rows
        self._count = int(self._sizes.sum())
        self._windows = functools.lru_cache(maxsize=4)(self._windows_of)
        self._window = functools.lru_cache(maxsize=4)(self._window_of)
        self._other = functools.lru_cache(maxsize=_WINDOWS)(self._other_of)

    def __getitem__(self, draw: int) -> int:
        window, place = self._place(draw)
        return int(window[place])

    def tries(self, draw: int) -> Iterator[int]:
        """See `Order`; others of few groups stand in."""
        return _each_once(self._tries(draw), self._count)

    def _tries(self, draw: int) -> Iterator[int]:
        for number in range(_WINDOWS):
            order = self if number == 0 else self._other(number)
            window, place = order._place(draw)
            yield int(window[place])
            choices = Draws(order._seed, _STAND_INS, draw)
            yield from (int(window[choices.below(len(window))]) for _ in range(_IN_WINDOW))
        yield from _anywhere(self._count, self._seed, draw)

    def _other_of(self, number: int) -> "GroupedOrder":
        seed = seed_of(self._seed, f"stand-ins {number}")
        return GroupedOrder(self._source, seed=seed, rows=self._rows)

    def _place(self, draw: int) -> tuple[Int[np.ndarray, " n"], int]:
        """The window of a draw, and the place in it."""
        epoch, place = divmod(draw, self._count)
        _, ends = self._windows(epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[window - 1]) if window else 0
        return self._window(epoch, window), place - start

    def _windows_of(self, epoch: int) -> tuple[list[Int[np.ndarray, " g"]], Int[np.ndarray, " w"]]:
        """The groups of every window of an epoch, and the place where it ends."""
        groups = permutation(len(self._sizes), self._seed, epoch, 0)
        sizes = self._bytes[groups]
        window = (np.cumsum(sizes) - sizes) // self._limit  # where a group begins
        cuts = np.flatnonzero(np.diff(window)) + 1
        windows = np.split(groups, cuts)
        return windows, np.cumsum([self._sizes[part].sum() for part in windows])

    def _window_of(self, epoch: int, number: int) -> Int[np.ndarray, " n"]:
        """The examples of a window in the order of their draws."""
        windows, ends = self._windows(epoch)
        examples = np.concatenate(
            [
                self._starts[g] + permutation(int(self._sizes[g]), self._seed, epoch, 1 + int(g))
                for g in windows[number]
            ]
        )
        first = epoch * self._count + int(ends[number]) - len(examples)
        # Rows of the super-batch that draw them; the draws of low rows get the first groups.
        row = np.fmod(np.arange(first, first + len(examples), dtype=np.float64), self._rows)
        out = np.empty_like(examples)
        out[np.argsort(row, kind="stable")] = examples
        return out


class MixedOrder:
    """Members by their weights w, each with an order and epochs of its own.

    Of the first t super-batches, member m has R_m(t B) - R_{m-1}(t B) rows, where
    R_m(k) = floor(k (w_1 + ... + w_m) + 1/2): always within one of t B w_m. Which rows of a
    super-batch these are is drawn anew each time.
    """

    def __init__(self, parts: Sequence[Any], *, seed: int, shuffle: bool, rows: int):
        weights = np.array([part.weight for part in parts], np.float64)
        self._bounds = np.cumsum(weights) / weights.sum()
        self._bounds[-1] = 1.0
        self._seed, self._rows = seed, rows
        for part, weight in zip(parts, weights / weights.sum(), strict=True):
            if weight * rows < 1:
                raise ConfigError(
                    f"data.mixture.{part.name} has the share {weight:.3g}, which is less than one "
                    f"of the {rows} rows of a super-batch; raise its weight or leave it out."
                )
        self._offsets = [part.start for part in parts]
        self._members = [
            of(
                part.source,
                seed=seed_of(seed, part.name),  # whichever other members there are
                shuffle=shuffle,
                rows=float(rows * weight),
            )
            for part, weight in zip(parts, weights / weights.sum(), strict=True)
        ]
        self._step = functools.lru_cache(maxsize=8)(self._step_of)

    def __getitem__(self, draw: int) -> int:
        member, place = self._place(draw)
        return self._offsets[member] + self._members[member][place]

    def tries(self, draw: int) -> Iterator[int]:
        """See `Order`; others of the same member stand in."""
        member, place = self._place(draw)
        return (self._offsets[member] + i for i in self._members[member].tries(place))

    def _place(self, draw: int) -> tuple[int, int]:
        """The member of a draw, and which of that one's draws it is."""
        step, row = divmod(draw, self._rows)
        members, places = self._step(step)
        return int(members[row]), int(places[row])

    def _step_of(self, step: int) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """The member of every row of a super-batch, and how many draws that one had before."""
        before, after = (counts(self._bounds, k * self._rows) for k in (step, step + 1))
        members = np.repeat(np.arange(len(after)), after - before)
        members = members[permutation(self._rows, self._seed, step, 0)]
        places = np.empty(self._rows, np.int64)
        for member in range(len(after)):
            rows = np.flatnonzero(members == member)
            places[rows] = before[member] + np.arange(len(rows))
        return members, places


def counts(bounds: Float[np.ndarray, " m"], draws: int) -> Int[np.ndarray, " m"]:
    """Draws of every member among the first `draws`; `bounds` are cumulative weights, up to 1."""
    ends = np.floor(draws * bounds + 0.5).astype(np.int64)
    ends[-1] = draws
    return np.diff(ends, prepend=0)


def permutation(size: int, seed: int, a: int, b: int) -> Int[np.ndarray, " n"]:
    """A permutation for (seed, a, b). Philox is fixed by definition, numpy's shuffle is not."""
    bits = np.random.Philox(key=seed, counter=np.array([0, 1, a, b], np.uint64))
    return np.argsort(bits.random_raw(size), kind="stable")


def seed_of(seed: int, name: str) -> int:
    """A seed in [0, 2^32) for the member `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")


def _anywhere(count: int, seed: int, draw: int) -> Iterator[int]:
    """Random ones of `count` examples for a draw, without end."""
    choices = Draws(seed, _STAND_INS, draw)
    while True:
        yield choices.below(count)


def _each_once(examples: Iterator[int], count: int) -> Iterator[int]:
    """The examples without those that were there before, until all `count` were."""
    seen = set()
    for example in examples:
        if example not in seen:
            yield example
            seen.add(example)
            if len(seen) == count:
                return
