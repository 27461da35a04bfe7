"""Finds evaluation images that are also trained on, which inflate an evaluation's numbers.

Images are compared by the hashes that `aced.prepare` wrote; data sets from elsewhere have none and
are not compared. A run's training data are compared with its own evaluations and with those of the
runs that depend on it, such as the run whose reference it trains.
"""

import collections
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, UInt64

from aced.config import ConfigError, expand
from aced.data import records
from aced.data.sources import DataConfig, SourceConfig
from aced.evaluators import EvalConfig
from aced.metrics.progress import announced
from aced.train.config import TrainConfig, parse

_NAMED = 3  # examples listed in a message


class Split(NamedTuple):
    """A split of a prepared data set."""

    path: str
    split: str
    first: int | None = None  # the examples that are used; None: all


class Comparison(NamedTuple):
    """Training data, evaluation data, and the path of each in the config."""

    training: str
    trained: DataConfig
    evaluation: str
    evaluated: DataConfig
    first: int | None  # examples that are evaluated on; None: all


@contextlib.contextmanager
def checked(settings: TrainConfig) -> Iterator[None]:
    """Checks for overlap on entry; a context manager for `distributed.entered_by_first`.

    Args:
        settings: of a run; `settings.overlap` chooses between a warning, an error and no check.

    Raises:
        ConfigError: evaluation images are trained on, and `overlap` is "refuse".
        DatasetError: a data set is missing, or its hashes are damaged.
    """
    if settings.overlap != "allow":
        with announced("Comparing the evaluations' images with those trained on"):
            _check(list(_comparisons(settings, {}, "")), settings.overlap)
    yield


def _comparisons(
    settings: TrainConfig, later: Mapping[str, EvalConfig], path: str
) -> Iterator[Comparison]:
    """The comparisons for a run and for the runs before it.

    Args:
        settings: of the run.
        later: evaluations of the runs that depend on this one.
        path: of the run in the config, with a trailing dot.
    """
    own = {f"{path}evals.{name}": item for name, item in settings.evals.items()}
    evals = {**own, **later}
    for name, item in evals.items():
        yield Comparison(f"{path}data", settings.data, name, item.data, item.max_examples)
    for name, item in own.items():
        if item.kind == "linear_probe":
            place = f"{name}.probe.data"
            yield Comparison(place, item.probe.data, name, item.data, item.max_examples)
    for name, earlier in settings.before.items():
        yield from _comparisons(parse(earlier), evals, f"{path}before.{name}.")


def _check(comparisons: list[Comparison], overlap: str) -> None:
    """Reports shared images, and the data sets that could not be compared."""
    places: dict[Split, str] = {}  # first path of each split in the config
    pairs = collections.defaultdict(dict)  # training split -> evaluation splits, ordered
    left_out = {}
    for training, trained, evaluation, evaluated, first in comparisons:
        train_splits = _splits(trained, training, left_out)
        eval_splits = _splits(evaluated, evaluation, left_out)
        for (place, train), (eval_place, test) in itertools.product(train_splits, eval_splits):
            test = test._replace(first=first)
            places.setdefault(train, place)
            places.setdefault(test, eval_place)
            pairs[train][test] = None
    hashes = {test: _of_evaluation(test) for tests in pairs.values() for test in tests}
    messages = [
        _message(places[train], train, places[test], test, is_shared)
        for train, tests in pairs.items()
        for test, is_shared in _common(train, {test: hashes[test] for test in tests}).items()
        if is_shared.any()
    ]
    if left_out:
        logging.info(
            "Evaluations are not checked for images that are trained on where a data set is not "
            "from aced.prepare, and so has no hashes: %s.",
            ", ".join(f"{place} ({reason})" for place, reason in left_out.items()),
        )
    for message in messages:
        logging.warning("%s", message)
    if messages and overlap == "refuse":
        raise ConfigError(f"config.overlap = 'refuse', and {messages[0]}")


def _splits(config: SourceConfig, place: str, left_out: dict[str, str]) -> list[tuple[str, Split]]:
    """The prepared splits of a source, each with its path in the config.

    Sources without hashes are added to `left_out`. The built-in scenes ("shapes") never overlap.
    """
    if config.source == "mixture":
        members = ((name, config.mixture[name]) for name in config.members)
        parts = [_splits(item, f"{place}.mixture.{name}", left_out) for name, item in members]
        return list(itertools.chain(*parts))
    if config.source == "array_record":
        split = Split(expand(config.array_record.path), config.array_record.split)
        if records.read_hashes(split.path, split.split) is not None:
            return [(place, split)]
        left_out[place] = f"{split.path}, prepared before there were hashes"
    elif config.source != "shapes":
        left_out[place] = config.source
    return []


def _of_evaluation(split: Split) -> UInt64[np.ndarray, " n"]:
    return np.concatenate(list(records.read_hashes(split.path, split.split)))[: split.first]


def _common(
    training: Split, evaluations: Mapping[Split, UInt64[np.ndarray, " _"]]
) -> dict[Split, Bool[np.ndarray, " _"]]:
    """A mask for each evaluation: the examples whose image is in `training`, read once."""
    known = np.unique(np.concatenate(list(evaluations.values())))
    known = known[known != 0]  # 0: the example has no image
    is_common = np.zeros(len(known) + 1, bool)
    for part in records.read_hashes(training.path, training.split):
        place = np.searchsorted(known, part)
        is_common[place[np.append(known, 0)[place] == part]] = True
    common = known[is_common[:-1]]
    return {split: np.isin(hashes, common) for split, hashes in evaluations.items()}


def _message(
    training: str,
    trained: Split,
    evaluation: str,
    evaluated: Split,
    is_shared: Bool[np.ndarray, " n"],
) -> str:
    source = records.open_dataset(evaluated.path, evaluated.split)
    names = [source[i]["key"] for i in np.flatnonzero(is_shared)[:_NAMED]]
    more = "" if is_shared.sum() <= _NAMED else ", ..."
    return (
        f"{is_shared.sum()} of {len(is_shared)} pictures of config.{evaluation} ({evaluated.path}, "
        f"split {evaluated.split}) are trained on in config.{training} ({trained.path}, split "
        f"{trained.split}): {', '.join(names)}{more}. Numbers on them are too good. One call of "
        "aced.prepare with --val and --clean_column makes sets that have none in common; "
        "config.overlap = 'allow' turns this check off."
    )
