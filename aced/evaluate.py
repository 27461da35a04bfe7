"""Evaluates a trained or converted model: `python -m aced.evaluate --config=... --workdir=...`.

The evaluations are those of the config, which may be changed and added as in training; the model is
that of a run, by default of the workdir, or of a folder that `aced.convert` wrote. The numbers of a
run's last checkpoint are those that training logged for it.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal

import jax
from absl import app, flags
from etils import epath

from aced import evaluators, flag_settings
from aced import main as training
from aced.checkpoints import record
from aced.config import ConfigError, Settings
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import suites
from aced.flag_settings import FlagSettings, setting
from aced.methods.frozen import CheckpointOf, load_model, trained_model
from aced.models import model_folder
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
    json: bool = setting(False, "Print the numbers as JSON.")


def run(
    config: Settings,
    wanted: EvaluateConfig,
    workdir: str,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Returns the numbers of all evaluations of `config`, as "<evaluation>/<number>".

    And those of its suites.

    All processes make this call, with the same arguments.

    Args:
        config: a `ConfigDict` or mapping of `TrainConfig`.
        wanted: whose parameters.
        workdir: what "{workdir}" stands for; where the model is, unless `wanted` says.
        devices: the devices to use; None: all.

    Raises:
        ConfigError: a setting is wrong, there is no model, or none of the config's kind.
        CheckpointError: there is no such checkpoint.
    """
    settings = parse(config)
    if not settings.evals:
        raise ConfigError("The config has no evaluations; add some to config.evals.")
    item = CheckpointOf(checkpoint=wanted.model or workdir, which=wanted.which)
    folder = item.folder(workdir)
    model = trained_model(folder, type(settings.method.model))
    item = dataclasses.replace(
        item, checkpoint=folder, parameters=_parameters(folder, wanted.parameters)
    )
    model.check_tokenizer(get_tokenizer(model.tokenizer))
    mesh = meshes.make_mesh(devices, settings.mesh)
    with jax.set_mesh(mesh):
        params = load_model(item, program.model_shapes(model, mesh, settings.mesh.rules))
        found = {}
        for name, evaluation in settings.evals.items():
            values = evaluators.build(evaluation, model, mesh)(params)
            found |= {f"{name}/{key}": float(value) for key, value in values.items()}
    return found | suites.averages(found, settings.suites)


def _parameters(folder: str, wanted: str) -> Literal["params", "ema"]:
    """Which parameters training evaluates: the moving average, where there is one."""
    if wanted != "trained":
        return wanted
    if model_folder.is_model_folder(folder):
        return "params"
    settings = record.read(epath.Path(folder)).settings
    return "ema" if settings.get("ema_decay", 0) > 0 else "params"


def main(argv: list[str]) -> None:
    """Flags -> config -> numbers."""
    values = flags.FLAGS
    with training.running(argv, f"--workdir={training.workdir()}"):
        wanted = flag_settings.read(EvaluateConfig)
        found = run(values.config, wanted, training.workdir())
        if jax.process_index() == 0:
            print(json.dumps(found, indent=2) if wanted.json else table(found))


def table(found: dict[str, float]) -> str:
    """The numbers, one a line."""
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {value:.6g}" for name, value in found.items())


if __name__ == "__main__":
    flags.adopt_module_key_flags(training)
    flag_settings.define(EvaluateConfig)
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=training.parse_flags)
