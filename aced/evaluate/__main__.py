"""Evaluates a trained or converted model on data sets, suites, or the evaluations of a config.

    python -m aced.evaluate --workdir=runs/mine --data=/data/wds/wds_cifar10
    python -m aced.evaluate --model=models/siglip --data='/data/wds/*' --suite=datacomp38
    python -m aced.evaluate --config=configs/small.py --workdir=runs/small

A workdir is evaluated at its last checkpoint. The numbers go to results.json after each data set; a
command that was stopped goes on where it was. results.md and results.svg compare them with those
of --baselines.
"""

import json
import os

import jax
from absl import flags, logging

from aced import command_line, flag_settings, run_flags
from aced.config import ConfigError, expand
from aced.errors import UserError
from aced.evaluate import comparison, results
from aced.evaluate.command import EvaluateConfig, out_folder, run
from aced.evaluators import benchmarks
from aced.files import ownership, storage


def main(argv: list[str]) -> None:
    """Flags -> numbers."""
    del argv
    values = flags.FLAGS
    folder = _workdir()
    with run_flags.running(f"--workdir={folder}"):
        wanted = flag_settings.read(EvaluateConfig)
        baselines = _baselines(wanted)
        numbers = run(values.config, wanted, folder, force=values.force)
        if jax.process_index() == 0:
            out = out_folder(wanted, folder)
            _write(out, {_name(out): numbers} | baselines, wanted)
            print(json.dumps(numbers, indent=2) if wanted.json else table(numbers))


def _workdir() -> str:
    """The workdir of the flags; without a config and a workdir, "", since the model is given."""
    values = flags.FLAGS
    if values.config is None and not values.workdir:
        return ""
    return run_flags.workdir()


def _baselines(wanted: EvaluateConfig) -> dict[str, comparison.Numbers]:
    """The numbers of other models by their names."""
    paths = [path for path in wanted.baselines.split(",") if path]
    return {_name(os.path.dirname(path)): results.read(path) for path in paths}


def _name(folder: str) -> str:
    """The name of the model whose results are in a folder."""
    parts = [part for part in expand(folder).split("/") if part]
    if len(parts) > 1 and parts[-1].startswith("evaluation"):
        parts.pop()
    return parts[-1] if parts else folder


def _write(out: str, models: dict[str, comparison.Numbers], wanted: EvaluateConfig) -> None:
    """Writes the table and the plot."""
    numbers = next(iter(models.values()))
    of_suites = [number for suite in wanted.suite for number in benchmarks.numbers(suite)]
    names = comparison.main_numbers(numbers, tuple(dict.fromkeys(of_suites)))
    about = [f"{name}: {benchmarks.SUITES[name].description}\n\n" for name in wanted.suite]
    text = comparison.table(models, names) + "\n" + "".join(about)
    storage.write(f"{out}/results.md", text.rstrip("\n").encode() + b"\n")
    try:
        storage.write(f"{out}/results.svg", comparison.plot(models, names))
    except ConfigError as error:  # matplotlib is optional
        logging.warning("There is no results.svg. %s", error)
    logging.info("The results are in %s.", out)


def table(numbers: dict[str, float]) -> str:
    """The numbers, one per line."""
    width = max(map(len, numbers))
    return "\n".join(f"{name:{width}}  {value:.6g}" for name, value in numbers.items())


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a config may be left out. See `command_line.run`.

    Raises:
        UserError: there is no model.
    """
    if any(arg.lstrip("-").partition("=")[0] == "config" for arg in argv[1:]):
        return run_flags.parse(argv)
    rest = command_line.parsed(argv)
    if not (flags.FLAGS.workdir or flags.FLAGS.model):
        raise UserError(
            "There is no model: give --workdir=RUN or --model=FOLDER, or the --config of a run."
        )
    return rest


if __name__ == "__main__":
    run_flags.define()
    flag_settings.define(EvaluateConfig)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    command_line.run(main, parse)
