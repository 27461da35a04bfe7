"""The methods, one file per paper: a config and a pure train step, chosen by `method.name`."""

from aced.config import ConfigError, Settings, from_config
from aced.methods.base import Method, MethodConfig
from aced.methods.coca import CoCaTrainConfig, CoCaTraining
from aced.methods.coca_task import CoCaTask, CoCaTaskConfig
from aced.methods.contrastive import Contrastive
from aced.methods.contrastive_settings import ContrastiveConfig
from aced.methods.dime import Dime, DimeConfig
from aced.methods.lit_decoder import LitDecoder, LitDecoderConfig
from aced.methods.optima import Optima, OptimaConfig

METHODS: dict[str, tuple[type[MethodConfig], type[Method]]] = {
    "contrastive": (ContrastiveConfig, Contrastive),
    "dime": (DimeConfig, Dime),
    "coca": (CoCaTrainConfig, CoCaTraining),
    "coca_task": (CoCaTaskConfig, CoCaTask),
    "optima": (OptimaConfig, Optima),
    "lit_decoder": (LitDecoderConfig, LitDecoder),
}


def parse(config: Settings, path: str = "config.method") -> MethodConfig:
    """Returns the settings as the config dataclass of the method `config.name`.

    Raises:
        ConfigError: the name or a setting is unknown.
    """
    name = config.get("name", "contrastive")
    if name not in METHODS:
        raise ConfigError(f"{path}.name is {name!r}; known: {sorted(METHODS)}.")
    return from_config(METHODS[name][0], config, path)


def build(settings: MethodConfig) -> Method:
    """Returns the method for parsed and resolved `settings`."""
    return METHODS[settings.name][1](settings)
