"""Scores of concepts, against loops over Python sets."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aced.config import ConfigError
from aced.parallel import mesh as meshes
from aced.selection import Concepts, SelectionConfig, select, take

N, SIZE, NUMBER, MOST = 96, 24, 30, 5


def concepts(seed: int = 0, n: int = N) -> Concepts:
    """Some concepts are rare, and some candidates have none."""
    rng = np.random.default_rng(seed)
    share = 1 / (1 + np.arange(NUMBER))
    rows = np.full((n, MOST), -1, np.int32)
    for row in rows:
        k = rng.integers(0, MOST + 1)
        row[:k] = rng.choice(NUMBER, k, replace=False, p=share / share.sum())
    return Concepts(jnp.asarray(rows), NUMBER)


def sets(found: Concepts) -> list[set[int]]:
    return [{int(c) for c in row if c >= 0} for row in found.ids]


def choose(found: Concepts, config: SelectionConfig, size: int = SIZE, seed: int = 0):
    return select(
        jax.random.key(seed), None, None, config, loss="sigmoid", size=size, concepts=found
    )


def balance(held: set[int], counts, frequency, target: float) -> float:
    if not held:
        return -1.0
    gains = [
        (target - counts[c]) / target + 1 / frequency[c] if counts[c] < target else -0.5
        for c in held
    ]
    return sum(gains) / len(gains)


def balanced(found: Concepts, config: SelectionConfig, noise: np.ndarray) -> list[int]:
    """The picks of "concept_balance", in the order of the draws."""
    held, chosen = sets(found), []
    frequency = collections.Counter(c for one in held for c in one)
    target = max(1, SIZE * sum(frequency.values()) / N / len(frequency))
    rows, share = N // config.strata, SIZE // config.strata
    for draw in noise:
        counts = collections.Counter(c for i in chosen for c in held[i])
        score = np.array([balance(one, counts, frequency, target) for one in held])
        if not chosen and config.first_chunk == "uniform":
            score = np.zeros(N)
        chunk: list[int] = []
        for i in np.argsort(-(config.gain * score + draw)):
            done = sum(k // rows == i // rows for k in chosen + chunk) == share
            if i not in chosen and not done and len(chunk) < SIZE // config.chunks:
                chunk.append(int(i))
        chosen += chunk
    return chosen


@pytest.mark.parametrize("strata", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"gain": 3.0}, {"chunks": SIZE}, {"first_chunk": "uniform"}]
)
def test_balance_as_by_definition(changes, strata):
    config = SelectionConfig(
        **{"score": "concept_balance", "chunks": 4, "gain": 20.0, "strata": strata} | changes
    )
    noise = np.asarray(jax.random.gumbel(jax.random.key(0), (config.chunks, N)), np.float64)
    found = concepts()
    assert choose(found, config).ids.tolist() == balanced(found, config, noise)


@pytest.mark.parametrize("strata", [1, 3])
def test_most_concepts_first(strata):
    config = SelectionConfig(
        score="concept_count", method="independent", draw="top_k", strata=strata
    )
    found = concepts()
    sizes = np.array([len(one) for one in sets(found)]).reshape(strata, -1)
    noise = np.asarray(jax.random.gumbel(jax.random.key(0), (N,))).reshape(strata, -1)
    best = np.lexsort((-noise, -sizes))[:, : SIZE // strata]
    expected = (best + np.arange(strata)[:, None] * (N // strata)).reshape(-1)
    np.testing.assert_array_equal(choose(found, config).ids, expected)


def test_equal_counts_are_drawn_alike():
    """Not in the order of the rows, which follows that of files in some sources."""
    ids = np.full((N, 2), -1, np.int32)
    ids[:, 0] = np.arange(N) % NUMBER
    ids[10:20, 1] = NUMBER - 1  # ten of two concepts, which are always picked
    config = SelectionConfig(score="concept_count", method="independent", draw="top_k", strata=1)

    def picks(key):
        found = Concepts(jnp.asarray(ids), NUMBER)
        return select(key, None, None, config, loss="sigmoid", size=SIZE, concepts=found).ids

    draws = np.asarray(jax.jit(jax.vmap(picks))(jax.random.split(jax.random.key(0), 2000)))
    counts = np.bincount(draws.reshape(-1), minlength=N)
    assert set(counts[10:20]) == {2000}
    others = np.delete(counts, np.s_[10:20])
    assert stats.chisquare(others).pvalue > 0.001


def test_rare_concepts_are_picked_as_often_as_frequent_ones():
    ids = np.repeat([0, 1, 2, 3], [60, 20, 8, 8]).astype(np.int32)
    ids = np.random.default_rng(0).permutation(ids)[:, None]
    config = SelectionConfig(score="concept_balance", chunks=SIZE, gain=1e6)
    picks = choose(Concepts(jnp.asarray(ids), 4), config).ids
    assert collections.Counter(ids[picks, 0].tolist()) == {0: 6, 1: 6, 2: 6, 3: 6}


def test_shares_of_the_concepts_in_the_metrics():
    ids = jnp.array([[0, 1], [2, -1], [-1, -1], [-1, -1]])
    config = SelectionConfig(
        score="concept_count", method="independent", draw="top_k", filter_ratio=0.5
    )
    metrics = choose(Concepts(ids, 9), config, size=2).metrics
    assert float(metrics["selection/concepts"]) == 1
    assert float(metrics["selection/concepts_each"]) == 1.5


def test_candidates_without_any_concept_are_drawn_alike():
    config = SelectionConfig(score="concept_balance", chunks=4)
    none = Concepts(jnp.full((N, 2), -1), 5)
    picks = {tuple(np.sort(choose(none, config, seed=seed).ids).tolist()) for seed in range(3)}
    assert len(picks) == 3
    assert all(len(set(one)) == SIZE for one in picks)


@pytest.mark.parametrize("strata", [1, 8])
@pytest.mark.parametrize(
    "settings",
    [
        {"score": "concept_balance"},
        {"score": "concept_balance", "normalization": "perplexity"},
        {"score": "concept_count", "method": "independent", "draw": "top_k"},
    ],
)
def test_eight_devices_choose_as_one(settings, strata):
    mesh, found = meshes.make_mesh(), concepts(n=512)
    config = SelectionConfig(**settings, chunks=4, strata=strata)

    def picked(ids):
        chosen = choose(Concepts(ids, NUMBER), config, size=64)
        return chosen, take(ids, jnp.sort(chosen.ids), strata)

    alone, rows = jax.jit(picked)(found.ids)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(found.ids, meshes.by_example(mesh))
        chosen, taken = jax.jit(picked)(sharded)
    np.testing.assert_array_equal(chosen.ids, alone.ids)
    np.testing.assert_array_equal(taken, rows)
    for name, value in alone.metrics.items():
        np.testing.assert_allclose(chosen.metrics[name], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "concept_balance", "method": "independent"}, "selection.method='joint'"),
        ({"score": "concept_count"}, "selection.method='independent'"),
        (
            {"score": "concept_balance", "false_negative_margin": 0.02},
            "false_negative_margin is for scores of a model",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        SelectionConfig(**settings)


def test_concepts_are_needed():
    with pytest.raises(ConfigError, match=r"set selection\.concepts to a list"):
        choose(None, SelectionConfig(score="concept_balance"))
