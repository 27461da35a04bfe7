"""Creates the page that compares runs, and the page of a run's choices."""

import dataclasses
import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from aced.bounds import NonNegativeInt
from aced.config import ConfigError, flatten
from aced.data.sources import SourceConfig
from aced.files import storage
from aced.files.ownership import Owner
from aced.flag_settings import FlagSettings, setting
from aced.metrics import history
from aced.report import curves, galleries, page, panels, runs, seeds
from aced.report.runs import Run
from aced.train import summary

PICTURES = "picks.html"
_MOST_SETTINGS = 60  # rows in the table of settings that differ
_EARLIER = ("before", "before_caches")  # settings of earlier runs
_LAST = ("evals", "checkpoint", "metrics")  # settings that do not change what is learned
_GROUP = "..."  # a group of settings
_NONE = "-"  # a setting that a run does not have, or that is None or empty


@dataclasses.dataclass(frozen=True)
class ReportConfig(FlagSettings):
    """Where the page goes, and how much is on it."""

    out: str = setting("report.html", "The page to write; one that is there is replaced.")
    pictures: NonNegativeInt = setting(
        12, "Of either kind, at each of three steps of a run; 0: none."
    )
    watch: NonNegativeInt = setting(
        0,
        "Seconds after which the page is written again, until all runs are finished; an open page "
        "shows the new one by itself. 0: write it once.",
    )

    def _check(self) -> None:
        storage.check_scheme(self.out, "--out", ("gs",))


def report(folders: Sequence[str], config: ReportConfig) -> tuple[str, bool]:
    """Returns the page of the runs in `folders`, with a list of the folders that hold no run.

    Returns:
        The page, and whether all runs are finished, or broken off because their processes died. A
        folder in which a process works counts as an unfinished run, and while the page is watched
        also one that may become a run.

    Raises:
        ConfigError: no folder holds a run and the page is not watched, or matplotlib is not
            installed.
    """
    found, others = runs.open_all(folders)
    if not found and not (folders and config.watch):
        raise ConfigError(
            f"None of {', '.join(folders) or 'no folders'} is the workdir of a run; give some, "
            "such as runs/*."
        )
    now = datetime.datetime.now(datetime.UTC)
    parts = [f"<p>Written at {now:%Y-%m-%d %H:%M:%S} UTC.</p>"]
    owners = {name: runs.owner_of(name) for name in others}
    is_finished = _is_finished(found, owners)
    parts += [f"<p>{page.escape(note)}</p>" for note in _notes(found, owners)]
    refresh = 0 if is_finished else config.watch
    if not found:
        return page.document("Runs", parts, refresh), is_finished
    values = {run.name: summary.values_of(run.lines) for run in found}
    titles, cells = summary.rows(values)
    rows = [[run.name, run.method, *cells[run.name]] for run in found]
    parts.append(page.table("Runs", ["run", "method", *titles], rows))
    parts.append(page.table("How they ran", runs.COLUMNS, map(runs.how, found)))
    names = [run.name for run in found]
    parts.append(page.table("Settings that differ", ["setting", *names], _differing(found)))
    groups = seeds.groups(found)
    parts += _curves(found, groups)
    if config.pictures:
        parts += galleries.of_runs([members[0] for members in groups.values()], config.pictures)
    return page.document("Runs", parts, refresh), is_finished


def _is_finished(found: Sequence[Run], owners: Mapping[str, Owner | None]) -> bool:
    """Whether nothing will change, given the runs, and the owners of the folders that hold none."""
    is_begun = any(owner is not None and not owner.is_dead for owner in owners.values())
    may_begin = not found and None in owners.values()
    is_over = all(run.is_finished or run.is_broken_off for run in found)
    return is_over and not is_begun and not may_begin


