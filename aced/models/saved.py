"""A model in memory, which every file format is read into and written from."""

import dataclasses
from typing import Any

import jax
import numpy as np

from aced.config import ConfigError
from aced.models import presets
from aced.models.two_tower import TwoTowerConfig

Params = dict[str, Any]  # nested dicts of arrays
TOKENIZER_FILES = {"sentencepiece": "tokenizer.model", "hf": "tokenizer.json"}


class InteropError(ConfigError):
    """A model cannot be read, or the other format cannot express it."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Settings, parameters and the tokenizer's file, independent of the file format."""

    config: TwoTowerConfig  # tokenizer.path is a plain name: the file's content is `tokenizer`
    params: Params  # float32, as the model's `init` shapes them
    tokenizer: bytes = b""  # content of the tokenizer's file; empty where the kind has none
    source: str = ""  # where it came from, for the record
    notes: tuple[str, ...] = ()  # what was read otherwise than its files say, in words

    def __post_init__(self):
        check_shapes(self.config, self.params, self.source)
        if bool(self.tokenizer) != bool(self.config.tokenizer.path):
            raise InteropError(
                f"{self.source}: tokenizer.kind={self.config.tokenizer.kind!r} has the path "
                f"{self.config.tokenizer.path!r}, but {len(self.tokenizer)} bytes of a file."
            )


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their names, such as "image/patch/kernel"."""
    if not isinstance(tree, dict):
        return {path: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{path}/{key}" if path else key)
    return out


def nested(leaves: dict[str, Any]) -> Params:
    """The inverse of `flat`."""
    out: Params = {}
    for name, value in leaves.items():
        *folders, last = name.split("/")
        at = out
        for folder in folders:
            at = at.setdefault(folder, {})
        at[last] = value
    return out


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
            f"{name}: the settings ask for {want.get(name, 'nothing')}, the weights have "
            f"{have.get(name, 'nothing')}"
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
    """Raises an InteropError that lists the settings `target` cannot express.

    Args:
        target: name of the format.
        reasons: whether each problem, a text that names the setting, is present.
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
