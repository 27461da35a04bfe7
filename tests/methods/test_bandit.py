"""The bandit against loops in plain Python, and on arms that drift, over many seeds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.methods import bandit
from aced.methods.bandit import BanditConfig

SEEDS = 50
PULLS = 400
MEANS = np.array([0.1, 0.5, -0.2], np.float32)
SWAPPED = MEANS[[1, 0, 2]]
NOISE = 0.3


def play(config, means, seeds=SEEDS):
    """Arms played [seeds pulls] where pull t gives means[t] plus noise."""

    def pull(state, inputs):
        key, mean = inputs
        choice, noise = jax.random.split(key)
        arm = bandit.choose(state, choice, config)
        reward = mean[arm] + NOISE * jax.random.normal(noise)
        return bandit.update(state, arm, reward, config), arm

    def run(key):
        keys = jax.random.split(key, len(means))
        return jax.lax.scan(pull, bandit.init(means.shape[1]), (keys, means))[1]

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


def regret(arms, means):
    """Mean over seeds of what the best arm would have given more."""
    got = np.take_along_axis(means[None], arms[:, :, None], axis=2)[:, :, 0]
    return (means.max(axis=1) - got).sum(axis=1).mean()


STILL = jnp.tile(MEANS, (PULLS, 1))
DRIFTING = jnp.concatenate([jnp.tile(MEANS, (PULLS // 2, 1)), jnp.tile(SWAPPED, (PULLS // 2, 1))])
STATIONARY = BanditConfig(discount=1.0, tau_max=float("inf"))


def test_the_best_arm_is_played_most():
    arms = play(STATIONARY, STILL)
    assert np.mean(arms[:, PULLS // 2 :] == 1) > 0.9
    arms = play(BanditConfig(), STILL)
    assert np.mean(arms[:, PULLS // 2 :] == 1) > 0.5


def test_discounted_sampling_follows_a_swap_and_stationary_lags():
    means = np.asarray(DRIFTING)
    discounted, stationary = play(BanditConfig(), DRIFTING), play(STATIONARY, DRIFTING)
    after = slice(PULLS // 2, None)
    assert regret(discounted[:, after], means[after]) < regret(stationary[:, after], means[after])
    assert np.mean(discounted[:, -50:] == 0) > np.mean(stationary[:, -50:] == 0)
    # Before the swap the past is worth keeping.
    before = slice(None, PULLS // 2)
    assert regret(stationary[:, before], means[before]) < regret(
        discounted[:, before], means[before]
    )


def test_update_is_the_discounted_sum():
    config = BanditConfig(discount=0.9)
    rng = np.random.default_rng(0)
    history = [(int(rng.integers(3)), float(rng.normal())) for _ in range(20)]
    state = bandit.init(3)
    for arm, reward in history:
        state = bandit.update(state, jnp.int32(arm), jnp.float32(reward), config)
    for arm in range(3):
        ages = [(len(history) - 1 - t, r) for t, (a, r) in enumerate(history) if a == arm]
        np.testing.assert_allclose(state.sums[arm], sum(0.9**k * r for k, r in ages), rtol=1e-5)
        np.testing.assert_allclose(state.counts[arm], sum(0.9**k for k, _ in ages), rtol=1e-5)
        assert state.pulls[arm] == len(ages)


def test_without_discount_it_is_gaussian_thompson_sampling():
    """The posterior of n rewards of unit variance under a flat prior: their mean, n^-1/2."""
    rewards = {0: [0.3, 0.5, -0.1], 1: [0.2], 2: [-0.4, 0.0]}
    state = bandit.init(3)
    for arm, values in rewards.items():
        for value in values:
            state = bandit.update(state, jnp.int32(arm), jnp.float32(value), STATIONARY)
    mean, width = bandit.posterior(state, STATIONARY)
    np.testing.assert_allclose(mean, [np.mean(v) for v in rewards.values()], rtol=1e-6)
    np.testing.assert_allclose(width, [len(v) ** -0.5 for v in rewards.values()], rtol=1e-6)
    # Arms are played as often as they are the largest of independent draws.
    keys = jax.random.split(jax.random.key(1), 20_000)
    played = jax.jit(jax.vmap(lambda key: bandit.choose(state, key, STATIONARY)))(keys)
    draws = np.random.default_rng(0).normal(mean, width, (20_000, 3)).argmax(axis=1)
    np.testing.assert_allclose(
        np.bincount(played, minlength=3) / 20_000, np.bincount(draws) / 20_000, atol=0.02
    )


def test_width_is_limited():
    state = bandit.init(2)
    config = BanditConfig(discount=0.5, tau_max=2.0)
    for _ in range(30):
        state = bandit.update(state, jnp.int32(0), jnp.float32(1), config)
    mean, width = bandit.posterior(state, config)
    np.testing.assert_allclose(width, [1 / np.sqrt(2 * (1 - 0.5**30)), 2.0], rtol=1e-5)
    assert np.isfinite(mean).all()


@pytest.mark.parametrize("policy", ["thompson", "uniform", "epsilon_greedy"])
def test_warm_up_plays_every_arm_in_turn(policy):
    arms = play(BanditConfig(policy=policy, warm_up=2), STILL[:6], seeds=3)
    np.testing.assert_array_equal(arms, np.tile([0, 1, 2, 0, 1, 2], (3, 1)))


def test_baselines():
    fixed = play(BanditConfig(policy="fixed", fixed_arm=2), STILL, seeds=2)
    assert (fixed == 2).all()
    uniform = play(BanditConfig(policy="uniform"), STILL)
    np.testing.assert_allclose(np.bincount(uniform.ravel()) / uniform.size, 1 / 3, atol=0.02)
    greedy = play(BanditConfig(policy="epsilon_greedy", epsilon=0.3, discount=1.0), STILL)
    share = np.bincount(greedy[:, -100:].ravel(), minlength=3) / greedy[:, -100:].size
    np.testing.assert_allclose(share, [0.1, 0.8, 0.1], atol=0.06)


def test_rewards_do_not_depend_on_scale():
    raw = np.random.default_rng(3).normal(size=30)
    config = BanditConfig(rms_discount=0.9)

    def rewards(values):
        state, out = bandit.init(2), []
        for value in values:
            state, reward = bandit.normalise(state, jnp.float32(value), config)
            out.append(float(reward))
        return np.array(out)

    ages = 0.9 ** np.arange(30)[::-1]
    rms = [
        np.sqrt((ages[-t - 1 :] * raw[: t + 1] ** 2).sum() / ages[-t - 1 :].sum())
        for t in range(30)
    ]
    np.testing.assert_allclose(rewards(raw), np.clip(raw / rms, -1, 1), rtol=1e-5)
    np.testing.assert_allclose(rewards(1000 * raw), rewards(raw), rtol=1e-4)
    np.testing.assert_array_equal(rewards([0.0, np.nan, np.inf]), 0)
    config = BanditConfig(rms_discount=0.9, reward_limit=math.inf)
    assert abs(raw / rms).max() > 1.5
    np.testing.assert_allclose(rewards(raw), raw / rms, rtol=1e-5)


def test_subsets():
    assert bandit.subsets(3) == ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


def test_same_choice_under_jit():
    state = bandit.update(bandit.init(3), jnp.int32(1), jnp.float32(1), BanditConfig())
    choose = functools.partial(bandit.choose, config=BanditConfig(warm_up=1))
    for seed in range(5):
        key = jax.random.key(seed)
        assert int(choose(state, key)) == int(jax.jit(choose)(state, key))


def test_settings():
    with pytest.raises(ConfigError, match="discount must be above 0"):
        BanditConfig(discount=0.0)
    with pytest.raises(ConfigError, match="tau_max must be above 0"):
        BanditConfig(tau_max=-1.0)
