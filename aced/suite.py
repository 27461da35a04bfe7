"""Chooses stable evaluations from runs of several seeds: `python -m aced.suite runs/seed*`.

Prints the spread of every evaluation over the runs, and the most stable set as a line for a config
(StableEval, arXiv 2411.18674; see `aced.evaluators.suites`). The runs may differ only in
`--config.seed`.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from aced import command, command_line, flag_settings
from aced.checkpoints import record
from aced.config import ConfigError, expand, flatten
from aced.evaluators import suites
from aced.files import storage
from aced.flag_settings import FlagSettings, setting
from aced.methods import METHODS
from aced.metrics import history
from aced.train import summary
from aced.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class SuiteConfig(FlagSettings):
    """Which numbers, and what the suite is called."""

    numbers: str = setting(
        "", "Regular expression of the numbers to choose from. Empty: all shares of right answers."
    )
    name: str = setting("stable", "Of the suite in the config.")

    def _check(self) -> None:
        try:
            re.compile(self.numbers)
        except re.error as error:
            raise ConfigError(
                f"--numbers={self.numbers!r} is not a regular expression: {error}."
            ) from error


def choose(folders: Sequence[str], config: SuiteConfig) -> str:
    """Returns the table of evaluations, and the line for a config.

    Args:
        folders: workdirs of runs that differ in their seed.
        config: the numbers to choose from.

    Raises:
        ConfigError: a folder holds no run, runs differ in more than the seed or in their last step,
            there are fewer than two, or one lacks a number.
    """
    if not folders:
        raise ConfigError("No runs: give the workdirs of some that differ in their seed.")
    paths = [expand(folder) for folder in folders]
    for path in paths:
        storage.check_scheme(path, "The run", ("gs",))
    runs = [epath.Path(path) for path in paths]
    for run in runs:
        if not summary.is_run(run):
            raise ConfigError(f"{run} is not the workdir of a run.")
    records = [record.read(run) for run in runs]
    _check_alike(runs, records)
    metrics = [history.last_values(run) for run in runs]
    for run, values in zip(runs, metrics, strict=True):
        if not values:
            raise ConfigError(f"{run / history.FILE} has no complete line; leave this run out.")
    names = _names(records[0].settings.get("evals", {}), metrics[0], config.numbers)
    for run, values in zip(runs, metrics, strict=True):
        if values["step"] != metrics[0]["step"]:
            raise ConfigError(
                f"{run} is at step {values['step']} and {runs[0]} at {metrics[0]['step']}; finish "
                "both, since training changes numbers more than seeds do."
            )
        for name in names:
            if not math.isfinite(values.get(name, math.nan)):
                raise ConfigError(
                    f"{run} has no finite {name}; leave it out by --numbers, or this run."
                )
    scores = np.array([[values[name] for name in names] for values in metrics], np.float64)
    return _table(names, scores, config.name)


def _table(names: Sequence[str], scores: Float[np.ndarray, "s e"], name: str) -> str:
    result = suites.stability(scores)
    means = scores.mean(axis=0)[result.order]
    ordered = [names[i] for i in result.order]
    width = max(map(len, ordered))
    lines = [f"{'evaluation':{width}}      mean  std of it  std of the average so far"]
    for k, number in enumerate(ordered):
        std, average_std = np.sqrt(result.variance[k]), result.spread[k]
        mark = "kept" if k < result.kept else ""
        lines.append(f"{number:{width}}  {means[k]:8.4f}  {std:9.5f}  {average_std:9.5f}  {mark}")
    kept = tuple(ordered[: result.kept])
    lines += ["", f"{len(kept)} of {len(names)}, over {len(scores)} runs:", ""]
    return "\n".join([*lines, f"config.suites.{name} = {kept!r}"])


def _names(evals: Collection[str], metrics: Iterable[str], regex: str) -> list[str]:
    """The numbers of `evals` that match `regex`; if it is empty, those that are shares."""
    names = [name for name in metrics if name.rpartition("/")[0] in evals]
    shares = [name for name, form in summary.scores(names).items() if form.endswith("%}")]
    chosen = [name for name in names if re.fullmatch(regex, name)] if regex else shares
    if not chosen:
        reason = f"--numbers={regex!r} matches no number" if regex else "No number is a share"
        raise ConfigError(f"{reason} of the runs' evaluations; there are: {', '.join(names)}.")
    return chosen


def _check_alike(runs: Sequence[epath.Path], records: Sequence[record.Record]) -> None:
    """Raises a ConfigError unless runs differ in their seed, and in nothing else."""
    seeds: dict[int, epath.Path] = {}
    everything = [
        flatten(item.settings)
        | {"the data's fingerprint": item.data, "the frozen models and tokenizers": item.models}
        for item in records
    ]
    first = everything[0]
    method = METHODS[first["method.name"]][0]
    for run, settings in zip(runs, everything, strict=True):
        for key in sorted(settings.keys() | first.keys()):
            counts = key.startswith("evals.") or not record.may_change(TrainConfig, method, key)
            if counts and key != "seed" and settings.get(key) != first.get(key):
                raise ConfigError(
                    f"{run} differs from {runs[0]} in more than the seed: {key} is "
                    f"{settings.get(key)!r}, not {first.get(key)!r}."
                )
        seed = settings.get("seed")
        if seed in seeds:
            raise ConfigError(
                f"{run} and {seeds[seed]} have the same seed, {seed}: they tell nothing about how "
                "much seeds matter."
            )
        seeds[seed] = run


def main(argv: list[str]) -> None:
    """Flags -> table."""
    with command.running("The runs"):
        print(choose(argv[1:], flag_settings.read(SuiteConfig)))


if __name__ == "__main__":
    flag_settings.define(SuiteConfig)
    command_line.run(main, takes="runs")
