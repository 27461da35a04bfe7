"""The optimizer: gradient clipping, adamw, lion or adafactor, learning rates, decay, freezing.

Update number s (from 0) of a parameter p is

    p <- p - lr_mult(p) * lr(s) * u(s) - decay(p) * weight_decay * factor(s) * p

where u is the update of Adam, Lion or Adafactor for the clipped gradient. factor(s) is the schedule
lr(s) / peak or the learning rate lr_mult(p) * lr(s), as set by `decay_follows`.

Parameters have names such as 'model/image/blocks/mlp/fc1/kernel'. Rules are (regex, value) pairs; a
regex has to match the whole name, and the first match applies.
"""

import dataclasses
import re
from collections import Counter
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from aced.bounds import NonNegativeFloat, PositiveFloat, PositiveOrInfinite, ProperFraction
from aced.config import Checked, ConfigError
from aced.optim import schedules
from aced.parallel.rules import name_of

Rules = tuple[tuple[str, NonNegativeFloat], ...]

# Matrices are recognised by name: blocks are stacked for scan, so a bias has two axes as well,
# [layers, width]. Projections and tables of token embeddings are matrices; biases, norm scales,
# positions, class tokens, probes, temperature and logit bias are not.
# (big_vision decays only kernels: decay_rules = ((".*/kernel", 1.0),).)
MATRICES = r"projections/(?!.*bias$).*|(.*/)?(kernel|embedding|token)"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """How gradients move parameters."""

    name: Literal["adamw", "lion", "adafactor"] = "adamw"
    schedule: schedules.ScheduleConfig = dataclasses.field(default_factory=schedules.ScheduleConfig)
    # Decay of the first moment (our choice, not from the paper); adafactor: 0 for none
    b1: ProperFraction = 0.9
    # adamw, lion: decay of the second moment; JEST needs 0.95 at filter_ratio >= 0.8
    b2: ProperFraction = 0.95
    # adamw: added to the root of the second moment (our choice, not from the paper)
    eps: NonNegativeFloat = 1e-8
    # Type of the stored first moment. optax multiplies by b1 in it too: bfloat16(0.9) is 0.8984.
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    # adafactor, as in big_vision: second moment with decay min(b2_cap, 1 - (s + 1)^-exponent).
    adafactor_exponent: NonNegativeFloat = 0.8
    adafactor_b2_cap: ProperFraction = 0.999
    adafactor_eps: NonNegativeFloat = 1e-30  # added to the squared gradient
    adafactor_min_factored: int = 32  # matrices narrower than this keep their whole second moment
    adafactor_clip_rms: PositiveFloat | None = None  # clip every parameter's update to this RMS
    # Largest global norm of the gradient, without frozen parameters (JEST)
    clip_norm: PositiveOrInfinite | None = 1.0
    weight_decay: NonNegativeFloat = 1e-4  # JEST, section 3
    # "schedule": decay is multiplied by lr(s) / peak, as in big_vision, for which JEST's 1e-4 is
    # meant; "lr": by the learning rate, as in optax.adamw and PyTorch, where 0.1 is the same decay.
    decay_follows: Literal["schedule", "lr"] = "schedule"
    decay_rules: Rules = ((MATRICES, 1.0),)  # multiplies weight_decay; unmatched: 0
    lr_rules: Rules = ()  # multiplies the learning rate; 0: frozen; unmatched: 1

    def _check(self) -> None:
        for key in ("decay_rules", "lr_rules"):
            for pattern, _ in getattr(self, key):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ConfigError(f"{key}: '{pattern}' is not a regex: {error}.") from error
        self._check_sizes()

    def _check_sizes(self):
        """Refuses learning rates and decays so large that no training can succeed."""
        rate = self.schedule.peak * max((value for _, value in self.lr_rules), default=1.0)
        if rate > schedules.MAX_RATE:
            raise ConfigError(
                f"lr_rules raise the learning rate to {rate:g}; at most {schedules.MAX_RATE:g} is "
                "allowed, so lower them."
            )
        decay = self.weight_decay * max((value for _, value in self.decay_rules), default=0.0)
        share = decay * (max(rate, self.schedule.peak) if self.decay_follows == "lr" else 1.0)
        if share > 1:
            raise ConfigError(
                f"weight_decay = {self.weight_decay:g} with its decay_rules and decay_follows = "
                f"{self.decay_follows!r} removes {share:g} of a weight in each step at the peak "
                "learning rate; at most 1 is allowed, so lower it."
            )


