"""Configs: a tree of frozen dataclasses is the schema; users edit an ml_collections ConfigDict.

Every component owns a frozen dataclass with a default and a comment for each of its settings.
`to_config` converts such a tree to a `ConfigDict`, so that every key can be set in a config file or
on the command line. `from_config` converts it back, and refuses unknown keys with their paths and
the nearest known names. The type of a field holds its bounds and choices, which `Checked` enforces,
and whether the setting may change when a run is resumed.
"""

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import ml_collections
from ml_collections import config_dict

from aced import bounds, nearest
from aced.errors import UserError

T = TypeVar("T")
MAY_CHANGE = object()
MayChange = Annotated[T, MAY_CHANGE]  # may change when a run is resumed; see record.py
Settings = Mapping[str, Any] | ml_collections.ConfigDict  # as users write them
WORKDIR = "{workdir}"  # in a path, stands for the folder of the run


class ConfigError(UserError, ValueError):
    """A setting that is unknown, of the wrong type, or that contradicts another one."""


@functools.cache
def types_of(cls: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields by name, with their annotations."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


class Checked:
    """Base of the dataclasses of settings; checks values by the bounds of their types.

    Raises:
        ConfigError: a value is out of bounds, or settings contradict each other (`_check`).
    """

    PREFIX: ClassVar[str] = ""  # of a setting's name in messages

    def __post_init__(self) -> None:
        for name, hint in types_of(type(self)).items():
            if message := bounds.wrong(hint, getattr(self, name), self.PREFIX + name):
                raise ConfigError(message)
        self._check()

    def _check(self) -> None:
        """Raises a ConfigError if settings contradict each other.

        A subclass that overrides this calls that of its base.
        """


def expand(path: str, workdir: str | None = None) -> str:
    """Returns `path` without file://, with "~" expanded and `WORKDIR` replaced by `workdir`."""
    if workdir is not None:
        path = path.replace(WORKDIR, workdir)
    return os.path.expanduser(path.removeprefix("file://"))


def to_config(instance: Any) -> ml_collections.ConfigDict:
    """Returns `instance` (a dataclass tree) as an unlocked `ConfigDict`.

    Fields that may be None become placeholders, so that they can be set on the command line.
    """
    out = ml_collections.ConfigDict()
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        inner = optional(hints[field.name])
        if value is None and inner in (int, float, str, bool):
            out[field.name] = config_dict.placeholder(inner)
        else:
            out[field.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_config(value)
    if isinstance(value, Mapping):
        return ml_collections.ConfigDict({key: _plain(item) for key, item in value.items()})
    return value


def from_config(cls: type[T], config: Any, path: str = "config") -> T:
    """Returns the dataclass `cls` built from `config`, checked key by key.

    Args:
        cls: a dataclass whose fields are scalars, tuples, mappings or other dataclasses. A field
            with the metadata `parse` is made by that function of its settings and their path.
        config: a `ConfigDict` or mapping. Keys that are left out take their defaults.
        path: the path of `config`, for error messages.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type; the message names its path.
    """
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"{path} must be a mapping of settings, got {config!r}.")
    hints = types_of(cls)
    names = list(hints)
    unknown = [key for key in config if key not in names]
    if unknown:
        near = [f"{path}.{name}" for name in nearest.names(unknown[0], names)]
        hint = nearest.did_you_mean(near) if near else f"; known keys: {', '.join(names)}."
        raise ConfigError(f"{path}.{unknown[0]} is not a setting{hint}")
    values = {}
    for field in dataclasses.fields(cls):
        if (name := field.name) in config:
            parse = field.metadata.get("parse", functools.partial(_convert, hints[name]))
            values[name] = parse(config[name], f"{path}.{name}")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:  # ConfigError is a ValueError
        raise ConfigError(f"{path}: {error}") from error


def optional(hint: Any) -> Any:
    """Returns the X of `X | None`, else None."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if len(inner) == 1 and len(typing.get_args(hint)) == 2:
            return inner[0]
    return None


def _convert(hint: Any, value: Any, path: str) -> Any:
    converted = _of_type(hint, value, path)
    if message := bounds.wrong(hint, converted, path):
        raise ConfigError(message)
    return converted


def _of_type(hint: Any, value: Any, path: str) -> Any:
    if (inner := optional(hint)) is not None:
        return None if value is None else _convert(inner, value, path)
    if dataclasses.is_dataclass(hint):
        return from_config(hint, value, path)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _convert(args[0], value, path)
    if origin is dict and isinstance(value, Mapping | ml_collections.ConfigDict):
        if others := [key for key in value if not isinstance(key, str)]:
            raise ConfigError(f"{path} has the key {others[0]!r}, and keys are names in quotes.")
        return {key: _convert(args[1], value[key], f"{path}.{key}") for key in value}
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(inner) != len(value):
            raise ConfigError(f"{path} must have {len(inner)} values, got {value!r}.")
        parts = zip(inner, value, strict=True)
        return tuple(_convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(parts))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value):  # a check for a bound, `value < 0`, lets it pass
            raise ConfigError(f"{path} must be a number, got {value!r}.")
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is Any or origin is Literal:
        return value
    raise ConfigError(f"{path} must be {getattr(hint, '__name__', hint)}, got {value!r}.")


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their dotted paths; `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    if not isinstance(tree, dict):
        return {path: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{path}.{key}" if path else key)
    return out


class ArgumentHelp(Exception):  # noqa: N818 - not an error; the command prints the help
    """Raised for the argument "help" of a config file.

    Attributes:
        defaults: the arguments of the file, with their defaults.
    """

    def __init__(self, defaults: Mapping[str, Any]):
        super().__init__("help")
        self.defaults = dict(defaults)


def listed(defaults: Mapping[str, Any]) -> str:
    """Arguments with their defaults, one per line; arguments that are False have none."""
    width = max(map(len, defaults))
    return "\n".join(
        f"  {name}" if value is False else f"  {name:{width}} = {value}"
        for name, value in defaults.items()
    )


_KINDS = {bool: "true or false", int: "a whole number", float: "a number"}  # of arguments


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def parse_arg(arg: str, **defaults: Any) -> ml_collections.ConfigDict:
    """Returns a config file's string argument, `configs/x.py:tiny,method=iid`, as settings.

    Args:
        arg: comma-separated `name` (switches a flag on) or `name=value`.
        **defaults: the arguments of the file with their defaults, whose types the values have.

    Raises:
        ConfigError: a name is unknown or a value does not fit its type.
        ArgumentHelp: one of the names is "help".
    """
    if "help" in arg.split(","):
        raise ArgumentHelp(defaults)
    settings = dict(defaults)
    for part in filter(None, arg.split(",")):
        name, given, value = part.partition("=")
        if name not in defaults:
            raise ConfigError(
                f"The config has no argument {name!r}"
                f"{nearest.did_you_mean(nearest.arguments(name, defaults))} Its arguments, with "
                f"their defaults:\n{listed(defaults)}"
            )
        kind = type(defaults[name])
        if not given and kind is not bool:
            raise ConfigError(f"Config argument {name!r} needs a value: {name}=...")
        try:
            settings[name] = _flag(value or "true") if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            example = "" if kind is bool else f", such as {name}={defaults[name]}"
            raise ConfigError(f"The argument {part} must be {_KINDS[kind]}{example}.") from error
    return ml_collections.ConfigDict(settings)
