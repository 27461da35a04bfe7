"""The order in which examples are drawn, determined by the seed.

Row i of super-batch t is draw k = t B + i of the run. Orders have random access, so no state is
saved or replayed, and every epoch draws every example once.

An unusable example is replaced by random ones, which are determined by the seed and the draw, so
that replacements are spread evenly over the usable examples. The next example in the source would
not do: after a shard of unusable examples, a single one would replace them all.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from aced.config import ConfigError
from aced.data.draws import REPLACEMENT, Draws
from aced.data.records import Source

_WINDOWS, _IN_WINDOW = 8, 4  # in grouped sources: windows searched, and replacements tried in each


@runtime_checkable
class Order(Protocol):
    """Maps draws to examples."""

    def __getitem__(self, draw: int) -> int:
        """The example's index in its source."""

    def tries(self, draw: int) -> Iterator[int]:
        """The example, then the others of its source or member, each once, as replacements."""


def of(source: Source, *, seed: int, shuffle: bool, rows: int | float) -> Order:
    """The order of `source`, given a seed in [0, 2^32) and the mean draws (rows) per super-batch.

    A source with `groups` is shuffled by row groups, one with `parts` by member. Without `shuffle`
    the source's order is kept.
    """
    if parts := getattr(source, "parts", None):
        return MixedOrder(parts, seed=seed, shuffle=shuffle, rows=round(rows))
    if shuffle and hasattr(source, "groups"):
        return GroupedOrder(source, seed=seed, rows=rows)
    return SingleOrder(len(source), seed=seed, shuffle=shuffle)


class SingleOrder:
    """All examples in one permutation per epoch, or in the source's order."""

    def __init__(self, count: int, *, seed: int, shuffle: bool):
        import grain  # here, so that help and errors in settings are fast

        order = grain.MapDataset.range(count).seed(seed)
        self._order = (order.shuffle() if shuffle else order).repeat()
        self._order[0]  # lets grain initialise itself, which is not thread-safe
        self._count, self._seed = count, seed

    def __getitem__(self, draw: int) -> int:
        return int(self._order[draw])

    def tries(self, draw: int) -> Iterator[int]:
        """See `Order`; replacements are drawn from all examples."""
        others = _anywhere(self._count, self._seed, draw)
        return _each_once(itertools.chain([self[draw]], others), self._count)


class GroupedOrder:
    """A shuffle in two levels: the row groups, and the rows within a window of groups.

    Each epoch's permutation of the groups is cut into windows of `source.window_bytes`. The rows of
    a group are drawn in random order by adjacent rows of the window's super-batches. So every
    super-batch has a share of each group of the window, while a process, which reads adjacent rows,
    reads few groups.

    Replacements come first from the same window, whose groups are in memory, and then from windows
    of other permutations at the same draw. So the replacements of many unusable neighbours are
    spread over the source but come from few groups.
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
        """See `Order`; replacements come from few groups."""
        return _each_once(self._tries(draw), self._count)

    def _tries(self, draw: int) -> Iterator[int]:
        for number in range(_WINDOWS):
            order = self if number == 0 else self._other(number)
            window, place = order._place(draw)
            yield int(window[place])
            choices = Draws(order._seed, REPLACEMENT, draw)
            yield from (int(window[choices.below(len(window))]) for _ in range(_IN_WINDOW))
        yield from _anywhere(self._count, self._seed, draw)

    def _other_of(self, number: int) -> "GroupedOrder":
        seed = seed_of(self._seed, f"stand-ins {number}")
        return GroupedOrder(self._source, seed=seed, rows=self._rows)

    def _place(self, draw: int) -> tuple[Int[np.ndarray, " n"], int]:
        """The window of a draw, and the position in it."""
        epoch, place = divmod(draw, self._count)
        _, ends = self._windows(epoch)
        window = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[window - 1]) if window else 0
        return self._window(epoch, window), place - start

    def _windows_of(self, epoch: int) -> tuple[list[Int[np.ndarray, " g"]], Int[np.ndarray, " w"]]:
        """The groups of every window of an epoch, and its end."""
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
        # The row of the super-batch of each draw; low rows draw from the first groups.
        row = np.fmod(np.arange(first, first + len(examples), dtype=np.float64), self._rows)
        out = np.empty_like(examples)
        out[np.argsort(row, kind="stable")] = examples
        return out


class MixedOrder:
    """Members by their weights w, each with its own order and epochs.

    Member m has R_m(t B) - R_{m-1}(t B) rows of the first t super-batches, where
    R_m(k) = floor(k (w_1 + ... + w_m) + 1/2), which is within 1 of t B w_m. Each super-batch
    shuffles its rows.
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
                seed=seed_of(seed, part.name),  # independent of the other members
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
        """See `Order`; replacements come from the same member."""
        member, place = self._place(draw)
        return (self._offsets[member] + i for i in self._members[member].tries(place))

    def _place(self, draw: int) -> tuple[int, int]:
        """The member of a draw, and the number of the draw within that member."""
        step, row = divmod(draw, self._rows)
        members, places = self._step(step)
        return int(members[row]), int(places[row])

    def _step_of(self, step: int) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """The member of every row of a super-batch, and the number of the draw within it."""
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
    """A permutation for (seed, a, b), from Philox, since numpy's shuffle may change."""
    bits = np.random.Philox(key=seed, counter=np.array([0, 1, a, b], np.uint64))
    return np.argsort(bits.random_raw(size), kind="stable")


def seed_of(seed: int, name: str) -> int:
    """A seed in [0, 2^32) for the member `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little")


def _anywhere(count: int, seed: int, draw: int) -> Iterator[int]:
    """An endless stream of random examples for a draw."""
    choices = Draws(seed, REPLACEMENT, draw)
    while True:
        yield choices.below(count)


def _each_once(examples: Iterator[int], count: int) -> Iterator[int]:
    """The examples without repetition, until all `count` have come."""
    seen = set()
    for example in examples:
        if example not in seen:
            yield example
            seen.add(example)
            if len(seen) == count:
                return
