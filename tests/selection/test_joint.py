"""Against the paper's recursion with the full float64 matrix, drawn with the same noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax
from scipy.stats import entropy

from aced.outputs import Embeddings
from aced.selection import SelectionConfig
from aced.selection.gain import gain_of_draw
from aced.selection.joint import select_joint
from aced.selection.scores import score_terms
from tests.many_processes import USERS_COMPILER

GAIN = 10.0
LOSSES = [(loss, first) for loss in ("sigmoid", "softmax") for first in ("score", "uniform")]


def embeddings(seed: int, n: int, d: int, scale: float, bias: float, spread: float) -> Embeddings:
    rng = np.random.default_rng(seed)
    # Topics shared by many pairs, so that the members of a batch do matter to each other.
    centre = np.random.default_rng(0).normal(size=(12, 64))[np.arange(n) % 12, :d]
    z = centre + spread * rng.normal(size=(2, n, d))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return Embeddings(
        zimg=jnp.asarray(z[0], jnp.float32),
        ztxt=jnp.asarray(z[1], jnp.float32),
        scale=jnp.float32(scale),
        bias=jnp.float32(bias),
    )


def models(n: int) -> tuple[Embeddings, Embeddings]:
    return embeddings(1, n, 16, 7.0, -4.0, 1.5), embeddings(2, n, 40, 11.0, -6.0, 0.7)


def logit_matrix(e: Embeddings) -> np.ndarray:
    zimg, ztxt = np.asarray(e.zimg, np.float64), np.asarray(e.ztxt, np.float64)
    return float(e.scale) * zimg @ ztxt.T + float(e.bias)


def false_negatives(e: Embeddings, margin: float | None) -> list[np.ndarray]:
    """Of candidate i and example k: image i with text k, and text i with image k; [n n] each."""
    cosines = np.float64(e.zimg) @ np.float64(e.ztxt).T
    if margin is None:
        return [np.zeros(cosines.shape, bool)] * 2
    limit = np.diag(cosines)[:, None] - margin
    return [side >= limit for side in (cosines, cosines.T)]


def conditional_losses(
    logits: np.ndarray, chosen: list[int], loss: str, left_out: list[np.ndarray]
) -> np.ndarray:
    """What every candidate adds to the batch `chosen`, one candidate at a time."""
    n = len(logits)
    out = np.zeros(n)
    if loss == "sigmoid":
        sign = 2 * np.eye(n) - 1
        nll = np.logaddexp(0, -sign * logits)
        for i in range(n):
            out[i] = nll[i, i]
            for k in chosen:
                out[i] += nll[i, k] * ~left_out[0][i, k] + nll[k, i] * ~left_out[1][i, k]
        return out
    for i in range(n):
        batch = [*chosen, i] if chosen else list(range(n))
        texts, images = ([k for k in batch if k == i or not x[i, k]] for x in left_out)
        out[i] = (logsumexp(logits[i, texts]) + logsumexp(logits[images, i])) / 2 - logits[i, i]
    return out


def gain_by_definition(score: np.ndarray, chosen: int, config, loss: str) -> float:
    """Of a draw among candidates of these scores."""
    gain = config.softmax_gain if loss == "softmax" and config.softmax_gain else config.gain
    if config.normalization == "none":
        return gain
    if config.normalization == "terms":
        return gain / (1 + 2 * chosen if loss == "sigmoid" else 1)
    if np.ptp(score) == 0:
        return 1.0
    if config.normalization == "std":
        return gain / score.std()

    def missing(log_gain: float) -> float:
        return np.exp(entropy(softmax(np.exp(log_gain) * score))) / len(score) - wanted

    wanted = config.perplexity_share
    return np.exp(brentq(missing, -9, 9, xtol=1e-12))


def oracle(noise, learner, reference, config, loss, size):
    """Ids by chunk, and the mean scores of the draws."""
    n, share = noise.shape[1], size // config.strata
    rows = n // config.strata
    left_out = false_negatives(reference, config.false_negative_margin)
    learner, reference = logit_matrix(learner), logit_matrix(reference)
    chosen, chunks, means = [], [], []
    for chunk_noise in np.asarray(noise, np.float64):
        of_learner = conditional_losses(learner, chosen, loss, left_out)
        of_reference = conditional_losses(reference, chosen, loss, left_out)
        score = {
            "learnability": of_learner - config.reference_weight * of_reference,
            "hard_learner": of_learner,
            "easy_reference": -of_reference,
        }[config.score]
        if not chosen and config.first_chunk == "uniform":
            score = np.zeros(n)
        free = np.setdiff1d(np.arange(n), chosen)
        keys = gain_by_definition(score[free], len(chosen), config, loss) * score + chunk_noise
        chunk = []
        for i in free[np.argsort(-keys[free])]:  # the best first, of strata that are not done
            done = sum(k // rows == i // rows for k in chosen + chunk) == share
            if not done and len(chunk) < size // config.chunks:
                chunk.append(int(i))
        chunks.append(chunk)
        effective = np.exp(entropy(softmax(keys[free] - chunk_noise[free]))) / len(free)
        means.append((score[chunk].mean(), score[free].mean(), effective))
        chosen += chunk
    return chunks, np.mean(means, axis=0)


def chosen(noise, learner, reference, config, *, loss, size):
    terms = score_terms(config.score, learner, reference, config.reference_weight)
    damped = None if config.false_negative_margin is None else reference
    return select_joint(noise, terms, config, loss=loss, size=size, damped=damped)


# With all of the compiler: a score of zero is to be zero.
choose = jax.jit(
    chosen, static_argnames=("config", "loss", "size"), compiler_options=USERS_COMPILER
)


def check(n, size, config, loss, seed=0):
    learner, reference = models(n)
    noise = jax.random.gumbel(jax.random.key(seed), (config.chunks, n))
    ids, metrics = choose(noise, learner, reference, config, loss=loss, size=size)
    expected, means = oracle(noise, learner, reference, config, loss, size)
    found = np.asarray(ids).reshape(config.chunks, -1)
    np.testing.assert_array_equal(np.sort(found), np.sort(expected))
    shares = np.bincount(np.ravel(ids) // (n // config.strata), minlength=config.strata)
    assert set(shares) == {size // config.strata}
    np.testing.assert_allclose(metrics["selection/score_selected"], means[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["selection/score_candidates"], means[1], rtol=1e-4)
    np.testing.assert_allclose(metrics["selection/perplexity"], means[2], rtol=1e-3)


@pytest.mark.parametrize(("chunks", "strata", "tile"), [(4, 1, 2048), (3, 4, 17)])
@pytest.mark.parametrize(("loss", "first"), LOSSES)
@pytest.mark.parametrize("score", ["learnability", "hard_learner", "easy_reference"])
def test_same_picks_as_the_matrix_form(score, loss, first, chunks, strata, tile):
    config = SelectionConfig(
        score=score, chunks=chunks, strata=strata, tile=tile, first_chunk=first, gain=GAIN
    )
    # 17 does not divide the 31 rows of each of 4 strata, so that the last tile overlaps.
    check(n=124, size=48, config=config, loss=loss)


@pytest.mark.parametrize(("chunks", "strata", "tile"), [(4, 1, 2048), (3, 4, 17)])
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("score", ["learnability", "hard_learner"])
def test_false_negatives_do_not_count(score, loss, chunks, strata, tile):
    """The same picks as by a matrix without them, and others than with them."""
    config = SelectionConfig(
        score=score,
        chunks=chunks,
        strata=strata,
        tile=tile,
        first_chunk="uniform",
        gain=GAIN,
        false_negative_margin=0.1,
    )
    left_out, _ = false_negatives(models(124)[1], 0.1)
    np.fill_diagonal(left_out, False)
    assert 0.005 < left_out.mean() < 0.2
    check(n=124, size=48, config=config, loss=loss)
    noise = jax.random.gumbel(jax.random.key(0), (chunks, 124))
    without = dataclasses.replace(config, false_negative_margin=None)
    picks = [choose(noise, *models(124), c, loss=loss, size=48)[0] for c in (config, without)]
    assert set(picks[0].tolist()) != set(picks[1].tolist())


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": "terms"},
        {"normalization": "std", "gain": 3.0},
        {"normalization": "perplexity", "perplexity_share": 0.3},
        {"reference_weight": 2.5},
        {"softmax_gain": 2.0},
    ],
)
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_same_picks_however_the_gain_is_measured(loss, changes):
    config = SelectionConfig(**{"chunks": 4, "strata": 2, "gain": GAIN} | changes)
    check(n=124, size=48, config=config, loss=loss)


@pytest.mark.parametrize("normalization", ["std", "perplexity"])
def test_a_shift_and_a_scale_of_the_scores_change_no_draw(normalization):
    score = jax.random.normal(jax.random.key(0), (200,))
    available = jnp.arange(200) >= 50
    config = SelectionConfig(normalization=normalization)
    one, other = (
        x * gain_of_draw(x, available, 1, config, gain=2.0) for x in (score, 40 * score + 7)
    )
    np.testing.assert_allclose(one - one.mean(), other - other.mean(), atol=1e-3)


def test_one_chunk_is_one_draw_by_the_matching_pairs():
    check(n=60, size=20, config=SelectionConfig(chunks=1, strata=2, gain=GAIN), loss="sigmoid")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_same_picks_with_many_candidates_and_the_papers_gain(loss):
    check(n=512, size=128, config=SelectionConfig(chunks=8, strata=2, tile=100), loss=loss, seed=1)


def test_mutually_useful_candidates_are_chosen_together():
    # Two topics. Within one, the learner confuses all pairs and the reference none, so that each
    # member of a topic makes the others of that topic more learnable, and nothing else matters.
    n, d = 64, 64
    topic = np.arange(n) % 2
    confused = np.eye(2)[topic]
    learner = Embeddings(
        zimg=jnp.asarray(confused, jnp.float32),
        ztxt=jnp.asarray(confused, jnp.float32),
        scale=jnp.float32(10.0),
        bias=jnp.float32(-5.0),
    )
    reference = Embeddings(
        zimg=jnp.eye(n, d), ztxt=jnp.eye(n, d), scale=jnp.float32(10.0), bias=jnp.float32(-5.0)
    )
    config = SelectionConfig(chunks=16, strata=1)
    noise = jax.random.gumbel(jax.random.key(0), (16, n))
    ids, _ = choose(noise, learner, reference, config, loss="sigmoid", size=16)
    assert len(set(topic[np.asarray(ids)])) == 1


@pytest.mark.parametrize(("loss", "first"), LOSSES)
def test_learnability_is_zero_if_learner_equals_reference(loss, first):
    model, _ = models(96)
    config = SelectionConfig(chunks=4, strata=1, first_chunk=first, tile=40)
    noise = jax.random.gumbel(jax.random.key(2), (4, 96))
    ids, metrics = choose(noise, model, model, config, loss=loss, size=24)
    # Every score is exactly zero, so that what is left is the noise: uniform sampling.
    assert metrics.pop("selection/perplexity") == pytest.approx(1)
    assert {float(x) for x in metrics.values()} == {0.0}
    free, expected = np.arange(96), []
    for chunk in np.asarray(noise):
        expected += free[np.argsort(-chunk[free])[:6]].tolist()
        free = np.setdiff1d(free, expected)
    np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_no_array_as_large_as_the_score_matrix(loss):
    n, size = 2048, 320
    config = SelectionConfig(strata=1, tile=256)
    parts = [dataclasses.asdict(e) for e in models(n)]

    def picks(noise, learner, reference):
        pair = Embeddings(**learner), Embeddings(**reference)
        return chosen(noise, *pair, config, loss=loss, size=size)

    compiled = jax.jit(picks).lower(jnp.zeros((config.chunks, n)), *parts).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 4 * n * n
