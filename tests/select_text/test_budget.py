import numpy as np
import pytest

from aced.select_text import budget

INF = -np.inf
HASHES = np.array([[1, 2, 3], [4, 1, 5], [1, 6, 9]], np.uint64)
SCORES = np.array([[0.9, 0.5, 0.2], [0.3, 0.2, 0.1], [0.8, 0.7, INF]], np.float32)


@pytest.mark.parametrize(
    ("room", "taken", "expected"),
    [
        (10, [], [1, 4, 6, 2, 3, 5]),  # 9 stands in an empty place
        (4, [], [1, 4, 6, 2]),
        (1, [], [1]),
        (0, [], []),
        (3, [4, 6], [1, 2, 3]),
    ],
)
def test_the_best_rank_decides_and_then_the_score(room, taken, expected):
    for cuts in ([], [1], [1, 2]):
        pieces = [np.split(x, cuts) for x in (HASHES, SCORES)]
        found = budget.ranked(*pieces, room, np.array(taken, np.uint64))
        assert found.tolist() == expected


def test_of_equals_the_smaller_hash_is_first():
    hashes, scores = np.array([[7], [5], [6]], np.uint64), np.full((3, 1), 0.5, np.float32)
    found = budget.ranked([hashes], [scores], 2, np.empty(0, np.uint64))
    assert found.tolist() == [5, 6]


def test_statistics_of_kept_neighbours():
    found = budget.kept([HASHES], [SCORES], np.array([1, 6, 9], np.uint64))
    assert found == {
        "first_neighbour_kept": pytest.approx(2 / 3),
        "neighbour_similarity": pytest.approx((0.9 + 0.2 + 0.8 + 0.7) / 4),
    }
