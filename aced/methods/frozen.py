"""Frozen models: the reference that selects and the teachers that are distilled from."""

import dataclasses
import json
from typing import Literal

from etils import epath

from aced import record
from aced.config import ConfigError, flatten, from_config
from aced.models.two_tower import TwoTowerConfig

WORKDIR = "{workdir}"
# What may differ from the run that trained the model: how it is computed, not what.
_FREE = ("dtype", "scan", "remat", "attention", "init_scale", "init_bias")


@dataclasses.dataclass(frozen=True)
class CheckpointOf:
    """The parameters of a run of ours."""

    checkpoint: str = ""  # workdir of that run; "{workdir}" stands for the present run's
    which: Literal["last", "best"] = "last"
    parameters: Literal["params", "ema"] = "params"

    def folder(self, workdir: str) -> str:
        """The run's folder, spelled out."""
        return str(epath.Path(self.checkpoint.replace(WORKDIR, workdir)))


@dataclasses.dataclass(frozen=True)
class FrozenConfig(CheckpointOf):
    """A trained two-tower model: where its parameters are, and its architecture."""

    model: TwoTowerConfig | None = None  # None: as written in the checkpoint's config.json

    def resolve(self, workdir: str) -> "FrozenConfig":
        """Returns the same with `checkpoint` spelled out and `model` as its run was trained.

        Raises:
            ConfigError: there is no run in `checkpoint`, or `model` is set to another model.
        """
        if not self.checkpoint:
            return self
        folder = self.folder(workdir)
        trained = trained_model(folder)
        if self.model is not None:
            check_same_model(self.model, trained, folder)
        return dataclasses.replace(self, checkpoint=folder, model=self.model or trained)


def trained_model(folder: str) -> TwoTowerConfig:
    """The model of the run in `folder`, as its config.json has it.

    Raises:
        ConfigError: there is no run, or it has no such model.
    """
    file = epath.Path(folder) / record.FILE
    if not file.exists():
        raise ConfigError(
            f"{folder} holds no run (no {record.FILE}). Train the reference or teacher first, or "
            "point its .checkpoint at a workdir of aced.main."
        )
    try:
        model = json.loads(file.read_text())["method"]["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} names no method.model; point .checkpoint at a workdir of aced.main."
        ) from error
    return from_config(TwoTowerConfig, model, f"{file}:method.model")


def check_same_model(wanted: TwoTowerConfig, trained: TwoTowerConfig, folder: str) -> None:
    """Refuses another architecture or preprocessing: its numbers would be silently wrong.

    Raises:
        ConfigError: they differ; the message names the settings.
    """
    ours, theirs = (flatten(dataclasses.asdict(model)) for model in (wanted, trained))
    differing = [key for key in ours if key not in _FREE and ours[key] != theirs.get(key)]
    if differing:
        listed = "; ".join(f"{k}: here {ours[k]!r}, there {theirs.get(k)!r}" for k in differing)
        raise ConfigError(
            f"The model in {folder} was trained with other settings ({listed}). Set .model to "
            "None to take them over, or choose another checkpoint."
        )
