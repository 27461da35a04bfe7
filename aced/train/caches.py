"""Makes the embeddings of a data set by a run's frozen model: what `python -m aced.cache` does.

A run may also make them itself, before its first step (`before_caches`).
"""

import contextlib
import dataclasses
import sys

import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from aced.cache import fingerprint, making
from aced.cache.config import CacheConfig
from aced.cache.description import COMPLETE, Description, Plan
from aced.config import ConfigError
from aced.data import sources
from aced.files import ownership
from aced.methods.base import MethodConfig
from aced.methods.frozen import FrozenConfig, load_model
from aced.models import two_tower
from aced.parallel import distributed
from aced.parallel.watchdog import Watchdog
from aced.train import program
from aced.train.config import TrainConfig


def make(
    settings: TrainConfig,
    wanted: CacheConfig,
    workdir: str,
    mesh: Mesh,
    watchdog: Watchdog,
    *,
    force: bool = False,
) -> Description:
    """Makes the cache, or goes on with it; all processes of the pass call this, on their mesh.

    Args:
        settings: of the run that will use it, parsed.
        wanted: which model, and how it is kept.
        workdir: what "{workdir}" in the settings stands for.
        mesh: the devices to use, also set by `jax.set_mesh`.
        watchdog: hears that the pass goes on.
        force: take the folder over from another process that is known to be dead.

    Raises:
        ConfigError: a setting is wrong, there is no model, or another process makes the cache.
        CacheError: the folder holds another cache.
        SystemExit: with `preemption.EXIT_CODE` after SIGTERM, `INTERRUPTED` after Ctrl-C.
    """
    folder = wanted.folder(workdir)
    item = _model(settings.method, wanted.model, workdir)
    data = settings.method.data_of(wanted.model, settings.data)
    source = sources.open_source(data)
    shapes = program.frozen_shapes(item.model, mesh, settings.mesh.rules)
    plan = _plan(wanted, settings.batch_size, item, source, data)
    if (folder / COMPLETE).exists():  # it is only read, by as many processes as like
        alone = contextlib.nullcontext()
    else:
        alone = ownership.owned(str(folder / ownership.FILE), force)
    with distributed.entered_by_first(alone):
        left = making.begin(plan, folder)
        exit_code = None
        if left:
            size = wanted.batch_size or settings.method.score_micro_batch or settings.batch_size
            params = load_model(item, shapes)
            maker = making.Maker(plan, folder, source, data, params, mesh, size)
            exit_code = maker.run(left, watchdog)
        description = making.end(plan, folder)
    if exit_code:
        logging.warning("%s is finished; start the same command again.", folder)
        sys.exit(exit_code)
    return description


def _model(method: MethodConfig, name: str, workdir: str) -> FrozenConfig:
    named = method.named
    if name not in named:
        raise ConfigError(f"--model={name} is no model of this config; it has: {sorted(named)}.")
    item = dataclasses.replace(named[name], cache="")
    if not item.checkpoint:
        raise ConfigError(
            f"Nothing says where the model {name!r} is; set "
            f"--config.{method.key_of(name)}.checkpoint."
        )
    return item.resolve(workdir)


def _plan(
    wanted: CacheConfig,
    batch_size: int,
    item: FrozenConfig,
    source: sources.Source,
    data: sources.DataConfig,
) -> Plan:
    params = load_model(item, None)
    own = {name: jnp.asarray(params[name]) for name in ("t", "bias") if name in params}
    scale, bias = (float(x) for x in two_tower.logit_parameters(own))
    return Plan(
        examples=len(source),
        towers=wanted.towers,
        precision=wanted.precision,
        shard_size=wanted.shard_size,
        model=item.model,
        scale=scale,
        bias=bias if "bias" in params else None,
        calibration_pairs=wanted.calibration_pairs,
        calibration_batch_size=batch_size,
        fingerprint=fingerprint.of_inputs(source, data)
        | {
            "weights": fingerprint.of_weights(params),
            "tokenizer": fingerprint.of_tokenizer(item.model.tokenizer),
        },
    )