def build(
    config: OptimizerConfig,
    params: PyTree,
    *,
    total_steps: int,
    batch_size: int,
    data_size: int | None = None,
) -> tuple[optax.GradientTransformation, schedules.Schedule]:
    """Returns the optimizer for `params`, and the learning rate as a function of the step.

    Frozen parameters (learning-rate multiplier 0) get an update of zero, have no optimizer state
    and do not count in the clipped norm. `params` may be shapes, because only names are read. The
    sizes are for durations: see `schedules.build`.

    Raises:
        ConfigError: a rule applies to no parameter, all parameters are frozen, or the schedule does
            not fit into the run.
    """
    lr = schedules.build(
        config.schedule, total_steps=total_steps, batch_size=batch_size, data_size=data_size
    )
    names = [name_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    lr_mults = _by_name(config.lr_rules, names, 1.0, "lr_rules")
    decays = _by_name(config.decay_rules, names, 0.0, "decay_rules")
    tx = optax.chain(
        optax.identity()
        if config.clip_norm is None
        else optax.clip_by_global_norm(config.clip_norm),
        _direction(config),
        _step_and_decay(config, lr, lr_mults, decays),
    )
    frozen = [name for name in names if lr_mults[name] == 0]
    if len(frozen) == len(names):
        raise ConfigError("lr_rules freeze every parameter; nothing is left to train.")
    if frozen:
        labels = jax.tree.map_with_path(
            lambda path, _: "frozen" if lr_mults[name_of(path)] == 0 else "trained", params
        )
        tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
    return tx, lr


def _by_name(rules: Rules, names: list[str], default: float, key: str) -> dict[str, float]:
    """Every parameter's value, from the first rule that matches its name."""
    out, uses = {}, Counter()
    for name in names:
        matching = (i for i, (pattern, _) in enumerate(rules) if re.fullmatch(pattern, name))
        first = next(matching, None)
        uses[first] += 1
        out[name] = default if first is None else rules[first][1]
    for i, (pattern, _) in enumerate(rules):
        if not uses[i]:
            earlier = any(re.fullmatch(pattern, name) for name in names)
            why = "earlier rules have all its matches" if earlier else "it matches no parameter"
            raise ConfigError(
                f"{key}: '{pattern}' has no effect, {why}. A regex has to match a whole name, "
                f"such as '{names[0]}'."
            )
    return out


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """The transformation of the gradient to u(s)."""
    if config.name == "adamw":
        return optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.mu_dtype)
    if config.name == "lion":
        return optax.scale_by_lion(config.b1, config.b2, mu_dtype=config.mu_dtype)
    return optax.chain(
        # By name and not by shape, which would factor the stacked vectors of 32 or more layers.
        optax.masked(_second_moment(config, factored=True), _is_matrix),
        optax.masked(_second_moment(config, factored=False), _is_vector),
        optax.identity()
        if config.adafactor_clip_rms is None
        else optax.clip_by_block_rms(config.adafactor_clip_rms),
        optax.ema(config.b1, debias=False, accumulator_dtype=config.mu_dtype)
        if config.b1
        else optax.identity(),
    )


def _second_moment(config: OptimizerConfig, factored: bool) -> optax.GradientTransformation:
    """Adafactor's second moment, capped as in "Scaling Vision Transformers" (Zhai et al., 2021)."""
    return optax.scale_by_factored_rms(
        factored=factored,
        decay_rate=config.adafactor_exponent,
        min_dim_size_to_factor=config.adafactor_min_factored,
        epsilon=config.adafactor_eps,
        decay_rate_fn=lambda step, exponent: jnp.minimum(
            config.adafactor_b2_cap, 1.0 - (step + 1.0) ** -exponent
        ),
    )


def _is_matrix(tree: PyTree) -> PyTree[bool]:
    return jax.tree.map_with_path(lambda path, _: bool(re.fullmatch(MATRICES, name_of(path))), tree)


def _is_vector(tree: PyTree) -> PyTree[bool]:
    return jax.tree.map(lambda matrix: not matrix, _is_matrix(tree))


def _step_and_decay(
    config: OptimizerConfig,
    lr: schedules.Schedule,
    lr_mults: dict[str, float],
    decays: dict[str, float],
) -> optax.GradientTransformation:
    """The transformation of u(s) to the update in the module's formula."""

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: optax.ScaleByScheduleState, params: PyTree):
        rate = lr(state.count)

        def step(path: tuple, u: Array, p: Array) -> Array:
            name = name_of(path)
            scaled = rate * lr_mults[name]
            factor = scaled if config.decay_follows == "lr" else rate / config.schedule.peak
            decay = decays[name] * config.weight_decay
            return (-scaled * u - factor * decay * p).astype(p.dtype)

        updates = jax.tree.map_with_path(step, updates, params)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)
