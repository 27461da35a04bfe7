"""Evaluates a trained or converted model: `python -m aced.evaluate --config=... --workdir=...`.

Runs the evaluations of the config, which may be changed and added as in training, on the model of a
run (by default of the workdir) or of a folder written by `aced.convert`. For a run's last
checkpoint, the numbers equal those logged in training.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

import jax
from absl import flags

from aced import command_line, evaluators, flag_settings, run_flags
from aced.config import ConfigError, Settings
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import suites
from aced.flag_settings import FlagSettings, setting
from aced.methods.frozen import CheckpointOf, evaluated_parameters, load_model, trained_model
from aced.models import int8_weights
from aced.parallel import mesh as meshes
from aced.train import program
from aced.train.config import parse


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(FlagSettings):
    """Which parameters of which model."""

    model: str = setting("", "A run's workdir or a converted model's folder. Empty: the workdir.")
    which: Literal["last", "best"] = setting("last", "Of a run's checkpoints.")
    parameters: Literal["trained", "params", "ema"] = setting(
        "trained", "Of a run: as its training evaluated them, themselves, or their moving average."
    )
    precision: Literal["model", "float32", "bfloat16", "int8_weights"] = setting(
        "model", "In the model's own dtype, in another, or with weights in 8-bit integers."
    )
    json: bool = setting(False, "Print the numbers as JSON.")


def run(
    config: Settings,
    wanted: EvaluateConfig,
    workdir: str,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Returns the numbers of all evaluations of `config`, as "NAME/NUMBER", and suite averages.

    All processes make this call, with the same arguments.

    Args:
        config: settings of a `TrainConfig`.
        wanted: the model and the kind of its parameters.
        workdir: replaces "{workdir}"; the default place of the model.
        devices: the devices to use; None: all.

    Raises:
        ConfigError: a setting is wrong, or the model is missing or of another kind.
        CheckpointError: the checkpoint is missing.
    """
    settings = parse(config)
    if not settings.evals:
        raise ConfigError("The config has no evaluations; add some to config.evals.")
    item = CheckpointOf(checkpoint=wanted.model or workdir, which=wanted.which)
    folder = item.folder(workdir)
    model = trained_model(folder, type(settings.method.model))
    parameters = wanted.parameters
    if parameters == "trained":
        parameters = evaluated_parameters(folder)
    item = dataclasses.replace(item, checkpoint=folder, parameters=parameters)
    model.check_tokenizer(get_tokenizer(model.tokenizer))
    if wanted.precision in ("float32", "bfloat16"):
        model = dataclasses.replace(model, dtype=wanted.precision)
    mesh = meshes.make_mesh(devices, settings.mesh)
    with jax.set_mesh(mesh):
        params = load_model(item, program.model_shapes(model, mesh, settings.mesh.rules))
        if wanted.precision == "int8_weights":
            params = jax.jit(int8_weights.quantized)(params)
        numbers = {}
        for name, evaluation in settings.evals.items():
            values = evaluators.build(evaluation, model, mesh)(params)
            numbers |= {f"{name}/{key}": float(value) for key, value in values.items()}
    return numbers | suites.averages(numbers, settings.suites)


def main(argv: list[str]) -> None:
    """Flags -> config -> numbers."""
    del argv
    folder = run_flags.workdir()
    with run_flags.running(f"--workdir={folder}"):
        config = flag_settings.read(EvaluateConfig)
        numbers = run(flags.FLAGS.config, config, folder)
        if jax.process_index() == 0:
            print(json.dumps(numbers, indent=2) if config.json else table(numbers))


def table(numbers: dict[str, float]) -> str:
    """The numbers, one per line."""
    width = max(map(len, numbers))
    return "\n".join(f"{name:{width}}  {value:.6g}" for name, value in numbers.items())


if __name__ == "__main__":
    run_flags.define()
    flag_settings.define(EvaluateConfig)
    command_line.run(main, run_flags.parse)
