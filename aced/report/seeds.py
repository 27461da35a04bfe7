"""Groups of runs whose settings differ only in seeds, which are drawn as one curve with a band."""

import collections
import re
from collections.abc import Sequence

from aced.config import flatten
from aced.report.runs import Run

_NUMBER = re.compile(r"(seed[\W_]?)\d+")  # of a seed in a name: seed1, seed=1, seed_1


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by the label of their group; a run on its own has its name as its label.

    The runs of a group have different seeds. Second copies of runs, such as the references of runs
    that one recipe made, are in groups of their own.
    """
    found: dict[tuple[str, int], list[Run]] = {}
    copies: collections.Counter[str] = collections.Counter()
    for run in runs:
        with_seeds = _text(run, with_seeds=True)
        key = _NUMBER.sub(r"\1", _text(run, with_seeds=False)), copies[with_seeds]
        found.setdefault(key, []).append(run)
        copies[with_seeds] += 1
    labels: dict[str, list[Run]] = {}
    for members in found.values():
        first = members[0].name
        label = first
        if len(members) > 1:
            label = f"{_shared([run.name for run in members])}, n = {len(members)}"
        if label in labels:  # groups whose names differ in nothing else
            label = f"{first}, n = {len(members)}"
        labels[label] = members
    return labels


def _text(run: Run, *, with_seeds: bool) -> str:
    """The settings of a run, in which paths within the run are equal to those of other runs."""
    settings = flatten(run.settings).items()
    kept = [(k, v) for k, v in settings if with_seeds or k.rpartition(".")[2] != "seed"]
    return repr(sorted(kept)).replace(str(run.folder), "")


def _shared(names: Sequence[str]) -> str:
    """The name without the number of the seed, if it is the same for all; else the first."""
    without = {_NUMBER.sub("", name).strip("_-=,/") for name in names}
    return without.pop() or names[0] if len(without) == 1 else names[0]
