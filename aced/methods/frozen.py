"""Frozen models: the reference that selects and the teachers that are distilled from."""

import dataclasses
import json
from typing import Literal

from etils import epath

from aced.config import ConfigError, from_config
from aced.models.two_tower import TwoTowerConfig

WORKDIR = "{workdir}"


@dataclasses.dataclass(frozen=True)
class FrozenConfig:
    """A trained two-tower model: where its parameters are, and its architecture."""

    checkpoint: str = ""  # workdir of a run of ours; "{workdir}" stands for the present run's
    which: Literal["last", "best"] = "last"
    parameters: Literal["params", "ema"] = "params"
    model: TwoTowerConfig | None = None  # None: as written in the checkpoint's config.json

    def resolve(self, workdir: str) -> "FrozenConfig":
        """Returns the same with `checkpoint` expanded and `model` read from its config.json.

        Raises:
            ConfigError: there is no run in `checkpoint`, or its config names no model.
        """
        if not self.checkpoint:
            return self
        path = epath.Path(self.checkpoint.replace(WORKDIR, workdir))
        resolved = dataclasses.replace(self, checkpoint=str(path))
        if self.model is not None:
            return resolved
        file = path / "config.json"
        if not file.exists():
            raise ConfigError(
                f"{path} holds no run (no config.json). Train the reference or teacher first, or "
                "point its .checkpoint at a workdir of aced.main."
            )
        written = json.loads(file.read_text())
        model = from_config(TwoTowerConfig, written["method"]["model"], f"{file}:method.model")
        return dataclasses.replace(resolved, model=model)
