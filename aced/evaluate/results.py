"""results.json: the numbers of a model's evaluations, written after each of them.

An evaluation that was killed goes on with the data sets whose numbers are not there yet. A number
belongs to weights, settings of the model and the evaluation, names of the classes, prompts, and the
content of the data sets; where one of these has changed, it is computed again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from aced.config import ConfigError, expand, flatten
from aced.evaluators.config import EvalConfig
from aced.files import own_files, storage
from aced.models.base import ModelConfig
from aced.parallel import distributed

FILE = "results.json"
_FORMAT, _VERSION = "aced-results", 1
_ADVICE = "bring it back from a copy, or remove it to evaluate again"
# Settings of an evaluation that do not change its numbers.
_FREE = ("batch_size", "data.num_threads", "data.prefetch", "every_")


class Entry(NamedTuple):
    """An evaluation that is due."""

    name: str
    config: EvalConfig
    fingerprint: str  # of its data set
    examples: int
    # What it reads besides settings and data set: class names and prompts, which may be in files
    # beside the data set, and the fingerprint of a probe's training data.
    also: Sequence[Sequence[str]] = ()

    def key(self, model: str) -> str:
        """The hash of all that its numbers depend on; `model` is that of the model."""
        settings = flatten(dataclasses.asdict(self.config))
        kept = {k: v for k, v in settings.items() if not k.startswith(_FREE)}
        content = json.dumps(
            [model, kept, self.fingerprint, self.also], sort_keys=True, default=str
        )
        return hashlib.sha256(content.encode()).hexdigest()


class Results:
    """The results in a folder. All processes have the same; process 0 writes.

    Attributes:
        file: its path.
    """

    def __init__(self, folder: str, model: str, weights: str, config: ModelConfig):
        """Reads what is there. Results of other weights are moved to a file of their own.

        Args:
            folder: of the results.
            model: the folder of the model.
            weights: the fingerprint of its parameters.
            config: its settings.

        Raises:
            ConfigError: the file is damaged.
        """
        self.file = f"{folder.rstrip('/')}/{FILE}"
        settings = json.dumps(flatten(dataclasses.asdict(config)), sort_keys=True, default=str)
        self._model = f"{weights} {hashlib.sha256(settings.encode()).hexdigest()}"
        self._content: dict[str, Any] = {
            "format": _FORMAT,
            "version": _VERSION,
            "model": {"folder": model, "weights": weights},
            "evaluations": {},
            "averages": {},
        }
        self._keep(self._before())

    def _before(self) -> bytes:
        """The file's content on process 0, for all processes; empty if there is none."""
        data = b""
        if jax.process_index() == 0 and (file := storage.stat(self.file)) is not None:
            data = storage.read(self.file, 0, file.size)
        size = int(distributed.from_first(np.array(len(data))))
        data = data.ljust(size)[:size]  # on the others, to be replaced
        return distributed.from_first(np.frombuffer(data, np.uint8)).tobytes()

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        before = _parse(self.file, data)
        if before["model"]["weights"] == self._content["model"]["weights"]:
            self._content["evaluations"] = before["evaluations"]
            return
        other = f"{self.file.removesuffix('.json')}-{before['model']['weights'][:8]}.json"
        logging.warning("%s holds numbers of other weights; they are kept in %s.", self.file, other)
        if jax.process_index() == 0:
            storage.write(other, data)

    def numbers(self, entry: Entry) -> dict[str, float] | None:
        """The numbers of an evaluation by their full names; None if it has to be run."""
        known = self._content["evaluations"].get(entry.name)
        if known is None or known["key"] != entry.key(self._model):
            return None
        return {f"{entry.name}/{key}": value for key, value in known["numbers"].items()}

    def add(self, entry: Entry, numbers: Mapping[str, float], seconds: float) -> None:
        """Adds the numbers of an evaluation, and writes the file."""
        self._content["evaluations"][entry.name] = {
            "kind": entry.config.kind,
            "examples": entry.examples,
            "seconds": round(seconds, 3),
            "numbers": {name.rpartition("/")[2]: value for name, value in numbers.items()},
            "data": entry.fingerprint,
            "key": entry.key(self._model),
        }
        self._write()

    def finish(self, averages: Mapping[str, float]) -> None:
        """Sets the averages, and writes the file."""
        self._content["averages"] = dict(averages)
        self._write()

    def _write(self) -> None:
        if jax.process_index() == 0:
            storage.write(self.file, own_files.dumps(self._content))


def read(path: str) -> dict[str, float]:
    """The numbers and averages in a results.json by their full names.

    Raises:
        ConfigError: it is missing, damaged, or another file.
    """
    path = expand(path)
    if (file := storage.stat(path)) is None:
        raise ConfigError(f"--baselines: there is no file {path}.")
    content = _parse(path, storage.read(path, 0, file.size))
    numbers = {
        f"{name}/{key}": value
        for name, entry in content["evaluations"].items()
        for key, value in entry["numbers"].items()
    }
    return numbers | content["averages"]


def _parse(path: str, data: bytes) -> dict[str, Any]:
    with own_files.reading(path, _ADVICE):
        content = own_files.loads(data)
        if (content["format"], content["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"it is no {_FORMAT} of version {_VERSION}")
        for entry in content["evaluations"].values():
            entry["key"], {name: float(value) for name, value in entry["numbers"].items()}
        content["model"]["weights"], content["averages"].items()
    return content
