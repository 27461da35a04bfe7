"""The bandit that chooses which modules OPTIMA distils: pure functions of a small state.

OPTIMA (arXiv 2310.04550) plays modules as arms by a Thompson sampling that goes by recent history,
since what a module has to give changes while the model learns. How exactly could not be read; this
is our reading of it: discounted Thompson sampling with Gaussian posteriors (arXiv 2305.10718).
After a pull of arm a with reward r, for every arm i,

    sum_i <- g sum_i + [i = a] r        n_i <- g n_i + [i = a]

and the next arm is the largest of theta_i ~ Normal(sum_i / n_i, min(1 / sqrt(n_i), tau_max)^2).
g = 1 with tau_max = inf is ordinary Gaussian Thompson sampling. The other policies are baselines.
"""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from annotated_types import Interval
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from aced.bounds import Fraction, NonNegativeInt, PositiveFraction, PositiveInt
from aced.config import Checked

Limit = Annotated[float, Interval(gt=0, le=math.inf)]  # inf: none


@dataclasses.dataclass(frozen=True)
class BanditConfig(Checked):
    """How the next arm is chosen. The paper's own numbers are not known: all are our reading."""

    # "thompson"; or the baselines "uniform": a random arm, "fixed": always the same one,
    # "epsilon_greedy": the best mean but for a random arm now and then
    policy: Literal["thompson", "uniform", "fixed", "epsilon_greedy"] = "thompson"
    discount: PositiveFraction = 0.98  # g of the past at every pull; 1: stationary
    # Largest width of a posterior, for arms long not played; inf: no limit.
    tau_max: Limit = 1.0
    warm_up: PositiveInt = 1  # pulls of every arm, in turn, before anything is chosen
    epsilon: Fraction = 0.1  # epsilon_greedy: how often an arm is random
    fixed_arm: NonNegativeInt = 0  # fixed: the number of the arm
    rms_discount: PositiveFraction = 0.98  # of the running mean square that rewards are divided by
    reward_limit: Limit = 1.0  # what they are clipped to then, both ways; inf: no limit


@struct.dataclass
class BanditState:
    """What is known of k arms. Every field is a tree, as in `TrainState`."""

    sums: PyTree  # float32 [k]; discounted sum of rewards
    counts: PyTree  # float32 [k]; discounted number of pulls
    pulls: PyTree  # int32 [k]; pulls in all
    mean_square: PyTree  # float32 []; discounted sum of squares of raw rewards
    weight: PyTree  # float32 []; of those squares


def init(arms: int) -> BanditState:
    """Returns the state before the first pull of one of `arms` arms."""
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
    """Returns the state and the reward within `reward_limit` that a raw one is.

    It is divided by the root of the discounted mean square of all raw rewards, this one included,
    so that neither their scale nor its drift matters. One that is not finite counts as 0.
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
    """Mean and width of what is believed of each arm's reward; mean 0 of one never played."""
    counts = jnp.maximum(state.counts, jnp.finfo(jnp.float32).tiny)
    mean = jnp.where(state.counts > 0, state.sums / counts, 0.0)
    return mean, jnp.minimum(1 / jnp.sqrt(counts), config.tau_max)


def choose(state: BanditState, key: Key[Array, ""], config: BanditConfig) -> Int[Array, ""]:
    """Returns the arm to play next: in the warm-up the least played one, then by the policy."""
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
    """All non-empty subsets of so many modules: single ones first, as numbers of modules."""
    every = (
        tuple(m for m in range(modules) if number >> m & 1) for number in range(1, 1 << modules)
    )
    return tuple(sorted(every, key=lambda subset: (len(subset), subset)))
