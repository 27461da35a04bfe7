"""A model in memory, which every file format is read into and written from."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from aced.config import ConfigError
from aced.models import presets
from aced.models.two_tower import TwoTowerConfig

Params = dict[str, Any]  # nested dicts of arrays
TOKENIZER_FILES = {"sentencepiece": "tokenizer.model", "hf": "tokenizer.json"}

# The leaves of nested dicts by their names, such as "image/patch/kernel", and the inverse.
flat = functools.partial(traverse_util.flatten_dict, sep="/")
nested = functools.partial(traverse_util.unflatten_dict, sep="/")


class InteropError(ConfigError):
    """A model cannot be read, or the other format cannot express it."""


@contextlib.contextmanager
def checking_settings(source: str) -> Iterator[None]:
    """Converts a ConfigError about the settings of a model to an InteropError that names it."""
    try:
        yield
    except InteropError:
        raise
    except ConfigError as error:
        raise InteropError(f"{source}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Model:
    """Settings, parameters and the tokenizer's file, independent of the file format."""

    config: TwoTowerConfig  # tokenizer.path is a plain name: the file's content is `tokenizer`
    params: Params  # float32, as the model's `init` shapes them
    tokenizer: bytes = b""  # content of the tokenizer's file; empty where the kind has none
    source: str = ""  # the folder, file or hub name that it was read from
    notes: tuple[str, ...] = ()  # where it deviates from its files, in words

    def __post_init__(self):
        check_shapes(self.config, self.params, self.source)
        if bool(self.tokenizer) != bool(self.config.tokenizer.path):
            raise InteropError(
                f"{self.source}: tokenizer.kind={self.config.tokenizer.kind!r} has the path "
                f"{self.config.tokenizer.path!r}, but {len(self.tokenizer)} bytes of a file."
            )


def expected_shapes(config: TwoTowerConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `config`, by name; nothing is computed."""
    abstract = jax.eval_shape(config.init, jax.random.key(0))
    return {name: leaf.shape for name, leaf in flat(abstract).items()}


def check_shapes(config: TwoTowerConfig, params: Params, source: str) -> None:
    """Raises an InteropError unless `params` are float32 arrays with the shapes of `config`."""
    want = {name: f"float32{list(shape)}" for name, shape in expected_shapes(config).items()}
    have = {name: f"{np.dtype(x.dtype)}{list(x.shape)}" for name, x in flat(params).items()}
    wrong = [name for name in sorted(want | have) if want.get(name) != have.get(name)]
    if wrong:
        listed = "; ".join(
            f"{name}: expected {want.get(name, 'nothing')}, found {have.get(name, 'nothing')}"
            for name in wrong[:4]
        )
        raise InteropError(f"{source}: {len(wrong)} parameters do not fit ({listed}).")


def size_settings(width: int, depth: int, mlp: int, heads: int) -> dict[str, Any]:
    """Settings for these numbers: `size` if `presets.SIZES` has them, otherwise overrides."""
    size = presets.Size(width, depth, mlp, heads)
    for name, known in presets.SIZES.items():
        if known == size:
            return {"size": name}
    return {"size": "B", **dataclasses.asdict(size)}


def refuse(target: str, reasons: dict[str, bool]) -> None:
    """Raises an InteropError that lists the settings that the format `target` cannot express.

    `reasons` maps each problem, a text that names the setting, to whether it is present.
    """
    problems = [reason for reason, is_present in reasons.items() if is_present]
    if problems:
        raise InteropError(f"{target} cannot express this model: {'; '.join(problems)}.")


def read_config_value(settings: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """Returns settings[key], or raises an InteropError if it is missing or not of type `kind`."""
    value = settings.get(key)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InteropError(f"{where}: {key} must be of type {kind.__name__}, found {value!r}.")
    return value
