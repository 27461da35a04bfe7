"""Makes the embeddings of a data set by a run's frozen model: what `python -m aced.cache` does.

A run may also make them itself, before its first step (`before_caches`).
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from aced import distributed, ownership, program
from aced.config import ConfigError
from aced.data import sources
from aced.embedding_cache import fingerprint, making
from aced.embedding_cache.description import COMPLETE, Description, Plan
from aced.embedding_cache.precision import Precision
from aced.methods.contrastive_settings import REFERENCE
from aced.methods.frozen import WORKDIR, FrozenConfig, load_model
from aced.models import two_tower
from aced.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Which embeddings to make, and how to keep them."""

    model: str = REFERENCE  # "reference", or the name of a teacher
    out: str = ""  # folder to make
    precision: Precision = "float32"
    towers: str = "both"  # or "image" or "text" alone
    shard_size: int = 65_536  # examples of a file; what a killed pass loses at most, per process
    batch_size: int = 0  # examples embedded at a time over all devices; 0: as the run scores
    calibration_pairs: int = 4096  # that a scale and a bias are fitted to

    def __post_init__(self):
        if not self.out:
            raise ConfigError("--out is empty; give the folder to make.")
        if self.shard_size < 1:
            raise ConfigError(f"--shard_size must be at least 1, got {self.shard_size}.")
        if self.batch_size < 0 or self.calibration_pairs < 0:
            raise ConfigError("--batch_size and --calibration_pairs must be 0 or more.")

    def folder(self, workdir: str) -> pathlib.Path:
        """The folder to make, spelled out.

        Raises:
            ConfigError: it is in an object store.
        """
        out = self.out.replace(WORKDIR, workdir)
        if "://" in out:
            raise ConfigError(
                f"Embeddings are kept in a folder of a file system; {out!r} is not one. Mount the "
                "bucket (gcsfuse), or let the model run in every step, such as by "
                "--config=configs/smoke.py:online."
            )
        return pathlib.Path(os.path.expanduser(out))


def make(
    settings: Any,
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
    alone = contextlib.nullcontext()  # a complete cache is only read, by as many as like
    if not (folder / COMPLETE).exists():
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


def _model(method: Any, name: str, workdir: str) -> FrozenConfig:
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
