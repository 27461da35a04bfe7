"""The second pass, which collects the texts of the chosen hashes.

Every process searches its parts of the corpus for the chosen hashes and writes the texts to its own
files, one per range of positions in the order of choice, so that they can be joined in that order
range by range.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import IO

import jax
import msgpack
import numpy as np
from jaxtyping import UInt64

from aced.data.records import MAX_STRING_BYTES, DatasetError
from aced.select_text import sentences

# Errors of msgpack, or of using its objects, after flipped bits.
_DAMAGES = (ValueError, TypeError, IndexError, AttributeError, msgpack.UnpackException)
_PIECE = 1 << 18  # sentences that are joined at once


class Collection:
    """Collects the texts of `hashes`, in their order."""

    def __init__(self, folder: pathlib.Path, hashes: UInt64[np.ndarray, " n"]):
        """Removes the files of this process in `folder`."""
        self.hashes = hashes
        self._folder, self._count = folder, len(hashes)
        self._order = np.argsort(hashes)
        self._sorted = hashes[self._order]
        self._is_found = np.zeros(len(hashes), bool)
        self._files: dict[int, IO[bytes]] = {}
        self._open = contextlib.ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        for piece in range(-(-self._count // _PIECE)):
            self._path(piece, jax.process_index()).unlink(missing_ok=True)

    def offer(self, texts: list[str], hashes: UInt64[np.ndarray, " m"]) -> None:
        """Stores the `texts` with requested hashes, each once."""
        if not self._count:
            return
        at = np.minimum(np.searchsorted(self._sorted, hashes), self._count - 1)
        for i in np.flatnonzero(self._sorted[at] == hashes):
            place = int(self._order[at[i]])
            if not self._is_found[place]:
                self._is_found[place] = True
                self._file(place // _PIECE).write(msgpack.packb((place, texts[i])))

    def close(self) -> None:
        """Completes the files."""
        self._open.close()

    def own(self) -> Iterator[str]:
        """The texts that this process has found; call after `close`."""
        for piece in range(-(-self._count // _PIECE)):
            for _, text in self._read(piece, jax.process_index()):
                yield text

    def all(self) -> Iterator[str]:
        """The texts of all processes in order; call after all processes have called `close`.

        Raises:
            DatasetError: no process has found a hash, so the corpus has changed.
        """
        for piece in range(-(-self._count // _PIECE)):
            texts: dict[int, str] = {}
            for process in range(jax.process_count()):
                for place, text in self._read(piece, process):
                    texts.setdefault(place, text)
            for place in range(piece * _PIECE, min((piece + 1) * _PIECE, self._count)):
                if place not in texts:
                    raise DatasetError(
                        "A sentence that was chosen in the first pass over the corpus is missing "
                        "in the second one: a file was changed or can no longer be read (see the "
                        f"warnings above). Remove {self._folder.parent} and start again."
                    )
                yield texts[place]

    def _path(self, piece: int, process: int) -> pathlib.Path:
        return self._folder / f"{piece:05d}-{process:05d}.msgpack"

    def _file(self, piece: int) -> IO[bytes]:
        if piece not in self._files:
            path = self._path(piece, jax.process_index())
            self._files[piece] = self._open.enter_context(path.open("wb"))
        return self._files[piece]

    def _read(self, piece: int, process: int) -> Iterator[tuple[int, str]]:
        """The (place, text) pairs of a process; each text is compared with its hash."""
        path = self._path(piece, process)
        if not path.is_file():
            return
        try:
            with path.open("rb") as file:
                for place, text in msgpack.Unpacker(file, raw=False, max_str_len=MAX_STRING_BYTES):
                    if sentences.hashes([text])[0] != self.hashes[place]:
                        raise ValueError(f"text {place} is not the one that was written")
                    yield place, text
        except _DAMAGES as error:
            raise DatasetError(
                f"{path} is not readable ({error}); start the same command again, which writes a "
                "new one."
            ) from error