def _notes(found: Sequence[Run], owners: Mapping[str, Owner | None]) -> list[str]:
    """Sentences about folders that hold no run, runs that were broken off, and lines not shown."""
    dead = {name: owner for name, owner in owners.items() if owner is not None and owner.is_dead}
    begun = [name for name, owner in owners.items() if owner is not None and name not in dead]
    empty = [name for name, owner in owners.items() if owner is None]
    notes = [f"No metrics yet: {', '.join(begun)}"] if begun else []
    notes += [f"No workdirs of runs: {', '.join(empty)}"] if empty else []
    dead |= {run.name: run.owner for run in found if run.is_broken_off}
    notes += [
        f"{name} was broken off, its process has ended: {owner}. The same command resumes it."
        for name, owner in dead.items()
    ]
    for run in found:
        if run.skipped_lines:
            notes.append(
                f"{run.folder / history.FILE}: {run.skipped_lines} of the lines that were read are "
                "incomplete or damaged, and are left out; the log of this command names them."
            )
        lost = history.lost_lines(run.folder)
        for message in lost:
            logging.warning("%s", message)
        notes += lost
    return notes


def write_pictures(workdir: epath.PathLike) -> epath.Path:
    """Writes a page to a run's workdir, with chosen and rejected examples at three steps.

    Returns:
        Path of the page. If the data cannot be read, the page has the reason instead.
    """
    folder = epath.Path(workdir)
    found, _ = runs.open_all([str(folder)])
    parts = [part for run in found[-1:] for part in galleries.of_run(run, ReportConfig.pictures)]
    out = folder / PICTURES
    out.write_text(page.document(f"What {folder.name} chose", parts), encoding="utf-8")
    return out


def _differing(found: Sequence[Run]) -> list[list[str]]:
    """A row for each setting that differs between runs, without those of earlier runs.

    A group that some runs do not have is one row, and its settings are compared between the others.
    """
    settings = [_read(run) for run in found]
    groups = [{group for key in values for group in _above(key)} for values in settings]
    keys = {key for values in settings for key in values}.union(*groups)
    rows = []
    for key in sorted(keys, key=lambda key: (key.partition(".")[0] in _LAST, key)):
        if key.partition(".")[0] in _EARLIER:
            continue
        having = [all(group in has for group in _above(key)) for has in groups]
        values = [
            _GROUP if key in has else _text(run_settings.get(key))
            for run_settings, has in zip(settings, groups, strict=True)
        ]
        if len(set(itertools.compress(values, having))) > 1:
            rows.append([key, *values])
    more = len(rows) - _MOST_SETTINGS
    return rows[:_MOST_SETTINGS] + ([[f"and {more} more"]] if more > 0 else [])


def _read(run: Run) -> dict[str, Any]:
    """The settings of a run, without those of sources that it does not read."""
    read = run.settings.get("data", {}).get("source")
    unread = {f"data.{kind}" for kind in SourceConfig.kinds() if kind != read}
    return {
        key: value
        for key, value in flatten(run.settings).items()
        if ".".join(key.split(".")[:2]) not in unread
    }


def _above(key: str) -> list[str]:
    """The groups that a setting or a group is in."""
    return [key[:i] for i, letter in enumerate(key) if letter == "."]


def _text(value: Any) -> str:
    if value is None or value == "":
        return _NONE
    if isinstance(value, float):
        return f"{value:.12g}"  # without the last digits, which are those of rounding
    return value if isinstance(value, str) else json.dumps(value)


def _curves(found: Sequence[Run], groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """The panels, each over examples and over FLOPs, with a legend for all of them."""
    colours = curves.colours(list(groups))
    parts = ["<h2>Curves</h2>", page.legend(colours)]
    if any(len(members) > 1 for members in groups.values()):
        parts.append("<p>n: seeds of otherwise equal runs; mean, lowest and highest.</p>")
    for panel in panels.of(found):
        shown = {run.name for run in panel.runs}
        drawn = []
        for cost in curves.AXES:
            lines, baselines = {}, {}
            for label, members in groups.items():
                metrics = [run.lines for run in members if run.name in shown]
                if curve := curves.curve(metrics, cost, panel.metric):
                    lines[label] = curve
                if panel.baseline and (curve := curves.curve(metrics, cost, panel.baseline)):
                    baselines[label] = curve
            if lines:
                drawn.append(curves.draw(lines, baselines, colours, cost, is_share=panel.is_share))
        if drawn:
            note = "Dotted: of the whole super-batch." if baselines else ""
            parts.append(page.panel(panel.title, note, drawn))
    return parts
