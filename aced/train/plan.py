"""The plan of a run: what is trained and cached in which order, its cost, and what is done."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
from etils import epath

from aced import methods
from aced.cache import description, making
from aced.cache.config import CacheConfig
from aced.checkpoints.checkpointer import newest_step
from aced.config import ConfigError
from aced.data import sources
from aced.data.sources import DataConfig
from aced.files import storage
from aced.train import architectures, caches, program
from aced.train.config import TrainConfig, parse
from aced.train.early_stop import EarlyStop
from aced.train.summary import aligned


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run with steps of its own: an earlier run, a cache, or the run itself."""

    name: str
    method: str  # its name in the papers; for a cache, what it holds
    folder: str  # its workdir, or that of the cache
    examples: int  # trained on, or embedded, per step
    steps: int | None = None  # None: known once the data are open
    flops: int | None = None  # per step; None: an architecture is not known yet
    flops_before: int = 0  # before the first step
    done: int = 0  # steps
    epochs: float | None = None  # the length, where it is given so
    most: int | None = None  # examples; the last step of a shard of a cache has fewer than others

    @property
    def total_examples(self) -> int:
        """The examples of all steps, where their number is known."""
        total = (self.steps or 0) * self.examples
        return total if self.most is None else min(total, self.most)

    @property
    def total_flops(self) -> int:
        """The FLOPs of all steps and before them, where they are known."""
        return self.flops_before + self._flops_of_steps if self.steps else 0

    @property
    def later_flops(self) -> int:
        """The FLOPs that are left, where they are known."""
        if not self.steps or not self.done:
            return self.total_flops
        return self._flops_of_steps * (self.steps - self.done) // self.steps

    @property
    def _flops_of_steps(self) -> int:
        return self.total_examples * (self.flops or 0) // self.examples


def plan(settings: TrainConfig, folder: epath.Path) -> list[Phase]:
    """Returns the phases of a run in their order.

    No data set is opened, but for embedded and prepared ones on this machine if a length depends on
    their size.

    Args:
        settings: of the run.
        folder: the workdir.
    """
    return list(_phases(settings, folder, folder.name))


def _phases(settings: TrainConfig, folder: epath.Path, name: str) -> Iterator[Phase]:
    for earlier, before in settings.before.items():
        yield from _phases(parse(before), folder / earlier, earlier)
    # The architectures are those of earlier runs, so the costs are known before these are done.
    try:
        complete, _ = architectures.completed(settings, str(folder))
    except ConfigError:  # trained by a run before an earlier one; checked when it is needed
        complete = None
    for wanted in settings.before_caches.values():
        yield _cache(wanted, complete or settings, folder)
    flops, flops_before, steps = None, 0, _steps(settings)
    if complete is not None:
        method = methods.build(complete.method)
        flops = method.flops_per_step(settings.batch_size)
        flops_before = method.flops_before(settings.batch_size)
    done = newest_step(folder)
    if EarlyStop.resumed(settings.early_stop, folder, done).reached:
        steps = done
    yield Phase(
        name=name,
        method=settings.method.title,
        folder=str(folder),
        examples=settings.batch_size,
        steps=steps,
        flops=flops,
        flops_before=flops_before,
        done=done if steps is None else min(done, steps),
        epochs=settings.total_epochs,
    )


def _cache(cache: CacheConfig, settings: TrainConfig, workdir: epath.Path) -> Phase:
    folder = cache.folder(str(workdir))
    data = settings.method.data_of(cache.model, settings.data)
    shards = max(1, jax.device_count() // settings.mesh.tensor)
    size = caches.batch_size(settings, cache, data.augmentations, shards)
    examples = _examples(data)
    steps = examples and _cache_steps(examples, cache.shard_size, size)
    item, flops = settings.method.named.get(cache.model), None
    if item and item.model:
        flops = size * caches.flops_of_example(item.model, cache.towers, data.augmentations)
    return Phase(
        name=f"{cache.model}'s cache",
        method="embeddings",
        folder=str(folder),
        examples=size,
        steps=steps,
        flops=flops,
        done=(steps or 0) if description.is_complete(str(folder)) else 0,
        most=examples,
    )


def _cache_steps(examples: int, shard_size: int, batch_size: int) -> int:
    """The steps of a pass in which each process reads for itself, as without tensor parallelism."""
    readers = jax.process_count()
    waves = -(-examples // (shard_size * readers))
    return waves * making.steps_of_wave(examples, shard_size, -(-batch_size // readers))


def _steps(settings: TrainConfig) -> int | None:
    """The steps of a run; None: its length is in epochs of a data set that is not open yet."""
    try:
        return program.sizes_of(settings, None)["total_steps"]
    except ConfigError:
        examples = _examples(settings.data)
    return examples and program.sizes_of(settings, examples)["total_steps"]


def _examples(data: DataConfig) -> int | None:
    """The size of a data set where it is written down on this machine; None: not known yet."""
    prepared = data.source == "array_record" and not storage.is_remote(data.array_record.path)
    return len(sources.open_source(data)) if prepared or data.source == "shapes" else None


def later_flops(phases: Sequence[Phase], folder: epath.PathLike) -> int:
    """Returns the known FLOPs of all phases after the one in `folder`."""
    places = [phase.folder for phase in phases]
    return sum(phase.later_flops for phase in phases[places.index(str(folder)) + 1 :])


def table(phases: Sequence[Phase]) -> str:
    """Returns the phases with their costs, one per line."""
    lines = [["phase", "method", "steps", "examples", "FLOPs", "done"], *map(_line, phases)]
    total = sum(phase.total_flops for phase in phases)
    left = sum(phase.later_flops for phase in phases)
    if len(phases) > 1 and total:
        lines.append(["together", "", "", "", f"{total:.2e}", f"{1 - left / total:.0%}"])
    return aligned(lines)


def _line(phase: Phase) -> list[str]:
    steps, flops = phase.steps, phase.flops
    unknown = "-" if phase.epochs is None else f"{phase.epochs:g} epochs"
    return [
        phase.name,
        phase.method,
        unknown if steps is None else f"{steps:,}",
        "-" if steps is None else f"{phase.total_examples:,}",
        "-" if steps is None or flops is None else f"{phase.total_flops:.2e}",
        "-" if steps is None else f"{phase.done / steps:.0%}",
    ]
