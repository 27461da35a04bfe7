"""Trains a run for each combination of some settings: `python -m aced.sweep --config=...`.

    python -m aced.sweep --config=configs/small.py:data=/data/all --out=runs/peaks \\
        --set=optimizer.schedule.peak=1e-3,3e-4 --set=:method=iid,aced --seeds=3

trains 12 runs one after the other, each in a process of its own (`python -m aced.main`) and in a
subfolder of --out. The same command skips runs that are finished and resumes the others. Flags
`--config.KEY=VALUE` are passed on to every run. With --index only that run is trained, in this
process, as a member of an array of jobs (launch/slurm.sh --sweep=12).
"""

import dataclasses
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

from absl import flags, logging
from annotated_types import Interval
from etils import epath

from aced import command, command_line, flag_settings, nearest
from aced.bounds import NonEmpty, PositiveInt
from aced.config import ConfigError, expand
from aced.files import own_files, ownership, storage
from aced.flag_settings import FlagSettings, setting

FILE = "sweep.json"  # in --out: the arguments of the finished runs, by name
_STOPPED = (42, 130)  # exit codes of a run that was stopped and saved: parallel/preemption.py


@dataclasses.dataclass(frozen=True)
class SweepConfig(FlagSettings):
    """The runs of a sweep."""

    config: NonEmpty = setting("", "The recipe of all runs, with its arguments.")
    set: tuple[str, ...] = setting(
        (),
        "KEY=VALUE,VALUE,...: a setting and its values, such as "
        "optimizer.schedule.peak=1e-3,3e-4; with a colon before KEY, an argument of the recipe, "
        "such as :method=iid,aced. May be repeated; every combination is trained.",
    )
    seeds: PositiveInt = setting(1, "Runs of each combination, with config.seed = 0, 1, ...")
    out: str = setting("", "Folder of the runs. Empty: runs/sweep_RECIPE.")
    index: Annotated[int, Interval(ge=-1)] = setting(-1, "Train only this run, from 0. -1: all.")
    list: bool = setting(False, "Print the command of each run, and train none.")

    def _check(self) -> None:
        storage.check_scheme(self.out, "--out", ("gs",))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sweep."""

    name: str  # of its folder
    arguments: tuple[str, ...]  # of aced.main


def runs(config: SweepConfig, passed_on: Sequence[str] = ()) -> list[Run]:
    """Returns the runs of a sweep, the last setting varying fastest, then the seed.

    Args:
        config: of the sweep.
        passed_on: arguments that all runs get.

    Raises:
        ConfigError: a value of `set` is malformed, or a setting is given twice.
    """
    axes = [_axis(text) for text in config.set]
    if config.seeds > 1:
        axes.append(("seed", [str(seed) for seed in range(config.seeds)]))
    keys = [key for key, _ in axes] + [
        item.split("=")[0].removeprefix("--config.") for item in passed_on
    ]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"{repeated} is set twice; give all its values in one --set.")
    short = [key.lstrip(":").rpartition(".")[2] for key, _ in axes]
    titles = [
        key.lstrip(":") if short.count(name) > 1 else name
        for (key, _), name in zip(axes, short, strict=True)
    ]
    out = []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = [(key, value) for (key, _), value in zip(axes, values, strict=True)]
        name = ",".join(f"{title}={value}" for title, value in zip(titles, values, strict=True))
        name = re.sub(r"[^\w.,=+-]", "_", name) or "run"
        recipe = config.config
        for key, value in chosen:
            if key.startswith(":"):
                recipe += f"{',' if ':' in recipe else ':'}{key[1:]}={value}"
        settings = [f"--config.{key}={value}" for key, value in chosen if not key.startswith(":")]
        folder = os.path.join(folder_of(config), name)
        arguments = (f"--config={recipe}", f"--workdir={folder}", *settings, *passed_on)
        out.append(Run(name, arguments))
    names = [run.name for run in out]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"Two runs would be called {repeated}; leave one of their values out.")
    return out


def _axis(text: str) -> tuple[str, list[str]]:
    """The setting and the values of `KEY=VALUE,VALUE`; commas in brackets belong to a value."""
    key, _, values = text.partition("=")
    listed = re.findall(r"(?:\([^)]*\)|\[[^\]]*\]|[^,(\[])+", values)
    if not re.fullmatch(r":?\w[\w.]*", key) or not listed:
        raise ConfigError(f"--set={text} must be KEY=VALUE,VALUE,...; see --help.")
    return key.removeprefix("config."), listed


def folder_of(config: SweepConfig) -> str:
    """The folder of a sweep's runs."""
    path = config.config.partition(":")[0].removesuffix("/config.json")  # or of a run
    recipe = os.path.splitext(os.path.basename(path))[0]
    return expand(config.out or os.path.join("runs", f"sweep_{recipe}"))


