"""A model's numbers beside those of others: a Markdown table and a plot."""

import io
from collections.abc import Mapping, Sequence

from aced.config import ConfigError
from aced.evaluators import suites

# The main number of an evaluation that is in no suite: the first of these that it has.
_MAIN = (
    *("map_11point", "top1", "mean_r1", "jaccard_10_12"),
    *("cider", "soft_accuracy", "accuracy", "exact"),
)
_CIDER = "/cider"  # not in per cent
_HEIGHT, _WIDTH = 0.26, 8.0  # inches: of a row, of the plot

Numbers = Mapping[str, float]  # by their full names, such as "cifar10/top1"


def main_numbers(numbers: Numbers, wanted: Sequence[str] = ()) -> list[str]:
    """The names of the averages, of the `wanted` numbers, and of one number of each other set."""
    evaluations = dict.fromkeys(name.rpartition("/")[0] for name in numbers)
    averages = [name for name in numbers if name.startswith(f"{suites.PREFIX}/")]
    shown = [name for name in wanted if name in numbers]
    covered = {name.rpartition("/")[0] for name in shown} | {suites.PREFIX}
    for evaluation in evaluations:
        if evaluation not in covered:
            mains = [f"{evaluation}/{main}" for main in _MAIN if f"{evaluation}/{main}" in numbers]
            shown += mains[:1]
    return averages + shown


def table(models: Mapping[str, Numbers], names: Sequence[str]) -> str:
    """A Markdown table of numbers in per cent: a row for each of `names`, a column for each model.

    A number that a model does not have is a dash; CIDEr is not in per cent.
    """
    rows = [["", *models], ["---", *["---:"] * len(models)]]
    rows += [[name, *(_shown(name, numbers) for numbers in models.values())] for name in names]
    return "".join(f"| {' | '.join(_escaped(cell) for cell in row)} |\n" for row in rows)


def plot(models: Mapping[str, Numbers], names: Sequence[str]) -> bytes:
    """A dot for each model on a line for each of `names` that is in per cent, as SVG.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"A plot needs `pip install '.[plots]'`: {error}") from error
    names = [name for name in names if not name.endswith(_CIDER)]
    # Reproducible output: no date, no random names of clip paths.
    with mpl.rc_context({"svg.hashsalt": "aced"}):
        figure = Figure(figsize=(_WIDTH, 1.0 + _HEIGHT * len(names)), layout="constrained")
        axis = figure.subplots()
        for (label, numbers), marker in zip(models.items(), _markers(len(models)), strict=True):
            present = [row for row, name in enumerate(names) if name in numbers]
            values = [100 * numbers[names[row]] for row in present]
            axis.plot(values, present, marker, label=label.replace("$", r"\$").lstrip("_"))
        axis.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
        axis.invert_yaxis()
        axis.set_xlabel("%")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _markers(count: int) -> list[str]:
    return [("o", "s", "^", "D", "v", "P", "X", "*")[i % 8] for i in range(count)]


def _shown(name: str, numbers: Numbers) -> str:
    if name not in numbers:
        return "-"
    return f"{numbers[name]:.3f}" if name.endswith(_CIDER) else f"{100 * numbers[name]:.2f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
