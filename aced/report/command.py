"""Creates the page that compares runs, and the page of a run's choices."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from aced.bounds import NonNegativeInt
from aced.checkpoints import record
from aced.config import ConfigError, expand, flatten
from aced.data.records import DatasetError
from aced.files import storage
from aced.flag_settings import FlagSettings, setting
from aced.metrics import history
from aced.report import curves, page
from aced.train import chosen, summary
from aced.train.config import TrainConfig, parse

PICTURES = "picks.html"
_PLACES = (0.0, 0.5, 1.0)  # relative positions in the file of picks
_CURVES = (  # besides the scores of evaluations
    "loss",
    "selection/noisy_share",
    "selection/variety",
    "selection/perplexity",
    "selection/near_copies",
    "selection/easy_overlap",
)
_MOST_SETTINGS = 60  # rows in the table of settings that differ
_EARLIER = ("before", "before_caches")  # settings of earlier runs


@dataclasses.dataclass(frozen=True)
class ReportConfig(FlagSettings):
    """Where the page goes, and how much is on it."""

    out: str = setting("report.html", "The page to write; one that is there is replaced.")
    pictures: NonNegativeInt = setting(
        12, "Of either kind, at each of three steps of a run; 0: none."
    )

    def _check(self) -> None:
        storage.check_scheme(self.out, "--out", ("gs",))


@dataclasses.dataclass(frozen=True)
class Run:
    """The data of a run, read from its workdir."""

    folder: epath.Path
    settings: dict[str, Any]
    fingerprint: str  # of its data
    lines: list[dict[str, int | float]]


def report(folders: Sequence[str], config: ReportConfig) -> str:
    """Returns the page of the runs in `folders`, with a list of the folders that hold no run.

    Raises:
        ConfigError: no folder holds a run, or matplotlib is not installed.
    """
    runs, others = _open(folders)
    if not runs:
        raise ConfigError(
            f"None of {', '.join(folders) or 'no folders'} is the workdir of a run; give some, "
            "such as runs/*."
        )
    titles, cells = summary.rows({name: summary.values(run.folder) for name, run in runs.items()})
    parts = [page.table("Runs", ["run", *titles], [[name, *row] for name, row in cells.items()])]
    if others:
        parts.append(f"<p>No workdirs of runs: {page.escape(', '.join(others))}</p>")
    for message in (m for run in runs.values() for m in history.lost_lines(run.folder)):
        logging.warning("%s", message)
        parts.append(f"<p>{page.escape(message)}</p>")
    parts.append(page.table("Settings that differ", ["setting", *runs], _differing(runs)))
    parts.append("<h2>Curves</h2>")
    lines = {name: run.lines for name, run in runs.items()}
    for name in _curves(lines):
        url = page.data_url(curves.draw(name, lines), "image/svg+xml")
        parts.append(f'<img class="curve" alt="{page.escape(name)}" src="{url}">')
    if config.pictures:
        for name, run in runs.items():
            parts += [f"<h2>What {page.escape(name)} chose</h2>", *_pictures(run, config.pictures)]
    return page.document("Runs", parts)


def write_pictures(workdir: epath.PathLike) -> epath.Path:
    """Writes a page to a run's workdir, with chosen and rejected examples at three steps.

    Returns:
        Path of the page. If the data cannot be read, the page has the reason instead.
    """
    folder = epath.Path(workdir)
    runs, _ = _open([str(folder)])
    parts = [part for run in runs.values() for part in _pictures(run, ReportConfig.pictures)]
    out = folder / PICTURES
    out.write_text(page.document(f"What {folder.name} chose", parts), encoding="utf-8")
    return out


def _open(folders: Sequence[str]) -> tuple[dict[str, Run], list[str]]:
    """The runs by their shortest unique names, and the folders that hold no run."""
    runs, others = {}, []
    for name in dict.fromkeys(folder.rstrip("/") for folder in folders):
        path = expand(name)
        storage.check_scheme(path, "The run", ("gs",))
        folder = epath.Path(path)
        if summary.is_run(folder):
            runs[name] = Run(folder, *record.read(folder)[:2], history.read(folder))
        else:
            others.append(name)
    short = {name: name.rpartition("/")[2] for name in runs}
    if len(set(short.values())) == len(short):
        runs = {short[name]: run for name, run in runs.items()}
    return runs, others


def _differing(runs: Mapping[str, Run]) -> list[list[str]]:
    """A row for each setting that differs between runs, without those of earlier runs."""
    settings = {name: flatten(run.settings) for name, run in runs.items()}
    keys = sorted({key for values in settings.values() for key in values})
    rows = []
    for key in keys:
        # A key that is a setting in one run and a group in another gets a single row.
        parents = [".".join(key.split(".")[:n]) for n in range(1, key.count(".") + 1)]
        if parents and (parents[0] in _EARLIER or not set(parents).isdisjoint(keys)):
            continue
        values = [_text(run_settings.get(key, ...)) for run_settings in settings.values()]
        if len(set(values)) > 1:
            rows.append([key, *values])
    more = len(rows) - _MOST_SETTINGS
    return rows[:_MOST_SETTINGS] + ([[f"and {more} more"]] if more > 0 else [])


def _text(value: Any) -> str:
    if value is ...:
        return "..."
    return value if isinstance(value, str) else json.dumps(value)


def _curves(lines: Mapping[str, curves.Run]) -> list[str]:
    """The names of the metrics to draw: losses, noisy picks, and scores of evaluations."""
    names = dict.fromkeys(name for run in lines.values() for line in run for name in line)
    return [name for name in names if name in _CURVES or name in summary.scores(names)]


def _pictures(run: Run, count: int) -> list[str]:
    try:
        settings = parse(run.settings)
        shown = chosen.of_run(run.folder, settings, run.fingerprint, _PLACES, count)
    except (OSError, ConfigError, DatasetError) as error:  # the page is useful without images
        return [f"<p>No pictures: {page.escape(str(error))}</p>"]
    parts = []
    for batch in shown:
        parts.append(
            f"<h3>Step {batch.step:,}: {settings.batch_size:,} of {batch.size:,}</h3>"
            f"<p>Chosen:</p>{_figures(batch.chosen, settings)}"
        )
        if batch.left:
            parts.append(f"<p>Left:</p>{_figures(batch.left, settings)}")
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
