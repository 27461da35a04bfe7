"""The bandit that chooses which modules OPTIMA distils: pure functions of a small state.

OPTIMA (arXiv 2310.04550) treats modules as arms of a non-stationary bandit, and plays them by
Thompson sampling on recent history. We had no access to the details; our implementation is
discounted Thompson sampling with Gaussian posteriors (arXiv 2305.10718). After a pull of arm a with
reward r, for every arm i,

    sum_i <- g sum_i + [i = a] r        n_i <- g n_i + [i = a]

and the next arm is the largest of theta_i ~ Normal(sum_i / n_i, min(1 / sqrt(n_i), tau_max)^2).
g = 1 and tau_max = inf give ordinary Gaussian Thompson sampling. The other policies are baselines.
"""

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from aced.bounds import Fraction, NonNegativeInt, PositiveFraction, PositiveInt, PositiveOrInfinite
from aced.config import Checked


@dataclasses.dataclass(frozen=True)
class BanditConfig(Checked):
    """How the next arm is chosen. The paper's values are not known; the defaults are our choice."""

    # "thompson", or a baseline. "uniform": a random arm; "fixed": always the same arm;
    # "epsilon_greedy": the arm with the best mean, or sometimes a random arm
    policy: Literal["thompson", "uniform", "fixed", "epsilon_greedy"] = "thompson"
    discount: PositiveFraction = 0.98  # g, which discounts the past at every pull; 1: stationary
    # Largest width of a posterior, for arms that were not played for long; inf: no limit.
    tau_max: PositiveOrInfinite = 1.0
    warm_up: PositiveInt = 1  # pulls of every arm, in turn, before the policy chooses
    epsilon: Fraction = 0.1  # epsilon_greedy: probability of a random arm
    fixed_arm: NonNegativeInt = 0  # fixed: the number of the arm
    rms_discount: PositiveFraction = 0.98  # of the mean square that normalises the rewards
    reward_limit: PositiveOrInfinite = 1.0  # largest magnitude of a normalised reward; inf: none


@struct.dataclass
class BanditState:
    """Statistics of k arms. Every field is a tree, as in `TrainState`."""

    sums: PyTree  # float32 [k]; discounted sum of rewards
    counts: PyTree  # float32 [k]; discounted number of pulls
    pulls: PyTree  # int32 [k]; total number of pulls
    mean_square: PyTree  # float32 []; discounted sum of squares of raw rewards
    weight: PyTree  # float32 []; of those squares


def init(arms: int) -> BanditState:
    """Returns the state of `arms` arms before the first pull."""
    return BanditState(
        sums=jnp.zeros(arms),
        counts=jnp.zeros(arms),
        pulls=jnp.zeros(arms, jnp.int32),
        mean_square=jnp.zeros(()),
        weight=jnp.zeros(()),
    )


def normalise(
    state: BanditState, raw: Float[Array, ""], config: BanditConfig
) -> tuple[BanditState, Float[Array, ""]]:
    """Normalises a raw reward. Returns the new state and the reward, clipped to `reward_limit`.

    The raw reward is divided by the root of the discounted mean square of all raw rewards,
    including itself, so the scale of the rewards cancels. A non-finite raw reward counts as 0.
    """
    raw = jnp.where(jnp.isfinite(raw), raw, 0.0)
    square = config.rms_discount * state.mean_square + raw**2
    weight = config.rms_discount * state.weight + 1
    rms = jnp.sqrt(square / weight)
    limit = config.reward_limit
    reward = jnp.clip(raw / jnp.where(rms > 0, rms, 1.0), -limit, limit)
    return state.replace(mean_square=square, weight=weight), reward


def update(
    state: BanditState, arm: Int[Array, ""], reward: Float[Array, ""], config: BanditConfig
) -> BanditState:
    """Returns the state after a pull of `arm` that gave `reward`."""
    played = jnp.arange(len(state.sums)) == arm
    return state.replace(
        sums=config.discount * state.sums + played * reward,
        counts=config.discount * state.counts + played,
        pulls=state.pulls + played,
    )


def posterior(
    state: BanditState, config: BanditConfig
) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
    """Mean and standard deviation of each arm's posterior; the mean of an unplayed arm is 0."""
    counts = jnp.maximum(state.counts, jnp.finfo(jnp.float32).tiny)
    mean = jnp.where(state.counts > 0, state.sums / counts, 0.0)
    return mean, jnp.minimum(1 / jnp.sqrt(counts), config.tau_max)


def choose(state: BanditState, key: Key[Array, ""], config: BanditConfig) -> Int[Array, ""]:
    """Returns the next arm: during warm-up the least played one, afterwards the policy's choice."""
    arms = len(state.sums)
    mean, width = posterior(state, config)
    explore, draw = jax.random.split(key)
    if config.policy == "thompson":
        arm = jnp.argmax(mean + width * jax.random.normal(draw, (arms,)))
    elif config.policy == "epsilon_greedy":
        at_random = jax.random.uniform(explore) < config.epsilon
        arm = jnp.where(at_random, jax.random.randint(draw, (), 0, arms), jnp.argmax(mean))
    elif config.policy == "uniform":
        arm = jax.random.randint(draw, (), 0, arms)
    else:
        return jnp.int32(config.fixed_arm)
    warm = state.pulls.min() < config.warm_up
    return jnp.where(warm, jnp.argmin(state.pulls), arm).astype(jnp.int32)


def subsets(modules: int) -> tuple[tuple[int, ...], ...]:
    """All non-empty subsets of `modules` module indices, by size."""
    sizes = range(1, modules + 1)
    return tuple(s for size in sizes for s in itertools.combinations(range(modules), size))
