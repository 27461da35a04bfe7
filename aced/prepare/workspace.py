"""The folder beside the data set in which a preparation keeps what it has done, until it is whole.

    .NAME.partial/
      settings.json          of which input and settings all this is
      blocks/                examined images: N.bytes (encoded images) and N.facts, written last
      parts/                 sorted parts of rejected.jsonl
      shards/                hashes of each shard's pictures, and what was written to it, last
      summary.json           counts, hashes and samples
      refused.txt            why the input as a whole can't be prepared
      out/                   the data set, moved to its place once it is complete

Each file is there whole or not at all, and is the same whoever writes it, so that workers may
repeat each other's work, and a restart goes on with what is there. Object stores have no rename:
their files appear whole, and `dataset.json`, which makes a folder a data set, is moved last.
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
    """The files of one preparation; cheap to make, in every worker."""

    def __init__(self, out: str):
        self.out = out if storage.is_remote(out) else str(pathlib.Path(out).expanduser().absolute())
        parent, name = posixpath.split(self.out.rstrip("/"))
        self.root = f"{parent}/.{name}.partial"

    def path(self, name: str) -> str:
        """Where the file `name` of the workspace is."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the file `name` is there, and so is whole."""
        return storage.stat(self.path(name)) is not None

    def read(self, name: str) -> bytes:
        """The whole file `name`, as it is: what has a checksum is compared by the caller."""
        if (file := storage.stat(self.path(name))) is None:
            raise PrepareError(
                f"{self.path(name)} is gone; does another process prepare {self.out}? Start again."
            )
        return storage.read(file.path, 0, file.size)

    def write(self, name: str, data: bytes) -> None:
        """Writes the file `name`, whole or not at all."""
        storage.write(self.path(name), data)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes an object to the file `name`, whole or not at all."""
        self.write(name, own_files.dumps(content))

    def read_json(self, name: str) -> dict[str, Any]:
        """The object that `write_json` wrote to the file `name`.

        Raises:
            PrepareError: the file is damaged.
        """
        with self.reading(name):
            return own_files.loads(self.read(name))

    def reading(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Turns what is wrong in the file `name` into a PrepareError, with what to do."""
        advice = f"remove {self.root} and start again"
        return own_files.reading(self.path(name), advice, PrepareError)

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[pathlib.Path]:
        """A local path to write the file `name` to; it takes its place at the end.

        Libraries that write to local paths only need it, and files too large for memory.
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
        # Of this writer alone: workers may write the same file at the same time.
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            part = pathlib.Path(folder) / "part"
            yield part
            with part.open("rb") as written:  # what is renamed must be on the disk before
                os.fsync(written.fileno())
            part.replace(target)

    def refuse(self, message: str) -> PrepareError:
        """Notes why the input can't be prepared; returns the error to raise in a worker.

        Errors of workers reach the caller in many shapes, depending on the runner.
        """
        self.write("refused.txt", message.encode("utf-8", "backslashreplace"))
        return PrepareError(message)

    def refusal(self) -> str | None:
        """What `refuse` noted."""
        if not self.exists("refused.txt"):
            return None
        return self.read("refused.txt").decode("utf-8", "replace")

    def begin(self, settings: dict[str, Any]) -> bool:
        """Takes up what is there of a preparation with `settings`; removes that of another.

        Returns:
            Whether anything is there to go on with.
        """
        if self._is_of(settings) and not self.exists("refused.txt"):
            return True
        self.remove()
        self.write_json("settings.json", settings)
        return False

    def end(self, settings: dict[str, Any]) -> None:
        """Removes what is left of a preparation with `settings` that was killed at its very end."""
        if not self.exists("settings.json") or self._is_of(settings):
            self.remove()

    def _is_of(self, settings: dict[str, Any]) -> bool:
        if not self.exists("settings.json"):
            return False
        return self.read_json("settings.json") == json.loads(json.dumps(settings))

    def publish(self, files: Set[str], replace: bool) -> None:
        """Moves the data set, complete with `files`, to its place; `replace`: over another one's.

        On a file system the change is one rename; no moment has half of each.
        """
        if storage.is_remote(self.out):
            store, out = fsspec.url_to_fs(self.out)
            _, made = fsspec.url_to_fs(self.path("out"))
            if replace and store.exists(f"{out}/{records.DESCRIPTION}"):
                store.rm_file(f"{out}/{records.DESCRIPTION}")  # from here on, no data set
                store.rm(out, recursive=True)
            store.invalidate_cache()
            for name in sorted(files, key=lambda name: (name == records.DESCRIPTION, name)):
                store.mv(f"{made}/{name}", f"{out}/{name}")
        else:
            out, made = pathlib.Path(self.out), pathlib.Path(self.path("out"))
            for path in made.iterdir():
                if path.name not in files:  # half a file of a run that was killed
                    path.unlink()
            if replace and out.exists():
                old = pathlib.Path(self.path("old"))
                shutil.rmtree(old, ignore_errors=True)  # of a run that was killed in between
                out.rename(old)
            made.rename(out)
        self.remove()

    def remove(self) -> None:
        """Removes the workspace, whatever is in it."""
        if not storage.is_remote(self.root):
            shutil.rmtree(self.root, ignore_errors=True)
            return
        store, inner = fsspec.url_to_fs(self.root)
        with contextlib.suppress(FileNotFoundError):
            store.rm(inner, recursive=True)
