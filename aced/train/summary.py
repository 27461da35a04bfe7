"""The table at the end of a run: what each run got, for how much."""

from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from aced import methods
from aced.checkpoints import record
from aced.metrics import history

COLUMNS = {
    "examples_trained": ("trained", "{:,.0f}"),
    "examples_scored": ("scored", "{:,.0f}"),
    "flops": ("FLOPs", "{:.2e}"),
    "selection/noisy_share": ("noisy picks", "{:.1%}"),
}
# Of the evaluations, what the table shows.
_SCORES = {"mean_r1": "{:.1%}", "top1": "{:.1%}", "accuracy": "{:.1%}", "cider": "{:.2f}"}


def table(workdir: epath.PathLike) -> str:
    """Returns a table of the run in `workdir` and of the runs before it, one a line."""
    folder = epath.Path(workdir)
    before = record.read(folder).settings.get("before", {})
    folders = {name: folder / name for name in before} | {folder.name: folder}
    titles, cells = rows({name: values(path) for name, path in folders.items()})
    lines = [["run", "method", *titles]]
    lines += [[name, _method(path), *cells[name]] for name, path in folders.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    return "\n".join(["", *text, ""])


def _method(workdir: epath.Path) -> str:
    return methods.parse(record.read(workdir).settings["method"]).title


def rows(runs: Mapping[str, Mapping[str, int | float]]) -> tuple[list[str], dict[str, list[str]]]:
    """The titles of the table, and the cells of each run, from the last value of every metric."""
    columns = dict(COLUMNS)
    for found in runs.values():
        columns |= {name: (name.replace("_", " "), form) for name, form in scores(found).items()}
    cells = {
        run: [
            form.format(found[name]) if name in found else "-"
            for name, (_, form) in columns.items()
        ]
        for run, found in runs.items()
    }
    return [title for title, _ in columns.values()], cells


def scores(names: Iterable[str]) -> dict[str, str]:
    """Of the names of metrics those that evaluations are told by, with the form of their values."""
    found = {}
    for name in names:
        evaluation, _, number = name.rpartition("/")
        if evaluation and number in _SCORES:
            found[name] = _SCORES[number]
    return found


def is_run(folder: epath.Path) -> bool:
    """Whether `folder` is the workdir of a run that has told something."""
    return (folder / record.FILE).exists() and (folder / history.FILE).exists()


def values(workdir: epath.PathLike) -> dict[str, int | float]:
    """The last value of every metric; of the share of noisy picks, the last quarter's mean."""
    found = history.last_values(workdir)
    name = "selection/noisy_share"
    noisy = [line[name] for line in history.read(workdir) if name in line]
    if noisy:
        found[name] = float(np.mean(noisy[-max(1, len(noisy) // 4) :]))
    return found
