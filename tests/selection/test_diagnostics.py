"""Numbers of a sub-batch against NumPy, and what they look like where a draw has collapsed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.outputs import Embeddings
from aced.selection import SelectionConfig
from aced.selection.diagnostics import collapse, describe, effective_rank, few_concepts
from aced.selection.gather import evenly_spaced

N, SIZE, D = 120, 24, 6
measured = jax.jit(describe, static_argnames="is_reference")


def embeddings(z: np.ndarray) -> Embeddings:
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    zimg, ztxt = jnp.asarray(z, jnp.float32)
    return Embeddings(zimg, ztxt, jnp.float32(10.0), jnp.float32(-4.0))


def rank(z: np.ndarray) -> float:
    values = np.linalg.eigvalsh(np.cov(np.asarray(z, np.float64).T, bias=True))
    return values.sum() ** 2 / (values**2).sum()


def test_diagnostics_equal_numpy():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, N, D))
    z[:, 60:66] = z[:, :6] + 0.01 * rng.normal(size=(2, 6, D))  # six copies
    z[1, 70] = z[1, 6]  # the text alone
    seen = embeddings(z)
    ids = np.r_[0:3, 60:63, 6, 70, 80:96]
    found = measured(jnp.asarray(ids), seen, is_reference=True)
    zimg, ztxt = np.asarray(seen.zimg), np.asarray(seen.ztxt)
    uniform = np.arange(0, N, N // SIZE)
    expected = rank(zimg[ids]) / rank(zimg[uniform])
    assert found["selection/variety"] == pytest.approx(expected, rel=1e-4)
    alike = np.minimum(zimg[ids] @ zimg[ids].T, ztxt[ids] @ ztxt[ids].T) - 2 * np.eye(SIZE)
    assert (alike.max(axis=1) >= 0.95).sum() >= 6
    copies = (alike.max(axis=1) >= 0.95).mean()
    assert found["selection/near_copies"] == pytest.approx(copies)
    easiest = np.argsort(-(zimg * ztxt).sum(axis=1))[:SIZE]
    overlap = np.isin(ids, easiest).mean()
    assert found["selection/easy_overlap"] == pytest.approx(overlap)


def test_a_batch_of_one_kind_has_little_variety():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2, N, D))
    z[:, 30 : 30 + SIZE] = z[:, :1] + 0.05 * rng.normal(size=(2, SIZE, D)) * np.r_[1, [0.1] * 5]
    seen = embeddings(z)
    found = measured(jnp.arange(30, 30 + SIZE), seen, is_reference=False)
    assert found["selection/variety"] < 0.3
    assert found["selection/near_copies"] == 1
    assert "selection/easy_overlap" not in found
    assert measured(jnp.arange(60, 84), seen, is_reference=False)["selection/variety"] > 0.7


def test_the_uniform_draw_has_all_kinds_where_rows_are_in_the_order_of_their_files():
    rng = np.random.default_rng(2)
    kinds = np.repeat(rng.normal(size=(2, 6, D)), N // 6, axis=1)
    seen = embeddings(kinds + 0.1 * rng.normal(size=(2, N, D)))
    ids = rng.choice(N, SIZE, replace=False)
    found = measured(jnp.asarray(ids), seen, is_reference=False)
    assert found["selection/variety"] == pytest.approx(1, abs=0.2)
    one_kind = measured(jnp.arange(SIZE), seen, is_reference=False)
    assert one_kind["selection/variety"] < 0.6


def test_evenly_spaced_rows_of_a_recipes_super_batch():
    np.testing.assert_array_equal(evenly_spaced(163_840, 32_768), np.arange(0, 163_840, 5))


def test_near_copies_are_looked_for_among_the_picks_of_all_chunks():
    z = np.random.default_rng(3).normal(size=(2, 256, 32))
    z[:, 128:] = z[:, 128:129]
    found = measured(jnp.arange(256), embeddings(z), is_reference=False)
    assert found["selection/near_copies"] == 0.5


def test_the_rank_of_one_point_and_of_all_directions():
    assert effective_rank(jnp.ones((9, 4)), jnp.ones(9, bool)) == 1
    corners = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    assert effective_rank(corners, jnp.ones(8, bool)) == pytest.approx(4)


def test_collapse_warning_names_the_setting_to_change():
    good = {"selection/variety": 0.8, "selection/near_copies": 0.1}
    assert collapse(good, SelectionConfig()) == ""
    assert collapse({}, SelectionConfig()) == ""
    bad = good | {"selection/variety": 0.2}
    assert "lower selection.gain (now 100)" in collapse(bad, SelectionConfig())
    ours = SelectionConfig(normalization="perplexity", perplexity_share=0.4)
    assert "raise selection.perplexity_share (now 0.4)" in collapse(bad, ours)
    assert "60% of them have a near copy" in collapse(good | {"selection/near_copies": 0.6}, ours)


def test_warning_of_picks_without_concepts_names_the_list():
    config = SelectionConfig(score="concept_balance", concepts="words.txt")
    assert few_concepts({"selection/variety": 1.0}, SelectionConfig()) == ""
    assert few_concepts({"selection/concepts_each": 0.5}, config) == ""
    warning = few_concepts({"selection/concepts_each": 0.25}, config)
    assert "have 0.25 concepts each on average" in warning
    assert "an entry of words.txt as whole words" in warning
