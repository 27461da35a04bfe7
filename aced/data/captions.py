"""The kinds of a picture's captions, and the choice of one by the weights of their kinds."""

import collections
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aced.config import ConfigError
from aced.data.draws import Draws

GIVEN = "given"  # the kind of captions without another one, such as the alternative text of a page
KIND = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_kinds(kinds: Sequence[str], captions: Sequence[str], setting: str) -> None:
    """Raises a ConfigError unless `kinds` is empty or has a kind for each of `captions`.

    `setting` is the path of both settings, such as "data.parquet".
    """
    if kinds and len(kinds) != len(captions):
        raise ConfigError(
            f"{setting}.kinds = {tuple(kinds)} must name a kind for each entry of {setting}."
            f"captions = {tuple(captions)}, in the same order, or be empty."
        )
    check_names(kinds, f"{setting}.kinds")


def check_names(kinds: Sequence[str], setting: str) -> None:
    """Raises a ConfigError if one of `kinds` is no name of a kind."""
    for kind in kinds:
        if not KIND.fullmatch(kind):
            raise ConfigError(
                f"{setting} has a kind {kind!r}; names have only letters, digits, _ and -."
            )


def joined(
    columns: Sequence[Sequence[str]], kinds: Sequence[str], most: int
) -> dict[str, tuple[str, ...]]:
    """The captions of a record, as its field `texts` and, if columns have kinds, its `kinds`.

    Args:
        columns: the captions of each column.
        kinds: the kind of each column; empty: all captions are `GIVEN`.
        most: captions to keep, the first ones.
    """
    fields = {"texts": tuple(itertools.chain(*columns))[:most]}
    if kinds:
        each = zip(columns, kinds, strict=True)
        fields["kinds"] = tuple(kind for column, kind in each for _ in column)[:most]
    return fields


def to_indices(kinds: Sequence[str]) -> dict[str, list[int]]:
    """The captions of each kind but `GIVEN`, in which form a record takes a byte per caption."""
    return {
        name: [i for i, kind in enumerate(kinds) if kind == name]
        for name in dict.fromkeys(kinds)
        if name != GIVEN
    }


def from_indices(indices: Mapping[Any, Any], count: int) -> tuple[str, ...]:
    """The kinds of `count` captions that `to_indices` converted.

    Raises:
        ValueError: `indices` are not valid.
    """
    kinds: dict[int, str] = {}
    for kind, members in indices.items():
        if type(kind) is not str or not KIND.fullmatch(kind) or type(members) is not list:
            raise ValueError(f"'kinds' must map names to lists of captions, got {indices!r:.200}")
        for i in members:
            if type(i) is not int or not 0 <= i < count or i in kinds:
                raise ValueError(f"'kinds' has a caption {i!r:.20} twice, or that does not exist")
            kinds[i] = kind
    return tuple(kinds.get(i, GIVEN) for i in range(count))


def weights_of(kinds: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    """The relative probabilities of captions of these `kinds`.

    The weight of a kind is shared equally by its captions; a kind without weight has 0.
    """
    counts = collections.Counter(kinds)
    return [weights.get(kind, 0.0) / counts[kind] for kind in kinds]


def pick(
    captions: Sequence[int], kinds: Sequence[str], weights: Mapping[str, float], draws: Draws
) -> int:
    """A random one of `captions`, which are indices in `kinds`, the kinds of all captions.

    Without `weights` all have the same probability, otherwise that of `weights_of`.
    """
    if not weights:
        return draws.pick(captions)
    return captions[draws.weighted(weights_of([kinds[i] for i in captions], weights))]
