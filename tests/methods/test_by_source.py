"""Metrics of the members of a mixture, against sums written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.methods.base import by_source
from aced.outputs import Embeddings

B, SIZE, D = 24, 8, 6


def embeddings(seed):
    rng = np.random.default_rng(seed)
    zimg, ztxt = (rng.standard_normal((B, D)).astype(np.float32) for _ in range(2))
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, ztxt)]
    return Embeddings(*map(jnp.asarray, unit), jnp.float32(7.0), jnp.float32(-3.0))


def test_shares_and_scores_by_hand():
    names = ("web", "art", "none")
    source = np.random.default_rng(0).integers(0, 2, B).astype(np.int32)
    picks = np.random.default_rng(1).permutation(B)[:SIZE]
    learner, reference = embeddings(2), embeddings(3)
    terms = ((1.0, learner), (-1.0, reference))
    batch, chosen = {"source": jnp.asarray(source)}, {"source": jnp.asarray(source[picks])}
    found = jax.jit(lambda: by_source(names, batch, chosen, terms))()

    def nll(e):
        zimg, ztxt = (np.asarray(z, np.float64) for z in (e.zimg, e.ztxt))
        return np.log1p(np.exp(-(7.0 * (zimg * ztxt).sum(axis=1) - 3.0)))

    score = nll(learner) - nll(reference)
    expected = {"sources/none/share": 0, "sources/none/picked_share": 0, "sources/none/score": 0}
    for number, name in enumerate(names[:2]):
        expected[f"sources/{name}/share"] = np.mean(source == number)
        expected[f"sources/{name}/picked_share"] = np.mean(source[picks] == number)
        expected[f"sources/{name}/score"] = score[source == number].mean()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6)


def test_fewer_metrics_without_mixture_or_score():
    batch = {"source": jnp.zeros(4, jnp.int32)}
    assert by_source((), batch, batch) == {}
    assert by_source(("a",), {"id": batch["source"]}, {}) == {}
    assert set(by_source(("a",), batch, batch)) == {"sources/a/share", "sources/a/picked_share"}
