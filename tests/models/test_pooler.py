"""Attentional pooling with a mask, and of tokens of another width, against float64 loops."""

import coca_by_hand
import jax
import jax.numpy as jnp
import numpy as np

from aced.models.pooler import Pooler
from aced.models.transformer import Compute

POOLER = Pooler(queries=3, width=8, heads=2, compute=Compute())


def setting():
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.normal(size=(2, 5, 6)), jnp.float32)
    shapes = jax.eval_shape(POOLER.init, jax.random.key(0), tokens)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    return params, tokens, np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1]], bool)


def test_queries_read_the_tokens_that_the_mask_lets_through():
    params, tokens, mask = setting()
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    for given in (mask, None):
        found = POOLER.apply(params, tokens, None if given is None else jnp.asarray(given))
        sees = np.ones_like(mask) if given is None else given
        expected = [
            coca_by_hand.attend(p["attention"], p["probe"], x, 2, lambda i, j, row=row: row[j])
            for x, row in zip(np.asarray(tokens, np.float64), sees, strict=True)
        ]
        assert found.shape == (2, 3, 8)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_queries_start_out_different():
    """Were they nearly alike, all would read the same, and get the same gradient."""
    probe = POOLER.init(jax.random.key(0), jnp.zeros((1, 5, 6)))["params"]["probe"]
    cosines = np.corrcoef(probe)[~np.eye(3, dtype=bool)]
    assert np.linalg.norm(probe, axis=1).min() > 1
    assert np.abs(cosines).max() < 0.95
