"""Groups of runs whose settings differ only in seeds, which are drawn as one curve with a band."""

import re
from collections.abc import Sequence

from aced.config import flatten
from aced.report.runs import Run

_NUMBER = re.compile(r"(seed[\W_]?)\d+")  # of a seed in a name: seed1, seed=1, seed_1


def groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by the label of their group; a run on its own has its name as its label."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run), []).append(run)
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


def _key(run: Run) -> str:
    """The settings but for seeds; paths within the run, or named by a seed, count as equal."""
    settings = flatten(run.settings)
    kept = {k: v for k, v in settings.items() if k.rpartition(".")[2] != "seed"}
    folder = str(run.folder)
    text = repr(sorted(kept.items())).replace(folder, "")
    return _NUMBER.sub(r"\1", text)


def _shared(names: Sequence[str]) -> str:
    """The name without the number of the seed, if it is the same for all; else the first."""
    without = {_NUMBER.sub("", name).strip("_-=,/") for name in names}
    return without.pop() or names[0] if len(without) == 1 else names[0]
