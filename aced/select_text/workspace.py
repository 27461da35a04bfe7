"""The folder beside the data set that holds an unfinished selection, shared by all processes.

.NAME.selecting/
  settings.json     the settings
  state.json        names the complete state
  state-12/         one file per process
  chosen.npz        hashes of the chosen sentences, in order, and of a random sample
  chosen-texts/     the texts of the chosen sentences; likewise sample-texts/
  out/              the data set, renamed to NAME when it is complete
"""

import json
import pathlib
import shutil
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from aced.config import ConfigError
from aced.data import records
from aced.data.records import DatasetError
from aced.files import own_files, storage

_POLL_SECONDS = 0.1
_CHECKSUM = "crc32"  # of the other arrays in a file


class Workspace:
    """The files of a selection, and barriers for its processes."""

    def __init__(self, out: str):
        self.out = pathlib.Path(out).expanduser().absolute()
        self.root = self.out.with_name(f".{self.out.name}.selecting")
        token = np.int32(time.time_ns() % 2**31)
        if jax.process_count() > 1:
            token = multihost_utils.broadcast_one_to_all(token)
        self._token = int(token)  # marks of an earlier start are ignored

    def begin(self, settings: Mapping[str, Any]) -> bool:
        """Resumes the selection with `settings`, or starts it.

        Returns:
            Whether the data set is complete already.

        Raises:
            ConfigError: `out` is a selection with other settings, or no data set.
            DatasetError: the selection is damaged.
        """
        settings = json.loads(json.dumps(settings))
        finished = self.out.exists()
        if finished:
            if not (self.out / records.DESCRIPTION).is_file():
                raise ConfigError(f"--out={self.out} exists and is not a data set; choose another.")
            self._compare(self.out, records.read_description(self.out)["settings"], settings)
        elif (self.root / "settings.json").is_file():
            self._compare(self.root, self.read_json("settings.json"), settings)
        self.wait_for_all("compared")
        if jax.process_index() == 0:
            if finished:  # it may have been killed before it removed the workspace
                shutil.rmtree(self.root, ignore_errors=True)
            else:
                self.write_json("settings.json", settings)
        self.wait_for_all("begun")
        return finished

    def _compare(self, path: pathlib.Path, there: Any, now: dict[str, Any]) -> None:
        if lines := own_files.differences(there, now).values():
            listed = "\n".join(f"  {line}" for line in lines)
            raise ConfigError(
                f"{path} is a selection with other settings:\n{listed}\nSet them back to resume "
                f"it, choose another --out, or remove {path}."
            )

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes the file `name` atomically."""
        storage.write(str(self.root / name), own_files.dumps(content))

    def read_json(self, name: str, fields: Mapping[str, type] | None = None) -> dict[str, Any]:
        """Reads what `write_json` wrote, with at least `fields` of these types.

        Raises:
            DatasetError: the file is damaged.
        """
        with own_files.reading(self.root / name, self._advice, DatasetError):
            content = own_files.loads((self.root / name).read_bytes())
            for field, kind in (fields or {}).items():
                if type(content[field]) is not kind:
                    raise ValueError(f"its {field!r} is {content[field]!r}")
            return content

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the file `name` atomically, with a checksum."""
        with storage.whole_file(self.root / name) as part, part.open("wb") as file:
            np.savez(file, **arrays, **{_CHECKSUM: _crc(arrays)})

    def load_arrays(self, name: str, checked: bool = True) -> dict[str, np.ndarray]:
        """Reads what `save_arrays` wrote; `checked` requires a checksum.

        Raises:
            DatasetError: the file is missing or damaged.
        """
        try:
            with (
                (self.root / name).open("rb") as opened,  # numpy leaves it open after an error
                np.load(opened, allow_pickle=False) as file,
            ):
                arrays = {key: file[key] for key in file.files}
            written = arrays.pop(_CHECKSUM, None)
            if written is None and checked:  # a truncated zip directory lacks arrays
                raise ValueError("it has no checksum")
            if written is not None and written != _crc(arrays):
                raise ValueError("its checksum does not match its arrays: it was changed")
            return arrays
        except Exception as error:  # numpy and zipfile raise errors of many kinds
            raise DatasetError(
                f"{self.root / name} is not readable ({error}); {self._advice}."
            ) from error

    @property
    def _advice(self) -> str:
        return f"remove {self.root} to start again"

    def wait_for_all(self, name: str) -> None:
        """Waits until all processes have called this with the same `name`, used once per start.

        A barrier of files, because collectives time out during long work.
        """
        if jax.process_count() == 1:
            return
        self._mark(name, jax.process_index()).touch()
        for process in range(jax.process_count()):
            while not self._mark(name, process).exists():
                time.sleep(_POLL_SECONDS)

    def leave(self) -> None:
        """Removes the marks; the last call of every process."""
        if jax.process_count() == 1:
            return
        self.wait_for_all("finished")
        if jax.process_index() != 0:
            self._mark("left", jax.process_index()).touch()
            return
        self.wait_for_all("left")
        shutil.rmtree(self._marks)

    @property
    def _marks(self) -> pathlib.Path:
        return self.root.with_name(f"{self.root.name}.marks")

    def _mark(self, name: str, process: int) -> pathlib.Path:
        self._marks.mkdir(parents=True, exist_ok=True)
        return self._marks / f"{self._token}-{name}-{process}"

    def publish(self) -> None:
        """Moves the data set in `out/` to its place, and removes the workspace."""
        (self.root / "out").rename(self.out)
        shutil.rmtree(self.root)


def _crc(arrays: Mapping[str, np.ndarray]) -> np.uint32:
    """The CRC-32 of names, types, shapes and bytes."""
    crc = 0
    for name, array in sorted(arrays.items()):
        crc = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), crc)
    return np.uint32(crc)
