"""Samples of the chosen and the rejected examples of a step, read again from the data."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
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
    """A record for display."""

    id: int
    picture: Any  # encoded, or uint8 [h w 3]; None: the record cannot be read
    texts: tuple[str, ...]
    is_noisy: bool | None  # None: not labelled by the source


@dataclasses.dataclass(frozen=True)
class SuperBatch:
    """A sample of the candidates of a step, in random order."""

    step: int
    size: int  # B
    chosen: list[Example]
    left: list[Example]  # empty if everything is trained on


def of_run(
    workdir: epath.PathLike,
    settings: TrainConfig,
    fingerprint: str,
    places: Sequence[float],
    count: int,
) -> list[SuperBatch]:
    """Samples of some recorded steps of a run, in the order of the steps.

    Args:
        workdir: of the run.
        settings: of the run.
        fingerprint: of the data of the run.
        places: relative positions in the file of picks, from 0, the first step, to 1, the last.
        count: the maximal number of examples of either kind.

    Raises:
        FileNotFoundError: the run has no file of picks.
        DatasetError: the file of picks is empty, or the data have changed.
        ConfigError: the data are missing, or their source is not installed.
        OSError: the data cannot be read.
    """
    picks = history.some_picks(workdir, places)
    if not picks:
        raise DatasetError(f"{workdir} has no picks on file; see picks_steps.")
    source = open_source(settings.data)
    if source.fingerprint != fingerprint:
        raise DatasetError(f"{source.name} is not what the run of {workdir} has seen.")
    return [of_step(source, settings, step, ids, count) for step, ids in sorted(picks.items())]


def of_step(
    source: Source, settings: TrainConfig, step: int, picks: Sequence[int], count: int
) -> SuperBatch:
    """A sample of a step.

    Row i of super-batch t follows from the seed and t alone, so the super-batch can be rebuilt from
    the step, without the state of the input. Unusable records that were replaced by others count as
    rejected.

    Args:
        source: of the training data.
        settings: of the run.
        step: whose super-batch; metrics count completed steps, so step 1 is of super-batch 0.
        picks: the ids of the examples trained on in this step.
        count: the maximal number of examples of either kind.
    """
    size = settings.method.super_batch_size(settings.batch_size)
    order = orders.of(source, seed=settings.seed, shuffle=settings.data.shuffle, rows=size)
    rng = np.random.default_rng(step)  # the same sample every time
    taken = set(picks)
    chosen = rng.permutation(np.asarray(picks, np.int64))[:count].tolist()
    rejected: dict[int, None] = {}  # an ordered set; large super-batches are not looked up whole
    for row in rng.permutation(size).tolist() if len(taken) < size else ():
        if len(rejected) == count:
            break
        if (number := order[(step - 1) * size + row]) not in taken:
            rejected[number] = None
    return SuperBatch(step, size, _read(source, chosen), _read(source, rejected))


def _read(source: Source, numbers: Iterable[int]) -> list[Example]:
    return [_example(source, number) for number in numbers]


def _example(source: Source, number: int) -> Example:
    try:
        record: Mapping[str, Any] = source[number]
    except RecordError as error:
        return Example(number, None, (str(error),), None)
    noisy = record.get("is_noisy")
    return Example(
        number, record["image"], tuple(record["texts"]), None if noisy is None else bool(noisy)
    )
