"""Chooses stable evaluations from runs of several seeds: `python -m aced.suite runs/seed*`.

Prints how much every evaluation varies over the runs, and the largest set whose average varies
least, as a line for a config (StableEval, arXiv 2411.18674; see `aced.evaluators.suites`).
"""

import dataclasses
import re
import sys
from collections.abc import Sequence

import numpy as np
from absl import app
from etils import epath

from aced import flag_settings, metrics, record, summary
from aced.config import ConfigError, flatten
from aced.evaluators import suites
from aced.flag_settings import setting

# In what runs of one pretraining may differ: the seed, and where things lie.
_PLACES = re.compile(r"seed|(.*\.)?(checkpoint|cache|path|data_dir|cache_folder|out)")


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """Which numbers, and what the suite is called."""

    numbers: str = setting("", "A regex of those to choose from. Empty: shares of right ones.")
    name: str = setting("stable", "Of the suite in the config.")

    def __post_init__(self):
        try:
            re.compile(self.numbers)
        except re.error as error:
            raise ConfigError(f"--numbers={self.numbers!r} is no regex: {error}.") from error


def choose(folders: Sequence[str], config: SuiteConfig) -> str:
    """Returns the table of evaluations, and the line for a config.

    Args:
        folders: workdirs of runs that differ in their seed.
        config: what to choose from.

    Raises:
        ConfigError: a folder is no run's, runs differ in more than the seed, or they have fewer
            than two seeds or no number in common.
    """
    runs = [epath.Path(folder).expanduser() for folder in folders]
    for run in runs:
        if not (run / record.FILE).exists() or not (run / metrics.FILE).exists():
            raise ConfigError(f"{run} is not the workdir of a run.")
    _check_alike(runs)
    found = [metrics.last_values(run) for run in runs]
    common = [name for name in (found[0] if found else ()) if all(name in x for x in found)]
    names = _wanted(common, config.numbers)
    scores = np.array([[values[name] for name in names] for values in found], np.float64)
    result = suites.stability(scores.reshape(len(runs), len(names)))
    means = scores.mean(axis=0)[result.order]
    ordered = [names[i] for i in result.order]
    width = max(map(len, ordered))
    lines = [f"{'evaluation':{width}}      mean  std of it  std of the average so far"]
    for k, name in enumerate(ordered):
        own, of_average = np.sqrt(result.variance[k]), result.spread[k]
        mark = "kept" if k < result.kept else ""
        lines.append(f"{name:{width}}  {means[k]:8.4f}  {own:9.5f}  {of_average:9.5f}  {mark}")
    kept = tuple(ordered[: result.kept])
    lines += ["", f"{len(kept)} of {len(names)}, over {len(runs)} runs:", ""]
    return "\n".join([*lines, f"config.suites.{config.name} = {kept!r}"])


def _wanted(names: Sequence[str], regex: str) -> list[str]:
    """Of the names of metrics those to choose from: by default the ones that are shares."""
    if regex:
        return [name for name in names if re.fullmatch(regex, name)]
    return [name for name, form in summary.scores(names).items() if form.endswith("%}")]


def _check_alike(runs: Sequence[epath.Path]) -> None:
    """Refuses runs of which one is another pretraining, or the same seed again."""
    seeds: dict[int, epath.Path] = {}
    first: dict[str, object] = {}
    for run in runs:
        settings = flatten(record.read(run)[0])
        first = first or settings
        for key in sorted(settings.keys() | first.keys()):
            if not _PLACES.fullmatch(key) and settings.get(key) != first.get(key):
                raise ConfigError(
                    f"{run} differs from {runs[0]} in more than the seed: {key} is "
                    f"{settings.get(key)!r}, not {first.get(key)!r}."
                )
        if settings["seed"] in seeds:
            raise ConfigError(
                f"{run} and {seeds[settings['seed']]} have the same seed, {settings['seed']}: they "
                "tell nothing about how much seeds matter."
            )
        seeds[settings["seed"]] = run


def main(argv: list[str]) -> None:
    """Flags -> table."""
    try:
        print(choose(argv[1:], flag_settings.read(SuiteConfig)))
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flag_settings.define(SuiteConfig)
    app.run(main)
