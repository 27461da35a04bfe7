"""The table at the end of a run: the cost and the scores of each run."""

from collections.abc import Iterable, Mapping, Sequence

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
# Numbers of evaluations that the table shows.
_SCORES = {"mean_r1": "{:.1%}", "top1": "{:.1%}", "accuracy": "{:.1%}", "cider": "{:.2f}"}


def table(workdir: epath.PathLike) -> str:
    """Returns a table with a line for the run in `workdir` and for each run before it."""
    folder = epath.Path(workdir)
    before = record.read(folder).settings.get("before", {})
    folders = {name: folder / name for name in before} | {folder.name: folder}
    titles, cells = rows({name: values(path) for name, path in folders.items()})
    lines = [["run", "method", *titles]]
    for name, path in folders.items():
        method = methods.parse(record.read(path).settings["method"])
        lines.append([name, method.title, *cells[name]])
    return f"\n{aligned(lines)}\n"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A text table of these lines of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def rows(runs: Mapping[str, Mapping[str, int | float]]) -> tuple[list[str], dict[str, list[str]]]:
    """The titles of the table, and the cells of each run, from the last value of every metric."""
    columns = dict(COLUMNS)
    for metrics in runs.values():
        columns |= {name: (name.replace("_", " "), form) for name, form in scores(metrics).items()}
    cells = {
        run: [
            form.format(metrics[name]) if name in metrics else "-"
            for name, (_, form) in columns.items()
        ]
        for run, metrics in runs.items()
    }
    return [title for title, _ in columns.values()], cells


def scores(names: Iterable[str]) -> dict[str, str]:
    """The format of each metric in `names` that is the main number of an evaluation."""
    parts = {name: name.rpartition("/") for name in names}
    return {
        name: _SCORES[number]
        for name, (evaluation, _, number) in parts.items()
        if evaluation and number in _SCORES
    }


def is_run(folder: epath.Path) -> bool:
    """Whether `folder` is the workdir of a run that has written metrics."""
    return (folder / record.FILE).exists() and (folder / history.FILE).exists()


def values(workdir: epath.PathLike) -> dict[str, int | float]:
    """The last value of every metric; for the share of noisy picks, the last quarter's mean."""
    metrics = history.last_values(workdir)
    name = "selection/noisy_share"
    noisy = [line[name] for line in history.read(workdir) if name in line]
    if noisy:
        metrics[name] = float(np.mean(noisy[-max(1, len(noisy) // 4) :]))
    return metrics
