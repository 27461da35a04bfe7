"""Embeds a data set with a frozen model of a run and stores the result in a cache.

Used by `python -m aced.cache`, and by a run before its first step (`before_caches`).
"""

import contextlib
import dataclasses
import functools
import sys

import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from aced.cache import fingerprint, making
from aced.cache.config import CacheConfig
from aced.cache.description import COMPLETE, TOWERS, Description, Plan
from aced.config import ConfigError
from aced.cost import flops
from aced.data import sources
from aced.files import ownership
from aced.methods.base import MethodConfig
from aced.methods.frozen import FrozenConfig, load_model
from aced.metrics import progress
from aced.models import two_tower
from aced.models.base import ModelConfig
from aced.parallel import distributed
from aced.parallel.watchdog import Watchdog
from aced.train import program
from aced.train.config import TrainConfig


def make(
    settings: TrainConfig,
    cache: CacheConfig,
    workdir: str,
    mesh: Mesh,
    watchdog: Watchdog,
    *,
    force: bool = False,
    later_flops: int | float = 0,
) -> Description:
    """Makes a cache, or continues an unfinished one. All processes make the same call.

    Args:
        settings: parsed settings of the run that will read the cache.
        cache: the model to cache, and the format of the cache.
        workdir: replaces "{workdir}" in the settings.
        mesh: the devices to use; must also be the mesh of the context (`jax.set_mesh`).
        watchdog: is reset as the pass progresses.
        force: take the folder over from another process that is known to be dead.
        later_flops: of what is trained afterwards, which the progress line's ETA includes.

    Raises:
        ConfigError: a setting is wrong, the model is missing, or another process makes this cache.
        CacheError: the folder holds a different cache.
        SystemExit: with `preemption.EXIT_CODE` after SIGTERM, `INTERRUPTED` after Ctrl-C.
    """
    folder = cache.folder(workdir)
    item = _model(settings.method, cache.model, workdir)
    data = settings.method.data_of(cache.model, settings.data)
    source = sources.open_source(data)
    shapes = program.frozen_shapes(item.model, mesh, settings.mesh.rules)
    plan = _plan(cache, settings.batch_size, item, source, data)
    if (folder / COMPLETE).exists():  # a complete cache is only read, so needs no owner
        lock = contextlib.nullcontext()
    else:
        lock = ownership.owned(str(folder / ownership.FILE), force)
    with distributed.entered_by_first(lock):
        missing = making.begin(plan, folder)
        exit_code = None
        if missing:
            size = batch_size(settings, cache)
            params = load_model(item, shapes)
            maker = making.Maker(plan, folder, source, data, params, mesh, size)
            line = functools.partial(
                progress.Progress,
                name=f"{cache.model}'s cache",
                flops=size * flops_of_example(item.model, cache.towers),
                later_flops=later_flops,
            )
            exit_code = maker.run(missing, watchdog, line)
        description = making.end(plan, folder)
    if exit_code:
        logging.warning("%s is finished; start the same command again.", folder)
        sys.exit(exit_code)
    return description


def batch_size(settings: TrainConfig, cache: CacheConfig) -> int:
    """The examples embedded at a time, over all devices."""
    return cache.batch_size or settings.method.score_micro_batch or settings.batch_size


def flops_of_example(model: ModelConfig, towers: str) -> int:
    """FLOPs of embedding an image, a caption, or one of each."""
    by_tower = dict(zip(("image", "text"), flops.macs(model), strict=True))
    return flops.step_flops([], [(by_tower[name], 1) for name in TOWERS[towers]])


def _model(method: MethodConfig, name: str, workdir: str) -> FrozenConfig:
    models = method.named
    if name not in models:
        raise ConfigError(f"--model={name} is no model of this config; it has: {sorted(models)}.")
    item = dataclasses.replace(models[name], cache="")
    if not item.checkpoint:
        raise ConfigError(
            f"The model {name!r} has no checkpoint; set --config.{method.key_of(name)}.checkpoint."
        )
    return item.resolve(workdir)


def _plan(
    cache: CacheConfig,
    batch_size: int,
    item: FrozenConfig,
    source: sources.Source,
    data: sources.DataConfig,
) -> Plan:
    params = load_model(item, None)
    temperature = {name: jnp.asarray(params[name]) for name in ("t", "bias") if name in params}
    scale, bias = (float(x) for x in two_tower.logit_parameters(temperature))
    return Plan(
        examples=len(source),
        towers=cache.towers,
        precision=cache.precision,
        shard_size=cache.shard_size,
        model=item.model,
        scale=scale,
        bias=bias if "bias" in params else None,
        calibration_pairs=cache.calibration_pairs,
        calibration_batch_size=batch_size,
        fingerprint=fingerprint.of_inputs(source, data)
        | {
            "weights": fingerprint.of_weights(params),
            "tokenizer": fingerprint.of_tokenizer(item.model.tokenizer),
        },
    )
