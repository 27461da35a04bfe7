"""config.json: the settings that a run was started with, and those that may change later."""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath

from aced.config import (
    MAY_CHANGE,
    WORKDIR,
    ConfigError,
    flatten,
    optional,
    to_config,
    types_of,
)
from aced.files import own_files

FILE = "config.json"
_DATA, _MODELS = "data_fingerprint", "model_fingerprints"
_ADVICE = (
    "restore it from a copy; if you remove it, the run resumes with the settings of its command, "
    "unchecked"
)


def check(
    folder: epath.Path, settings: Any, fingerprint: str, models: Mapping[str, str] | None = None
) -> None:
    """Checks that a run resumes with the settings, data and models that it started with.

    Args:
        folder: the workdir; a folder without a run passes.
        settings: the current settings, a dataclass.
        fingerprint: of the training data.
        models: fingerprints of the frozen models or their cached embeddings, of tokenizers and of
            lists of concepts, by name.

    Raises:
        ConfigError: a setting differs that may not change, or the file is damaged; the message
            lists the differences.
    """
    file = folder / FILE
    if not file.exists():
        return
    with own_files.reading(file, _ADVICE):
        then = flatten(own_files.loads(file.read_bytes()))
    now = flatten(_content(folder, settings, fingerprint, models))
    differing = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    # Old runs have no fingerprints of models.
    differing = [key for key in differing if key in then or not key.startswith(f"{_MODELS}.")]
    lines = {key: f"  {key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in differing}
    # Settings that are newer than the run, with defaults that keep the old behaviour.
    unset = set(_unset(settings)) - then.keys()
    classes = type(settings), type(settings.method)
    serious = [
        line for key, line in lines.items() if key not in unset and not may_change(*classes, key)
    ]
    if serious:
        raise ConfigError(
            f"{folder} holds a run with other settings:\n" + "\n".join(serious[:10]) + "\n"
            "Set them back to resume it, or choose another workdir for a new run."
        )
    if lines:
        logging.warning("%s resumes with other settings:\n%s", folder, "\n".join(lines.values()))


def _unset(settings: Any, path: str = "") -> Iterator[str]:
    """The paths of the settings with default values."""
    if dataclasses.is_dataclass(settings):
        for field in dataclasses.fields(settings):
            value, name = getattr(settings, field.name), f"{path}{field.name}"
            if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
                yield from _unset(value, f"{name}.")
            elif value == field.default:
                yield name
    elif isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _unset(value, f"{path}{name}.")


class Record(NamedTuple):
    """The contents of config.json."""

    settings: dict[str, Any]
    data: str  # the fingerprint of its data
    models: dict[str, str]  # of frozen models or their embeddings, tokenizers, ..., by name


def read(folder: epath.Path) -> Record:
    """The record of the run in `folder`.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    with own_files.reading(folder / FILE, _ADVICE):
        settings = own_files.loads((folder / FILE).read_bytes())
        models = settings.pop(_MODELS, {})  # the first runs had none
        data = settings.pop(_DATA)
    return Record(settings, data, models)


def may_change(cls: type, method: type, key: str) -> bool:
    """Whether a setting may differ when a run is resumed: it, or a field above it, is `MayChange`.

    `MayChange` marks settings that change neither the examples of a step nor the update made from
    them; paths of data and models, which have fingerprints; and the length of the run. A new length
    changes the learning rate from then on, but runs are often extended.

    Args:
        cls: the dataclass of a run's settings.
        method: the dataclass of the settings of its method, which is the type of `cls.method`.
        key: the path of a setting.
    """
    hint: Any = cls
    for name in key.split("."):
        hint = optional(hint) or hint
        if typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
        elif dataclasses.is_dataclass(hint):
            hint = method if (hint, name) == (cls, "method") else types_of(hint).get(name)
        if MAY_CHANGE in getattr(hint, "__metadata__", ()):
            return True
    return False


def write(
    folder: epath.Path, settings: Any, fingerprint: str, models: Mapping[str, str] | None = None
) -> None:
    """Writes config.json atomically, on process 0."""
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{FILE}.part"
    part.write_bytes(own_files.dumps(_content(folder, settings, fingerprint, models)))
    part.replace(folder / FILE)


def _content(
    folder: epath.Path, settings: Any, fingerprint: str, models: Mapping[str, str] | None
) -> dict[str, Any]:
    config = to_config(settings)
    config[_DATA] = fingerprint
    config[_MODELS] = dict(models or {})
    content = json.loads(config.to_json_best_effort(sort_keys=True))
    return content | {"method": _within(content["method"], str(folder))}


def _within(settings: Any, folder: str) -> Any:
    """Settings whose paths of models in `folder` begin with `WORKDIR` again, as a recipe has them.

    So they hold for a folder that was moved, and for another run with these settings.
    """
    if not isinstance(settings, dict):
        return settings
    paths = {
        name: value.replace(f"{folder}/", f"{WORKDIR}/", 1)
        for name in ("checkpoint", "cache")
        if isinstance(value := settings.get(name), str) and value.startswith(f"{folder}/")
    }
    return {name: _within(value, folder) for name, value in settings.items()} | paths
