"""A run's settings with the architectures of its frozen models, which need not be trained yet."""

import dataclasses
from collections.abc import Sequence

from aced.cache import description
from aced.config import WORKDIR, ConfigError
from aced.methods.frozen import FrozenConfig, TrainedConfig, holds_model
from aced.models.base import ModelConfig
from aced.train.config import TrainConfig, parse


def completed(settings: TrainConfig, workdir: str) -> tuple[TrainConfig, list[str]]:
    """Returns the settings with all architectures, and descriptions of what was assumed.

    If the run of a frozen model is missing, its architecture is taken from the config or from
    `config.before`.

    Raises:
        ConfigError: the architecture of a frozen model is unknown.
    """
    assumed: list[str] = []
    models = {
        name: _frozen_model(settings, assumed, name, workdir) for name in settings.method.frozen
    }
    return dataclasses.replace(settings, method=settings.method.with_frozen(models)), assumed


def _frozen_model(
    settings: TrainConfig, assumed: list[str], name: str, workdir: str
) -> TrainedConfig:
    """A frozen model with its architecture, which needs no run or cache."""
    method = settings.method
    item, key = method.frozen[name], method.key_of(name)
    if item.cache:
        return _cached_model(settings, assumed, item, key, method.towers_of(name), workdir)
    if item.checkpoint and holds_model(item.folder(workdir)):
        return dataclasses.replace(item, checkpoint="", model=item.resolve(workdir).model)
    missing = f"{key}.checkpoint = {item.checkpoint!r} holds no run"
    model, where = _architecture(settings, item, key)
    if model is None:
        raise ConfigError(f"{missing}, so its architecture is unknown; set {key}.model, too.")
    assumed.append(f"{missing}; the model is {where}")
    return dataclasses.replace(item, checkpoint="", model=model)


def _architecture(
    settings: TrainConfig, item: TrainedConfig, key: str
) -> tuple[ModelConfig | None, str]:
    """A frozen model's architecture in the config, and its path; None: not in the config."""
    if item.model is not None:
        return item.model, f"{key}.model"
    for earlier, run in settings.before.items():
        if item.checkpoint == f"{WORKDIR}/{earlier}":
            return parse(run).method.model, f"that of before.{earlier}"
    return None, ""


def _cached_model(
    settings: TrainConfig,
    assumed: list[str],
    item: FrozenConfig,
    key: str,
    towers: Sequence[str],
    workdir: str,
) -> FrozenConfig:
    if description.is_complete(item.cache_folder(workdir)):
        return item.resolve(workdir, towers)
    missing = f"{key}.cache = {item.cache!r} does not exist"
    model, where = _architecture(settings, item, key)
    if model is None:
        raise ConfigError(
            f"{missing}, so the width of its embeddings is unknown; set {key}.model, too."
        )
    assumed.append(f"{missing}; its embeddings are as wide as those of {where}")
    # Costs do not depend on scale and bias.
    bias = item.bias if item.bias is not None or model.init_bias is None else 0.0
    return dataclasses.replace(item, checkpoint="", model=model, scale=item.scale or 1.0, bias=bias)
