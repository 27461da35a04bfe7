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
import sys

import jax
from absl import app, flags, logging

from aced import flag_settings
from aced import main as training
from aced.config import ConfigError, expand
from aced.evaluate import comparison, results
from aced.evaluate.command import EvaluateConfig, out_folder, run
from aced.evaluators import benchmarks
from aced.files import ownership, storage


def main(argv: list[str]) -> None:
    """Flags -> numbers."""
    values = flags.FLAGS
    folder = _workdir()
    with training.running(argv, f"--workdir={folder}"):
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
    return training.workdir()


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


def parse_flags(argv: list[str]) -> list[str]:
    """The flags; a config may be left out."""
    if any(arg.lstrip("-").partition("=")[0] == "config" for arg in argv[1:]):
        return training.parse_flags(argv)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"\n{error}\nSee python -m aced.evaluate --help.")
    values = flags.FLAGS
    if not (values.workdir or values.model):
        sys.exit(
            "\nThere is no model: give --workdir=RUN or --model=FOLDER, or the --config of a run.\n"
            "See python -m aced.evaluate --help."
        )
    return rest


if __name__ == "__main__":
    flags.adopt_module_key_flags(training)
    flag_settings.define(EvaluateConfig)
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    app.run(main, flags_parser=parse_flags)
