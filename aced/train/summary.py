"""The scores of a run: a line for each evaluation, and the table at its end, with the cost."""

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
SCORES = {
    "mean_r1": "{:.1%}",
    "top1": "{:.1%}",
    "accuracy": "{:.1%}",
    "soft_accuracy": "{:.1%}",
    "exact": "{:.1%}",
    "cider": "{:.2f}",
}


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
    """The titles of the table, and the cells of each run, from the last value of every metric.

    A metric that no run has is left out, such as the share of noisy picks of data without labels.
    """
    columns = {name: of for name, of in COLUMNS.items() if any(name in x for x in runs.values())}
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
        name: SCORES[number]
        for name, (evaluation, _, number) in parts.items()
        if evaluation and number in SCORES
    }


def evaluation(found: Mapping[str, int | float], earlier: Mapping[str, int | float]) -> str:
    """The main numbers of an evaluation, each with its change since `earlier` if it has it.

    The result is empty if `found` has no main number.
    """
    texts = []
    for name, form in scores(found).items():
        text = f"{name} {form.format(found[name])}"
        if name in earlier:
            change = form.replace(":", ":+").format(found[name] - earlier[name])
            text += f" ({change.rstrip('%')})"
        texts.append(text)
    return "  ".join(texts)


def is_run(folder: epath.Path) -> bool:
    """Whether `folder` is the workdir of a run that has written metrics."""
    return (folder / record.FILE).exists() and (folder / history.FILE).exists()


def values(workdir: epath.PathLike) -> dict[str, int | float]:
    """`values_of` all lines of a run."""
    return values_of(history.read(workdir))


def values_of(lines: Sequence[Mapping[str, int | float]]) -> dict[str, int | float]:
    """The last value of every metric; for the share of noisy picks, the last quarter's mean."""
    metrics: dict[str, int | float] = {}
    for line in lines:
        metrics |= line
    name = "selection/noisy_share"
    noisy = [line[name] for line in lines if name in line]
    if noisy:
        metrics[name] = float(np.mean(noisy[-max(1, len(noisy) // 4) :]))
    return metrics
