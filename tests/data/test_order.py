"""Orders: every example once an epoch, any draw at once, few row groups at a time, exact shares."""

import itertools

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data import order
from aced.data.sources.mixture import Mixture


class Sized:
    fingerprint = "1"

    def __init__(self, size, name="s"):
        self.size, self.name = size, name

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"image": b"", "texts": (f"{self.name} {index}",), "id": index, "key": str(index)}


class Grouped(Sized):
    def __init__(self, groups, window_bytes, name="g"):
        super().__init__(sum(groups), name)
        self.groups, self.window_bytes = groups, window_bytes
        self.group_bytes = [10 * size for size in groups]

    def group_of(self, index):
        return int(np.searchsorted(np.cumsum(self.groups), index, side="right"))


GROUPS = [7, 1, 30, 12, 12, 3, 25, 9, 14, 8]


@pytest.mark.parametrize("rows", [1, 8, 13, 500])
@pytest.mark.parametrize("window", [1, 300, 10**9])
def test_groups_are_a_permutation_every_epoch(rows, window):
    source = Grouped(GROUPS, window)
    n = len(source)
    draws = order.of(source, seed=3, shuffle=True, rows=rows)
    epochs = [[draws[e * n + k] for k in range(n)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = order.of(source, seed=4, shuffle=True, rows=rows)
    assert [other[k] for k in range(n)] != epochs[0]
    # Any draw at once, by an order that has given no other.
    for k in (0, n - 1, n, 2 * n + 5):
        late = order.of(source, seed=3, shuffle=True, rows=rows)
        assert late[k] == epochs[k // n][k % n]


def test_a_window_holds_few_groups_and_mixes_all_of_them():
    source = Grouped([20] * 40, 10 * 20 * 8)  # eight groups a window
    draws = order.of(source, seed=0, shuffle=True, rows=16)
    groups = [[source.group_of(draws[16 * t + i]) for i in range(16)] for t in range(50)]
    for window in range(5):  # a window is 160 rows, 10 super-batches
        steps = groups[10 * window : 10 * (window + 1)]
        assert len(set(itertools.chain(*steps))) == 8
        assert all(len(set(step)) == 8 for step in steps)  # each super-batch has rows of all
    # Not in the order of the file.
    positions = [draws[k] % 20 for k in range(800)]
    assert abs(np.corrcoef(positions, np.arange(800))[0, 1]) < 0.15


def test_a_process_reads_few_groups_and_no_group_is_read_by_all():
    source = Grouped([20] * 40, 10 * 20 * 8)
    draws = order.of(source, seed=0, shuffle=True, rows=16)
    readers = {}
    for k in range(len(source)):
        group = source.group_of(draws[k])
        readers.setdefault(group, set()).add((k % 16) // 4)  # four processes of four rows
    assert sum(map(len, readers.values())) <= 1.3 * len(readers)


def test_without_shuffling_groups_are_in_order():
    draws = order.of(Grouped(GROUPS, 50), seed=0, shuffle=False, rows=8)
    n = sum(GROUPS)
    assert [draws[k] for k in range(2 * n)] == [*range(n), *range(n)]


WEIGHTS = {"web": 0.7, "books": 0.2, "art": 0.1}


def mixture(sizes=(50, 11, 7), weights=WEIGHTS):
    members = zip(weights.items(), sizes, strict=True)
    return Mixture({name: (Sized(size, name), weight) for (name, weight), size in members})


@pytest.mark.parametrize("rows", [10, 16, 37])
def test_shares_are_the_weights_to_within_one_row(rows):
    source = mixture((5000, 5000, 5000))
    draws = order.of(source, seed=1, shuffle=True, rows=rows)
    counts = np.zeros(3)
    for step in range(60):
        for i in range(rows):
            counts[source[draws[step * rows + i]]["source"]] += 1
        shares = (step + 1) * rows * np.array(list(WEIGHTS.values()))
        assert np.abs(counts - shares).max() <= 1 + 1e-9


def test_members_have_their_own_epochs_and_order():
    source = mixture()
    draws = order.of(source, seed=1, shuffle=True, rows=16)
    ids = [draws[k] for k in range(16 * 20)]
    ends = np.cumsum([0, 50, 11, 7])
    for member in range(3):
        start, end = ends[member], ends[member + 1]
        mine = [i - start for i in ids if start <= i < end]
        size = end - start
        assert len(mine) > size
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
        # The order within a super-batch is that of its rows, so the stream is the member's alone:
        # the same with other members and other weights.
        other = mixture((50, 11, 7), {"web": 0.4, "books": 0.3, "art": 0.3})
        again = order.of(other, seed=1, shuffle=True, rows=16)
        stream = [i - start for i in (again[k] for k in range(16 * 20)) if start <= i < end]
        shorter = min(len(mine), len(stream))
        assert shorter > 30
        assert stream[:shorter] == mine[:shorter]


def test_members_are_spread_over_the_rows():
    source = mixture((5000, 5000, 5000), {"web": 1.0, "books": 1.0, "art": 2.0})
    draws = order.of(source, seed=1, shuffle=True, rows=32)
    member = np.array([[source[draws[32 * t + i]]["source"] for i in range(32)] for t in range(60)])
    assert ((member == 2).mean(axis=0) > 0.2).all()
    assert ((member == 2).mean(axis=0) < 0.8).all()


def test_a_mixture_numbers_its_members_through():
    source = mixture()
    assert len(source) == 68
    assert source[50] == {
        **{"image": b"", "texts": ("books 0",), "id": 50, "key": "books/0", "source": 1},
    }
    assert [(p.start, p.end) for p in source.parts] == [(0, 50), (50, 61), (61, 68)]
    prints = {
        mixture().fingerprint,
        mixture(weights={"web": 5.0, "books": 1.0, "art": 1.0}).fingerprint,
    }
    assert len(prints) == 1
    assert mixture(weights={"web": 0.7, "art": 0.2, "books": 0.1}).fingerprint not in prints


def test_a_member_with_less_than_a_row_is_refused():
    with pytest.raises(ConfigError, match=r"data.mixture.art has the share 0.1, .* 8 rows"):
        order.of(mixture(), seed=0, shuffle=True, rows=8)


def test_a_grouped_member_reads_few_groups():
    grouped = Grouped([20] * 40, 10 * 20 * 8)
    source = Mixture({"a": (Sized(100), 1.0), "b": (grouped, 1.0)})
    draws = order.of(source, seed=0, shuffle=True, rows=32)
    readers = {}
    for k in range(1600):
        index = draws[k] - 100
        if index >= 0:
            readers.setdefault(grouped.group_of(index), set()).add((k % 32) // 8)
    assert len(readers) == 40
    assert sum(map(len, readers.values())) < 4 * len(readers) * 0.6
