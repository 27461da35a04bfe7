"""Settings of a command: the fields of a dataclass, each a flag of the same name."""

import dataclasses
from typing import Any, TypeVar

from absl import flags

from aced.config import ConfigError

flags.disclaim_key_flags()  # those defined here are the command's, whose --help lists them

T = TypeVar("T")


def setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A field with what `--help` says of it, and the values that it may have, if they are few."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


def check_choices(config: Any) -> None:
    """Refuses a value that is none of its field's choices; for `__post_init__`.

    Raises:
        ConfigError: see above.
    """
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), field.metadata["choices"]
        if choices and value not in choices:
            raise ConfigError(f"--{field.name} must be one of {', '.join(choices)}, got {value!r}.")


def define(cls: type) -> None:
    """Defines a flag for each field of `cls`; a field that is a tuple may be given repeatedly."""
    kinds = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_multi_string,
    }
    for field in dataclasses.fields(cls):
        choices = field.metadata["choices"]
        text = field.metadata["help"] + (f" One of {', '.join(choices)}." if choices else "")
        default = field.default
        if isinstance(default, tuple):
            default = list(default) or None
        kinds[type(field.default)](field.name, default, text)


def read(cls: type[T]) -> T:
    """Returns `cls` with the values of its flags.

    Raises:
        ConfigError: as `cls` does.
    """
    values = {}
    for field in dataclasses.fields(cls):
        value = flags.FLAGS[field.name].value
        if isinstance(field.default, tuple):
            value = tuple(value or ())
        elif isinstance(value, str):
            value = value.removeprefix("file://")  # of a path
        values[field.name] = value
    return cls(**values)
