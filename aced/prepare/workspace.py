"""The folder beside the data set in which a preparation keeps its work until it is complete.

    .NAME.partial/
      settings.json          the input and settings
      blocks/                examined images: N-DIGEST.bytes (encoded images), and N-DIGEST.facts,
                             written last; the digest is that of the settings
      parts/                 sorted parts of rejected.jsonl
      shards/                hashes of each shard's pictures, and its description, written last
      exchange/              what workers of Dask pass on to each other
      summary.json           counts, hashes and samples
      refused.txt            why the input can't be prepared
      out/                   the data set, moved to its place once it is complete

Files are written atomically, and every worker would write the same bytes, so workers may repeat
each other's work and a restart continues with the existing files. Object stores have no rename of
folders: their files are moved one by one, `dataset.json`, which makes a folder a data set, last.
"""

import contextlib
import json
import os
import pathlib
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Set
from typing import Any

import fsspec

from aced.data import records
from aced.files import own_files, storage
from aced.prepare.captions import PrepareError


class Workspace:
    """The files of one preparation; cheap to construct in every worker."""

    def __init__(self, out: str):
        self.out = out if storage.is_remote(out) else str(pathlib.Path(out).expanduser().absolute())
        parent, name = posixpath.split(self.out.rstrip("/"))
        self.root = f"{parent}/.{name}.partial"

    def path(self, name: str) -> str:
        """The path of the file `name`."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the file `name` exists, and so is complete."""
        return storage.stat(self.path(name)) is not None

    def read(self, name: str) -> bytes:
        """The content of the file `name`; the caller compares checksums."""
        if (file := storage.stat(self.path(name))) is None:
            raise PrepareError(
                f"{self.path(name)} has disappeared. If no other process prepares {self.out}, "
                "start again."
            )
        return storage.read(file.path, 0, file.size)

    def write(self, name: str, data: bytes) -> None:
        """Writes the file `name` atomically."""
        storage.write(self.path(name), data)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes an object to the file `name` atomically."""
        self.write(name, own_files.dumps(content))

    def read_json(self, name: str) -> dict[str, Any]:
        """The object that `write_json` wrote to the file `name`.

        Raises:
            PrepareError: the file is damaged.
        """
        with self.reading(name):
            return own_files.loads(self.read(name))

    def reading(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Turns errors in the content of the file `name` into a PrepareError with advice."""
        advice = f"remove {self.root} and start again"
        return own_files.reading(self.path(name), advice, PrepareError)

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[pathlib.Path]:
        """A local path for the content of the file `name`, which is moved to its place at the end.

        For libraries that write to local paths only, and for files too large for memory.
        """
        if storage.is_remote(self.out):
            with tempfile.TemporaryDirectory() as folder:
                part = pathlib.Path(folder) / "part"
                yield part
                store, inner = fsspec.url_to_fs(self.path(name))
                store.put_file(str(part), inner)
            return
        target = pathlib.Path(self.path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A folder for this writer, since workers may write the same file at the same time.
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            part = pathlib.Path(folder) / "part"
            yield part
            with part.open("rb") as written:  # the content must be on disk before the rename
                os.fsync(written.fileno())
            part.replace(target)

    def refuse(self, message: str) -> PrepareError:
        """Writes down why the input can't be prepared; returns the error to raise in a worker.

        The caller reads the file, because each runner wraps errors of workers in its own way.
        """
        self.write("refused.txt", message.encode("utf-8", "backslashreplace"))
        return PrepareError(message)

    def refusal(self) -> str | None:
        """The message of `refuse`, if any."""
        if not self.exists("refused.txt"):
            return None
        return self.read("refused.txt").decode("utf-8", "replace")

    def begin(self, settings: dict[str, Any]) -> bool:
        """Keeps a workspace with the same `settings`, to resume it; otherwise makes an empty one.

        Returns:
            Whether the workspace is resumed.
        """
        if self._has(settings) and not self.exists("refused.txt"):
            return True
        self.remove()
        self.write_json("settings.json", settings)
        return False

    def end(self, settings: dict[str, Any]) -> None:
        """Removes the workspace of a complete data set, left behind by a run killed at its end."""
        if not self.exists("settings.json") or self._has(settings):
            self.remove()

    def _has(self, settings: dict[str, Any]) -> bool:
        if not self.exists("settings.json"):
            return False
        return self.read_json("settings.json") == json.loads(json.dumps(settings))

    def publish(self, files: Set[str], replace: bool) -> None:
        """Moves the data set, which consists of `files`, to its place, where it may `replace`
        another one. On a file system this is one rename.
        """
        if storage.is_remote(self.out):
            store, out = fsspec.url_to_fs(self.out)
            _, made = fsspec.url_to_fs(self.path("out"))
            if replace and store.exists(f"{out}/{records.DESCRIPTION}"):
                store.rm_file(f"{out}/{records.DESCRIPTION}")  # no data set from here on
                store.rm(out, recursive=True)
            store.invalidate_cache()
            for name in sorted(files, key=lambda name: (name == records.DESCRIPTION, name)):
                store.mv(f"{made}/{name}", f"{out}/{name}")
        else:
            out, made = pathlib.Path(self.out), pathlib.Path(self.path("out"))
            for path in made.iterdir():
                if path.name not in files:  # left by a killed run
                    path.unlink()
            if replace and out.exists():
                old = pathlib.Path(self.path("old"))
                shutil.rmtree(old, ignore_errors=True)  # left by a killed run
                out.rename(old)
            made.rename(out)
        self.remove()

    def remove(self, folder: str = "") -> None:
        """Removes the workspace, or a folder in it."""
        path = self.path(folder) if folder else self.root
        if not storage.is_remote(path):
            shutil.rmtree(path, ignore_errors=True)
            return
        store, inner = fsspec.url_to_fs(path)
        with contextlib.suppress(FileNotFoundError):
            store.rm(inner, recursive=True)
