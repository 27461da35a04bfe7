"""What a run trained on and what it left: some examples of some super-batches, read again."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from aced.data import order as orders
from aced.data.records import DatasetError, RecordError, Source
from aced.data.sources import open_source
from aced.metrics import history
from aced.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Example:
    """A record as it is shown."""

    id: int
    picture: Any  # encoded, or uint8 [h w 3]; None: the record cannot be read
    texts: tuple[str, ...]
    is_noisy: bool | None  # None: the source does not know


@dataclasses.dataclass(frozen=True)
class SuperBatch:
    """Some of the candidates of a step, in no particular order."""

    step: int
    size: int  # B
    chosen: list[Example]
    left: list[Example]  # none where everything is trained on


def super_batches(
    workdir: epath.PathLike,
    settings: TrainConfig,
    fingerprint: str,
    places: Sequence[float],
    count: int,
) -> Iterator[SuperBatch]:
    """Yields what was chosen and what was left at some steps of a run.

    Which example is row i of super-batch t follows from the seed and t alone, so a super-batch can
    be known again by its step. A record that could not be used, and whose place another one took,
    is counted among those left.

    Args:
        workdir: of the run, with its picks.
        settings: the run's.
        fingerprint: of the data that the run saw.
        places: in the file of picks, between 0, the first step in it, and 1, the last.
        count: examples of either kind, at most.

    Raises:
        FileNotFoundError: there are no picks.
        DatasetError: none is on file, or the data are others now.
        ConfigError: the data are not where they were, or of a source that is not installed.
        OSError: they cannot be read.
    """
    picks = history.some_picks(workdir, places)
    if not picks:
        raise DatasetError(f"{workdir} has no picks on file; picks_steps says how often they are.")
    source = open_source(settings.data)
    if source.fingerprint != fingerprint:
        raise DatasetError(f"{source.name} is not what the run of {workdir} has seen.")
    size = settings.method.super_batch_size(settings.batch_size)
    order = orders.of(source, seed=settings.seed, shuffle=settings.data.shuffle, rows=size)
    for step, ids in sorted(picks.items()):
        # Metrics count the updates done: what is on file as step 1 was chosen from super-batch 0.
        draws = range((step - 1) * size, step * size)
        left = np.setdiff1d([order[draw] for draw in draws], ids).tolist()
        rng = np.random.default_rng(step)  # the same page for the same run
        yield SuperBatch(
            step,
            size,
            *([_read(source, i) for i in _some(some, count, rng)] for some in (ids, left)),
        )


def _some(ids: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    return rng.permutation(np.asarray(ids, np.int64))[:count].tolist()


def _read(source: Source, number: int) -> Example:
    try:
        record: Mapping[str, Any] = source[number]
    except RecordError as error:
        return Example(number, None, (str(error),), None)
    noisy = record.get("is_noisy")
    return Example(
        number, record["image"], tuple(record["texts"]), None if noisy is None else bool(noisy)
    )
