"""Settings of a command: the fields of a dataclass, each a flag of the same name."""

import dataclasses
import typing
from typing import Any, ClassVar, Literal, TypeVar

from absl import flags

from aced import bounds
from aced.config import Checked, types_of

flags.disclaim_key_flags()  # those defined here are the command's, whose --help lists them

T = TypeVar("T")


class FlagSettings(Checked):
    """Base of the settings of a command: messages name their flags."""

    PREFIX: ClassVar[str] = "--"


def setting(default: Any, text: str) -> Any:
    """A field with its help text, to which `define` adds the bounds and choices of its type."""
    return dataclasses.field(default=default, metadata={"help": text})


def define(cls: type) -> None:
    """Defines a flag for each field of `cls`; a field that is a tuple may be given repeatedly."""
    kinds = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_multi_string,
    }
    plain = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, text, hint = field.name, field.metadata["help"], plain[field.name]
        if typing.get_origin(hint) is Literal:
            flags.DEFINE_enum(name, field.default or None, typing.get_args(hint), text)
            continue
        if words := bounds.describe(types_of(cls)[name]):
            text = f"{text} {words[0].upper()}{words[1:]}."
        kind = typing.get_origin(hint) or hint
        kinds[kind](name, list(field.default) or None if kind is tuple else field.default, text)


def read(cls: type[T]) -> T:
    """Returns `cls` with the values of its flags.

    Raises:
        ConfigError: as `cls` does.
    """
    values = {}
    for field in dataclasses.fields(cls):
        value = flags.FLAGS[field.name].value
        if isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str):
            value = value.removeprefix("file://")  # of a path
        if value is not None:
            values[field.name] = value
    return cls(**values)
