"""Pictures of evaluations that are trained on: numbers on them are too good.

Only data sets that `aced.prepare` wrote have the hashes by which they are compared, which are read
once for each; no picture is. A run's training data are compared with its own evaluations and with
those of the runs that it comes before, as a reference comes before a run.
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
from aced.train.config import TrainConfig, parse

_NAMED = 3  # examples in a message


class Split(NamedTuple):
    """A prepared split."""

    path: str
    split: str
    first: int | None = None  # the examples that are used; None: all


class Comparison(NamedTuple):
    """What is trained on, what is evaluated on, and where in the config each stands."""

    training: str
    trained: DataConfig
    evaluation: str
    evaluated: DataConfig
    first: int | None  # examples that are evaluated on; None: all


@contextlib.contextmanager
def checked(settings: TrainConfig) -> Iterator[None]:
    """A block that begins when no evaluation has pictures that are trained on, or a warning.

    Args:
        settings: of a run; `settings.overlap` is what to do about it.

    Raises:
        ConfigError: there are some, and `overlap` is "refuse".
        DatasetError: a data set is missing, or its hashes are damaged.
    """
    if settings.overlap != "allow":
        _check(list(_comparisons(settings, {}, "")), settings.overlap)
    yield


def _comparisons(
    settings: TrainConfig, later: Mapping[str, EvalConfig], path: str
) -> Iterator[Comparison]:
    """Those of a run and of the runs before it.

    Args:
        settings: of the run.
        later: the evaluations of the runs that it comes before.
        path: of the run in the config, with a dot behind it.
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
    """Tells of what the compared have in common, and of what could not be compared."""
    places: dict[Split, str] = {}  # where each is found first in the config
    pairs = collections.defaultdict(dict)  # evaluations of each training split, in their order
    left_out = {}
    for training, trained, evaluation, evaluated, first in comparisons:
        some = _splits(trained, training, left_out)
        others = _splits(evaluated, evaluation, left_out)
        for (place, one), (other_place, other) in itertools.product(some, others):
            other = other._replace(first=first)
            places.setdefault(one, place)
            places.setdefault(other, other_place)
            pairs[one][other] = None
    hashes = {other: _of_evaluation(other) for others in pairs.values() for other in others}
    found = [
        _message(places[one], one, places[other], other, is_in)
        for one, others in pairs.items()
        for other, is_in in _common(one, {other: hashes[other] for other in others}).items()
        if is_in.any()
    ]
    if left_out:
        logging.info(
            "No evaluation is checked for pictures that are trained on where one of both is not "
            "from aced.prepare, and has no hashes: %s.",
            ", ".join(f"{place} ({what})" for place, what in left_out.items()),
        )
    for message in found:
        logging.warning("%s", message)
    if found and overlap == "refuse":
        raise ConfigError(f"config.overlap = 'refuse', and {found[0]}")


def _splits(config: SourceConfig, place: str, left_out: dict[str, str]) -> list[tuple[str, Split]]:
    """The prepared splits that are read, each with its place; others go to `left_out`.

    The embedded scenes are drawn by their numbers, and go nowhere.
    """
    if config.source == "mixture":
        members = ((name, config.mixture[name]) for name in config.members)
        parts = [_splits(item, f"{place}.mixture.{name}", left_out) for name, item in members]
        return list(itertools.chain(*parts))
    if config.source == "array_record":
        found = Split(expand(config.array_record.path), config.array_record.split)
        if records.read_hashes(found.path, found.split) is not None:
            return [(place, found)]
        left_out[place] = f"{found.path}, prepared before there were hashes"
    elif config.source != "shapes":
        left_out[place] = config.source
    return []


def _of_evaluation(split: Split) -> UInt64[np.ndarray, " n"]:
    return np.concatenate(list(records.read_hashes(split.path, split.split)))[: split.first]


def _common(
    training: Split, evaluations: Mapping[Split, UInt64[np.ndarray, " _"]]
) -> dict[Split, Bool[np.ndarray, " _"]]:
    """Which examples of each evaluation have a picture that is in `training`, read once."""
    known = np.unique(np.concatenate(list(evaluations.values())))
    known = known[known != 0]  # examples that have no picture
    is_common = np.zeros(len(known) + 1, bool)
    for part in records.read_hashes(training.path, training.split):
        place = np.searchsorted(known, part)
        is_common[place[np.append(known, 0)[place] == part]] = True
    common = known[is_common[:-1]]
    return {split: np.isin(hashes, common) for split, hashes in evaluations.items()}


def _message(
    training: str, trained: Split, evaluation: str, evaluated: Split, is_in: Bool[np.ndarray, " n"]
) -> str:
    source = records.open_dataset(evaluated.path, evaluated.split)
    names = [source[i]["key"] for i in np.flatnonzero(is_in)[:_NAMED]]
    more = "" if is_in.sum() <= _NAMED else ", ..."
    return (
        f"{is_in.sum()} of {len(is_in)} pictures of config.{evaluation} ({evaluated.path}, split "
        f"{evaluated.split}) are trained on in config.{training} ({trained.path}, split "
        f"{trained.split}): {', '.join(names)}{more}. Numbers on them are too good. One call of "
        "aced.prepare with --val and --clean_column makes sets that have none in common; "
        "config.overlap = 'allow' turns this check off."
    )
