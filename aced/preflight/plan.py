"""A run's settings, completed without its data and the checkpoints that it starts from."""

import dataclasses

from jax.sharding import Mesh

from aced import methods
from aced.config import ConfigError, Settings
from aced.data import sources
from aced.data.records import DatasetError
from aced.parallel import mesh as meshes
from aced.train import architectures, program
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
        moves = method.selects and not method.score_ahead  # or else they are read where they go
        return moves and method.selection.strata % meshes.example_shards(mesh) > 0


def read(config: Settings, workdir: str) -> Plan:
    """Returns the run's settings, with the architectures of its frozen models.

    If the run of a frozen model is missing, its architecture is taken from the config or from
    `config.before`.

    Raises:
        ConfigError: a setting is wrong, or the architecture of a frozen model is unknown.
    """
    parsed = parse(config)
    settings = dataclasses.replace(parsed, method=methods.parse(config["method"]))
    return Plan(*architectures.completed(settings, workdir))


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
