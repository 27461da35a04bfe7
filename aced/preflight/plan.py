"""A run's settings, completed without its data and the checkpoints that it starts from."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from aced import methods
from aced.cache import description
from aced.config import WORKDIR, ConfigError, Settings
from aced.data import sources
from aced.data.records import DatasetError
from aced.methods.frozen import FrozenConfig, TrainedConfig, holds_model
from aced.models.base import ModelConfig
from aced.parallel import mesh as meshes
from aced.train import program
from aced.train.config import TrainConfig, parse

ASSUMED_DATA_SIZE = 10_000_000  # examples, for durations in epochs if the data set is missing
_MOST_SIZES = 4096  # batch sizes to consider


@dataclasses.dataclass
class Plan:
    """A run's settings, with assumptions in place of missing files, described in `assumed`."""

    settings: TrainConfig  # with the strata of selection as configured
    assumed: list[str]
    data_size: int | None = None

    def at(self, batch_size: int) -> TrainConfig:
        """The settings with another batch size."""
        method = self.settings.method.for_batch(batch_size)
        return dataclasses.replace(self.settings, batch_size=batch_size, method=method)

    def program(self, mesh: Mesh, batch_size: int) -> program.Program:
        """The run's step on `mesh`.

        Raises:
            ConfigError: the settings do not fit together.
        """
        return program.build(self.at(batch_size), mesh, self.data_size)

    def smaller_batches(self, mesh: Mesh) -> list[int]:
        """Batch sizes below the configured one that these settings allow on `mesh`, ascending."""
        size, step = self.settings.batch_size, meshes.example_shards(mesh)
        while size // step > _MOST_SIZES:
            step *= 2
        return [smaller for smaller in range(step, size, step) if self._allows(mesh, smaller)]

    def _allows(self, mesh: Mesh, batch_size: int) -> bool:
        """Whether a batch fits mesh and micro-batches, and needs no new exchange of examples."""
        shards, method = meshes.example_shards(mesh), self.settings.method
        try:
            candidates = method.for_batch(batch_size).super_batch_size(batch_size)
        except ConfigError:
            return False
        pieces = (candidates, method.score_micro_batch), (batch_size, method.train_micro_batch)
        return (
            batch_size % shards == candidates % shards == 0
            and all(not size or whole <= size or whole % size == 0 for whole, size in pieces)
            and self.exchanges(mesh, batch_size) <= self.exchanges(mesh, self.settings.batch_size)
        )

    def exchanges(self, mesh: Mesh, batch_size: int) -> bool:
        """Whether chosen examples move between devices."""
        method = self.settings.method.for_batch(batch_size)
        return method.selects and method.selection.strata % meshes.example_shards(mesh) > 0


def read(config: Settings, workdir: str) -> Plan:
    """Returns the run's settings, with the architectures of its frozen models.

    If the run of a frozen model is missing, its architecture is taken from the config or from
    `config.before`.

    Raises:
        ConfigError: a setting is wrong, or the architecture of a frozen model is unknown.
    """
    parsed = parse(config)
    settings = dataclasses.replace(parsed, method=methods.parse(config["method"]))
    out = Plan(settings, [])
    models = {name: _frozen_model(out, name, workdir) for name in settings.method.frozen}
    out.settings = dataclasses.replace(settings, method=settings.method.with_frozen(models))
    return out


def _frozen_model(out: Plan, name: str, workdir: str) -> TrainedConfig:
    """A frozen model with its architecture, which needs no run or cache."""
    method = out.settings.method
    item, key = method.frozen[name], method.key_of(name)
    if item.cache:
        return _cached_model(out, item, key, method.towers_of(name), workdir)
    if item.checkpoint and holds_model(item.folder(workdir)):
        return dataclasses.replace(item, checkpoint="", model=item.resolve(workdir).model)
    missing = f"{key}.checkpoint = {item.checkpoint!r} holds no run"
    model, where = _architecture(out, item, key)
    if model is None:
        raise ConfigError(f"{missing}, so its architecture is unknown; set {key}.model, too.")
    out.assumed.append(f"{missing}; the model is {where}")
    return dataclasses.replace(item, checkpoint="", model=model)


def _architecture(out: Plan, item: TrainedConfig, key: str) -> tuple[ModelConfig | None, str]:
    """A frozen model's architecture in the config, and its path; None: not in the config."""
    if item.model is not None:
        return item.model, f"{key}.model"
    for earlier, run in out.settings.before.items():
        if item.checkpoint == f"{WORKDIR}/{earlier}":
            return parse(run).method.model, f"that of before.{earlier}"
    return None, ""


def _cached_model(
    out: Plan, item: FrozenConfig, key: str, towers: Sequence[str], workdir: str
) -> FrozenConfig:
    if description.is_complete(item.cache_folder(workdir)):
        return item.resolve(workdir, towers)
    missing = f"{key}.cache = {item.cache!r} does not exist"
    model, where = _architecture(out, item, key)
    if model is None:
        raise ConfigError(
            f"{missing}, so the width of its embeddings is unknown; set {key}.model, too."
        )
    out.assumed.append(f"{missing}; its embeddings are as wide as those of {where}")
    # Costs do not depend on scale and bias.
    bias = item.bias if item.bias is not None or model.init_bias is None else 0.0
    return dataclasses.replace(item, checkpoint="", model=model, scale=item.scale or 1.0, bias=bias)


def first_program(out: Plan, mesh: Mesh) -> program.Program:
    """The run's step. The data set is opened only if a duration in epochs needs its size."""
    size = out.settings.batch_size
    try:
        return out.program(mesh, size)
    except ConfigError as error:
        if "data_size" not in str(error):
            raise
    try:
        out.data_size = len(sources.open_source(out.settings.data))
    except (DatasetError, ConfigError, OSError):
        out.data_size = ASSUMED_DATA_SIZE
        out.assumed.append(f"an epoch has {ASSUMED_DATA_SIZE:,} examples; the data set is missing")
    return out.program(mesh, size)
