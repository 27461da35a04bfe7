"""The runs of a page: their settings, some of their metrics, and how they ran."""

import dataclasses
import datetime
import itertools
from collections.abc import Sequence
from typing import Any

from etils import epath

from aced import methods
from aced.checkpoints import record
from aced.config import ConfigError, expand, from_config
from aced.files import ownership, storage
from aced.metrics import history
from aced.train import starts, summary
from aced.train.early_stop import EarlyStop, EarlyStopConfig

MOST_LINES = 2000  # runs with more lines of metrics are not read whole
COLUMNS = ("run", "began", "step", "time", "device", "data", "commit")  # of `how`


@dataclasses.dataclass(frozen=True)
class Run:
    """The data of a run, read from its workdir."""

    name: str  # on the page
    folder: epath.Path
    settings: dict[str, Any]
    fingerprint: str  # of its data
    lines: list[dict[str, int | float]]  # of metrics; all that have scores of evaluations
    skipped_lines: int  # incomplete or damaged lines of metrics
    starts: list[dict[str, Any]]  # lines of starts.jsonl
    owner: ownership.Owner | None  # the process that works on the run, or died

    @property
    def method(self) -> str:
        """The name of the method in the papers."""
        method = self.settings["method"]
        try:
            return methods.parse(method).title
        except ConfigError:  # settings of another version
            return method["name"]

    @property
    def step(self) -> int:
        """The last step with metrics."""
        return self.lines[-1]["step"] if self.lines else 0

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to train; of runs of earlier versions this is not known."""
        if self.starts and self.step >= self.starts[-1]["total_steps"]:
            return True
        early = from_config(EarlyStopConfig, self.settings.get("early_stop", {}))
        scores = [line[early.metric] for line in self.lines if early.metric in line]
        return EarlyStop(early, scores).reached

    @property
    def is_broken_off(self) -> bool:
        """Whether something is left to train, and the process that trained has died."""
        return not self.is_finished and self.owner is not None and self.owner.is_dead


def open_all(folders: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs in `folders`, each after the runs before it, and the folders without a run.

    Runs have their shortest unique names; a run before another one is "RUN/NAME". The runs before
    a run are listed already while they train, when their folder holds no other run yet.
    """
    paths: dict[str, epath.Path] = {}
    others = []
    for name in dict.fromkeys(folder.rstrip("/") for folder in folders):
        path = expand(name)
        storage.check_scheme(path, "The run", ("gs",))
        paths |= _runs_in(name, epath.Path(path))
        if name not in paths:
            others.append(name)
    names = _short(list(paths))
    return [_open(names[name], path) for name, path in paths.items()], others


def _runs_in(name: str, folder: epath.Path) -> dict[str, epath.Path]:
    """The run in `folder`, after the runs before it."""
    if is_run := summary.is_run(folder):
        before = list(record.read(folder).settings.get("before", {}))
    elif owner_of(folder) is not None:
        before = sorted(path.name for path in folder.iterdir() if path.is_dir())
    else:
        return {}
    found: dict[str, epath.Path] = {}
    for earlier in before:
        found |= _runs_in(f"{name}/{earlier}", folder / earlier)
    return found | ({name: folder} if is_run else {})


def owner_of(folder: epath.PathLike) -> ownership.Owner | None:
    """The process that works in `folder`, such as on a run before its own, or that died there."""
    return ownership.owner_in(str(epath.Path(expand(str(folder))) / ownership.FILE))


def _short(names: Sequence[str]) -> dict[str, str]:
    """The names without the folders that all of them are in."""
    above = [name.split("/")[:-1] for name in names]
    depth = min(map(len, above), default=0)
    levels = (len({parts[i] for parts in above}) == 1 for i in range(depth))
    shared = sum(itertools.takewhile(bool, levels))
    return {name: "/".join(name.split("/")[shared:]) for name in names}


def _open(name: str, folder: epath.Path) -> Run:
    settings, fingerprint, _ = record.read(folder)
    lines, skipped = history.read_some(folder, MOST_LINES, summary.SCORES)
    return Run(
        name, folder, settings, fingerprint, lines, skipped, starts.read(folder), owner_of(folder)
    )


def how(run: Run) -> list[str]:
    """When, where, on what and with which code a run ran, in `COLUMNS`; "-": not recorded."""
    first, last = (run.starts[0], run.starts[-1]) if run.starts else ({}, {})
    seconds = max((line.get("wall/seconds", 0) for line in run.lines), default=0)
    began = first.get("time", "-")[:16].replace("T", " ")
    devices = f"{last['devices']} x {last['device']}" if last else "-"
    data = f"{last['data']}, {last['examples']:,} examples" if last else "-"
    total = f" of {last['total_steps']:,}" if last else ""
    commits = dict.fromkeys(start["commit"] for start in run.starts if start["commit"])
    return [
        run.name,
        began,
        f"{run.step:,}{total}",
        str(datetime.timedelta(seconds=round(seconds))),
        devices,
        data,
        ", ".join(commits) or "-",
    ]
