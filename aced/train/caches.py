"""Embeds a data set with a frozen model of a run or of another library, and makes a cache of it.

Used by `python -m aced.cache`, and by a run before its first step (`before_caches`).
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from aced.cache import fingerprint, libraries, making
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
from aced.parallel import mesh as meshes
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
    model = _model(settings, cache, mesh, workdir)
    source = sources.open_source(model.data)
    plan = _plan(cache, settings.batch_size, model, source)
    if (folder / COMPLETE).exists():  # a complete cache is only read, so needs no owner
        lock = contextlib.nullcontext()
    else:
        lock = ownership.owned(str(folder / ownership.FILE), force)
    with distributed.entered_by_first(lock):
        missing = making.begin(plan, folder)
        exit_code = None
        if missing:
            shards = meshes.example_shards(mesh)
            size = batch_size(settings, cache, model.data.augmentations, shards)
            maker = model.maker(plan, folder, source, model.data, model.load(), mesh, size)
            # The cost of another library's model is not known; the estimate then leaves it out.
            cost = 0
            if plan.model:
                cost = size * flops_of_example(plan.model, cache.towers, plan.augmentations)
            line = functools.partial(
                progress.Progress,
                name=f"{cache.model}'s cache",
                flops=cost,
                later_flops=later_flops,
            )
            exit_code = maker.run(missing, watchdog, line)
        description = making.end(plan, folder)
    if exit_code:
        logging.warning("%s is finished; start the same command again.", folder)
        sys.exit(exit_code)
    return description


def batch_size(settings: TrainConfig, cache: CacheConfig, augmentations: int, shards: int) -> int:
    """The examples embedded at a time, over all devices.

    If `cache` does not set it, a step holds about as many pictures, stored augmentations included,
    as the run scores at a time.

    Args:
        settings: of the run that will read the cache.
        cache: the settings of the cache.
        augmentations: stored ones of each picture; 0: none.
        shards: devices that share the examples equally; the result is rounded up to a multiple.
    """
    if cache.batch_size:
        return cache.batch_size
    pictures = settings.method.score_micro_batch or settings.batch_size
    of_example = max(1, augmentations) if "image" in TOWERS[cache.towers] else 1
    return shards * max(1, -(-(pictures // of_example) // shards))


def flops_of_example(model: ModelConfig, towers: str, augmentations: int) -> int:
    """FLOPs of embedding an image or its stored augmentations, a caption, or both."""
    by_tower = dict(zip(("image", "text"), flops.macs(model), strict=True))
    times = {"image": max(1, augmentations), "text": 1}
    return flops.step_flops([], [(by_tower[name], times[name]) for name in TOWERS[towers]])


@dataclasses.dataclass(frozen=True)
class _Model:
    """What a cache needs of the model that is to embed, ours or another library's."""

    data: sources.DataConfig
    facts: dict[str, Any]  # fields of the plan
    fingerprint: dict[str, str]
    maker: type[making.Maker]
    load: Callable[[], Any]  # the parameters on the devices, or the other library's model


def _model(settings: TrainConfig, cache: CacheConfig, mesh: Mesh, workdir: str) -> _Model:
    if (named := libraries.named(cache.model)) is not None:
        theirs = libraries.load(*named)
        facts = {"scale": theirs.scale, "bias": theirs.bias, "other": theirs.about, "model": None}
        return _Model(settings.data, facts, theirs.fingerprint, making.LibraryMaker, lambda: theirs)
    item = _frozen(settings.method, cache, workdir)
    params = load_model(item, None)
    temperature = {name: jnp.asarray(params[name]) for name in ("t", "bias") if name in params}
    scale, bias = (float(x) for x in two_tower.logit_parameters(temperature))
    bias = bias if "bias" in params else None
    shapes = program.frozen_shapes(item.model, mesh, settings.mesh.rules)
    return _Model(
        settings.method.data_of(cache.model, settings.data),
        {"scale": scale, "bias": bias, "model": item.model},
        {
            "weights": fingerprint.of_weights(params),
            "tokenizer": fingerprint.of_tokenizer(item.model.tokenizer),
        },
        making.ModelMaker,
        functools.partial(load_model, item, shapes),
    )


def _frozen(method: MethodConfig, cache: CacheConfig, workdir: str) -> FrozenConfig:
    models, name = method.named, cache.model
    if name not in models:
        raise ConfigError(
            f"{cache.PREFIX}model={name} is not a model of this config; it has: {sorted(models)}. "
            "Models of other libraries are given as open_clip:FOLDER or transformers:FOLDER."
        )
    item = dataclasses.replace(models[name], cache="")
    if not item.checkpoint:
        raise ConfigError(
            f"The model {name!r} has no checkpoint; set --config.{method.key_of(name)}.checkpoint."
        )
    return item.resolve(workdir)


def _plan(cache: CacheConfig, batch_size: int, model: _Model, source: sources.Source) -> Plan:
    return Plan(
        examples=len(source),
        towers=cache.towers,
        precision=cache.precision,
        shard_size=cache.shard_size,
        calibration_pairs=cache.calibration_pairs,
        calibration_batch_size=batch_size,
        fingerprint=fingerprint.of_inputs(source, model.data) | model.fingerprint,
        augmentations=model.data.augmentations,
        augment=model.data.augment,
        **model.facts,
    )
