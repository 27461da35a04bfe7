"""Against float64 matrices, and the draw's frequencies against exact probabilities."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from aced.outputs import Embeddings
from aced.selection import SelectionConfig
from aced.selection.independent import select_independent
from aced.selection.scores import score_terms


def embeddings(seed: int, n: int, d: int, scale: float, bias: float) -> Embeddings:
    z = np.random.default_rng(seed).normal(size=(2, n, d))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return Embeddings(
        zimg=jnp.asarray(z[0], jnp.float32),
        ztxt=jnp.asarray(z[1], jnp.float32),
        scale=jnp.float32(scale),
        bias=jnp.float32(bias),
    )


def losses(e: Embeddings, loss: str) -> np.ndarray:
    zimg, ztxt = np.asarray(e.zimg, np.float64), np.asarray(e.ztxt, np.float64)
    logits = float(e.scale) * zimg @ ztxt.T + float(e.bias)
    if loss == "sigmoid":
        return np.log1p(np.exp(-np.diag(logits)))
    return -np.diag(log_softmax(logits, axis=1) + log_softmax(logits, axis=0)) / 2


@functools.partial(jax.jit, static_argnames=("config", "loss", "size"))
def choose(noise, learner, reference, config, *, loss, size):
    terms = score_terms(config.score, learner, reference)
    return select_independent(noise, terms, config, loss=loss, size=size)


@pytest.mark.parametrize("strata", [1, 5])
@pytest.mark.parametrize("draw", ["sample", "top_k"])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("score", ["learnability", "hard_learner", "easy_reference"])
def test_same_picks_as_with_the_matrix(score, loss, draw, strata):
    n, size, gain = 200, 40, 7.0
    learner, reference = embeddings(0, n, 8, 9.0, -2.0), embeddings(1, n, 20, 12.0, -3.0)
    noise = jax.random.gumbel(jax.random.key(0), (n,))
    # 7 texts at a time: 40 or 200 rows of a stratum are no multiple of it.
    config = SelectionConfig(
        score=score, method="independent", draw=draw, strata=strata, gain=gain, tile=37, chunks=5
    )
    ids, metrics = choose(noise, learner, reference, config, loss=loss, size=size)

    expected = {
        "learnability": losses(learner, loss) - losses(reference, loss),
        "hard_learner": losses(learner, loss),
        "easy_reference": -losses(reference, loss),
    }[score]
    keys = expected if draw == "top_k" else gain * expected + np.asarray(noise, np.float64)
    keys = keys.reshape(strata, -1)
    picks = np.argsort(-keys, axis=1)[:, : size // strata]
    picks = (picks + n // strata * np.arange(strata)[:, None]).reshape(-1)
    np.testing.assert_array_equal(ids, picks)
    selected = metrics["selection/score_selected"]
    np.testing.assert_allclose(selected, expected[picks].mean(), rtol=1e-4)
    everyone = metrics["selection/score_candidates"]
    np.testing.assert_allclose(everyone, expected.mean(), rtol=1e-4)


def test_draws_follow_sequential_sampling_without_replacement():
    n, gain, trials = 5, 2.0, 20_000
    model = embeddings(3, n, 2, 3.0, 0.0)
    config = SelectionConfig(score="hard_learner", method="independent", strata=1, gain=gain)
    terms = score_terms("hard_learner", model, None)
    noise = jax.random.gumbel(jax.random.key(1), (trials, n))
    ids = jax.jit(
        jax.vmap(lambda noise: select_independent(noise, terms, config, loss="sigmoid", size=2)[0])
    )(noise)
    counts = np.zeros((n, n))
    np.add.at(counts, tuple(np.asarray(ids).T), 1)
    weights = np.exp(gain * losses(model, "sigmoid"))
    for first, second in itertools.permutations(range(n), 2):
        p = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        error = 5 * np.sqrt(p * (1 - p) / trials)
        assert abs(counts[first, second] / trials - p) < error