def train_all(config: SweepConfig, wanted: Sequence[Run], *, force: bool = False) -> int:
    """Trains the runs that are not finished, one after the other. Returns the exit code.

    A run that fails after its start does not keep the others from being trained; one that cannot
    start ends the sweep, since the command is wrong.
    """
    folder = epath.Path(folder_of(config))
    failed = []
    with ownership.owned(str(folder / ownership.FILE), force):
        finished = _finished(folder)
        for number, run in enumerate(wanted, 1):
            title = f"Run {number} of {len(wanted)}: {run.name}"
            if finished.get(run.name) == list(run.arguments):
                logging.info("%s is finished.", title)
                continue
            logging.info("%s: %s", title, _line(run))
            code, signalled = _train(run)
            if code in _STOPPED or signalled:
                logging.warning("The sweep stops here; the same command resumes it.")
                return code
            if code == 0:
                finished[run.name] = list(run.arguments)
                storage.write(str(folder / FILE), own_files.dumps(finished))
                continue
            path = folder / run.name
            if not path.exists() or not any(path.iterdir()):
                logging.error("%s cannot start; its error is above. Correct the command.", title)
                return code
            logging.error("%s failed with exit code %d; its error is above.", title, code)
            failed.append(run.name)
    if failed:
        logging.error(
            "%d of %d runs failed; the same command resumes them: %s",
            len(failed),
            len(wanted),
            "  ".join(failed),
        )
    print(f"Compare the runs: python -m aced.report {shlex.quote(str(folder))}/*/")
    return 1 if failed else 0


def _finished(folder: epath.Path) -> dict[str, list[str]]:
    file = folder / FILE
    if not file.exists():
        return {}
    with own_files.reading(file, "remove it; finished runs are then started once more, and end"):
        return own_files.loads(file.read_bytes())


def _line(run: Run) -> str:
    return shlex.join(["python", "-m", "aced.main", *run.arguments])


def _train(run: Run) -> tuple[int, bool]:
    """Trains a run in a process of its own, to which signals are passed on.

    The process is not in the foreground of the terminal, so that Ctrl-C reaches it only once.

    Returns:
        Its exit code, and whether a signal arrived. A signal ends a run that has no step to save
        yet, with the code 128 + signal.
    """
    words = [sys.executable, "-m", "aced.main", *run.arguments]
    process: subprocess.Popen | None = None
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if process is not None:
            process.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(words, start_new_session=True)
        if received:  # before there was a process
            process.send_signal(received[-1])
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (128 - code if code < 0 else code), bool(received)


def main(argv: list[str]) -> None:
    """Flags -> runs."""
    command.quiet_libraries()
    with command.running(f"--out={flags.FLAGS.out}"):
        config = flag_settings.read(SweepConfig)
        passed_on = argv[1:]
        if wrong := [x for x in passed_on if not re.match(r"--(config\.\w|distributed)", x)]:
            found = command_line.alike(wrong[0].lstrip("-").partition("=")[0])
            raise ConfigError(
                f"{wrong[0]} is neither a flag of this command nor --config.KEY=VALUE"
                f"{nearest.did_you_mean(found)}"
            )
        wanted = runs(config, passed_on)
        if "--distributed" in passed_on and config.index < 0 and not config.list:
            raise ConfigError("With --distributed, start each run as a job of its own: --index=N.")
        if config.index >= len(wanted):
            raise ConfigError(f"--index={config.index}: the sweep has {len(wanted)} runs, from 0.")
        if config.index >= 0:
            wanted = wanted[config.index : config.index + 1]
        if config.list:
            print("\n".join(map(_line, wanted)))
        elif config.index >= 0:  # replaces this process, which so gets all signals once
            os.execv(sys.executable, [sys.executable, "-m", "aced.main", *wanted[0].arguments])
        else:
            sys.exit(train_all(config, wanted, force=flags.FLAGS.force))


if __name__ == "__main__":
    flag_settings.define(SweepConfig)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    command_line.run(main, command_line.passing_on, takes="flags of aced.main")
