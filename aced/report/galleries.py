"""Pictures with captions that runs chose and rejected."""

from collections.abc import Sequence

from absl import logging

from aced.config import ConfigError
from aced.data.records import DatasetError
from aced.report import page
from aced.report.runs import Run
from aced.train import chosen
from aced.train.config import TrainConfig, parse

_PLACES = (0.0, 0.5, 1.0)  # relative positions in the file of picks
_MANY = 8  # galleries; if there are more, each has the last step alone


def of_runs(runs: Sequence[Run], count: int) -> list[str]:
    """The headings and pictures of the runs that select.

    Args:
        runs: any runs.
        count: the maximal number of examples of either kind.
    """
    selecting = []
    for run in runs:
        try:
            if parse(run.settings).method.selects:
                selecting.append(run)
        except ConfigError as error:  # settings of another version
            logging.warning("%s has no pictures: %s", run.name, error)
    places = _PLACES if len(selecting) <= _MANY else _PLACES[-1:]
    parts = []
    for run in selecting:
        parts += [f"<h2>What {page.escape(run.name)} chose</h2>", *of_run(run, count, places)]
    return parts


def of_run(run: Run, count: int, places: Sequence[float] = _PLACES) -> list[str]:
    """The pictures of a run; if the data cannot be read, the reason instead.

    Args:
        run: that selects.
        count: the maximal number of examples of either kind.
        places: relative positions of the steps in the file of picks.
    """
    try:
        settings = parse(run.settings)
        shown = chosen.of_run(run.folder, settings, run.fingerprint, places, count)
    except (OSError, ConfigError, DatasetError) as error:  # the page is useful without images
        return [f"<p>No pictures: {page.escape(str(error))}</p>"]
    parts = []
    for batch in shown:
        parts.append(
            f"<h3>Step {batch.step:,}: {settings.batch_size:,} of {batch.size:,}</h3>"
            f"<p>Chosen:</p>{_figures(batch.chosen, settings)}"
        )
        if batch.left:
            parts.append(f"<p>Rejected:</p>{_figures(batch.left, settings)}")
    if any(x.is_noisy is not None for batch in shown for x in (*batch.chosen, *batch.left)):
        parts.append("<p>Framed in red: pairs that the data set labels as wrong.</p>")
    return parts


def _figures(examples: Sequence[chosen.Example], settings: TrainConfig) -> str:
    figures = []
    for example in examples:
        text = f"{example.id}: {'; '.join(example.texts)}"
        if example.picture is None:
            figures.append(f"<figure>{page.escape(text)}</figure>")
        else:
            limit = settings.data.max_pixels
            figures.append(page.figure(example.picture, text, limit, marked=bool(example.is_noisy)))
    return "".join(figures)
