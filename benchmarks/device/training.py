"""One training run over a pool in memory: the project's own step, a pass after another."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from aced.evaluators.retrieval import recall
from aced.methods.base import StepContext
from aced.methods.contrastive import Contrastive
from aced.methods.contrastive_settings import ContrastiveConfig
from aced.methods.frozen import FrozenConfig
from aced.models import two_tower
from aced.optim import optimizer, state
from aced.optim.optimizer import OptimizerConfig
from benchmarks.device.pool import Pool, embed


@dataclasses.dataclass(frozen=True)
class Cached:
    """A trained model's embeddings of a pool, with its scale and bias."""

    model: two_tower.TwoTowerConfig
    zimg: Float[np.ndarray, "N d"]
    ztxt: Float[np.ndarray, "N d"]
    scale: float
    bias: float

    @property
    def config(self) -> FrozenConfig:
        """As a method's setting; the embeddings come with the batch."""
        return FrozenConfig(model=self.model, cache="memory", scale=self.scale, bias=self.bias)


def cached(model: two_tower.TwoTowerConfig, params: PyTree, pool: Pool) -> Cached:
    """Embeds a pool with a trained model."""
    zimg, ztxt = embed(model, params, pool)
    scale, bias = two_tower.logit_parameters(params)
    return Cached(model, zimg, ztxt, float(scale), float(bias))


def train(
    config: ContrastiveConfig,
    optimizer_config: OptimizerConfig,
    pool: Pool,
    val: Pool,
    reference: Cached | None,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    evaluations: int = 4,
) -> tuple[PyTree, list[dict[str, float]]]:
    """Returns the parameters after `steps`, and a row of numbers for each evaluation.

    Args:
        config: of the method; with a reference its `reference` is `reference.config`.
        optimizer_config: its schedule is over `steps`.
        pool: what is trained on, in passes of an order of their own.
        val: the pairs of retrieval.
        reference: embeddings of `pool`; None where the method needs none.
        batch_size: b, examples trained on per step.
        steps: of training.
        seed: of the parameters, the order and the draws.
        evaluations: rows, at equal distances; the last one at the end.
    """
    method = Contrastive(config.for_batch(batch_size))
    candidates = config.super_batch_size(batch_size)
    sizes = {"batch_size": batch_size, "data_size": len(pool), "total_steps": steps}
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = jax.jit(method.init_params)(init_key)
    tx, _ = optimizer.build(optimizer_config, params, **sizes)
    now = state.create(params, tx, step_key)
    arrays = {"image": pool.image, "text": pool.text, "is_noisy": pool.is_noisy}
    if reference is not None:
        arrays |= {"reference/zimg": reference.zimg, "reference/ztxt": reference.ztxt}
    arrays = jax.device_put(arrays)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(now, arrays, ids):
        batch = {name: rows[ids] for name, rows in arrays.items()} | {"id": ids}
        return method.train_step(now, {}, batch, StepContext(tx))

    order = _order(len(pool), seed)
    rows, noisy, since = [], [], time.monotonic()
    for index in range(steps):
        ids = np.array([next(order) for _ in range(candidates)], np.int32)
        now, metrics = step(now, arrays, ids)
        noisy.append(metrics["selection/noisy_share"])
        if (index + 1) * evaluations // steps > index * evaluations // steps:
            zimg, ztxt = embed(config.model, now.params["model"], val)
            rows.append(
                {
                    "step": index + 1,
                    "examples_trained": (index + 1) * batch_size,
                    "flops": (index + 1) * method.flops_per_step(batch_size),
                    "r1": recall(zimg, ztxt, np.arange(len(zimg)))["mean_r1"],
                    "noise": float(jnp.stack(noisy).mean()),
                    "loss": float(metrics["loss"]),
                    "scale": float(metrics["scale"]),
                    "seconds": time.monotonic() - since,
                }
                | {
                    name: float(value)
                    for name, value in metrics.items()
                    if name.startswith("selection/") and not value.shape
                }
            )
            noisy = []
    return now.params["model"], rows


def _order(size: int, seed: int):
    """Positions in passes over `size` examples, each in an order of its own."""
    rng = np.random.default_rng((seed, 77))
    while True:
        yield from rng.permutation(size)
