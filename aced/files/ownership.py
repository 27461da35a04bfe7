"""One process at a time works in a folder: a second one is refused, with the name of the first.

The owner's file names the process, its host and its start, and is written again every half minute
as a sign of life. On a file system the process also holds a lock on it (flock), which the kernel
releases when the process ends, however it ends. So on one machine a dead owner is found at once.
Object stores have no locks, and those of network file systems do not always work between machines.
There an owner that gives no sign of life for `STALE_SECONDS` counts as dead.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import pathlib
import posixpath
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import fsspec
from absl import logging

from aced.config import ConfigError
from aced.files import storage

FORCE = (  # what the flag --force of commands that work in a folder does
    "Take the folder over from another process, named in owner.json, which is known to be dead. "
    "Without this, one that died on another machine is noticed within three minutes."
)
FILE = "owner.json"
STALE_SECONDS = 180.0
_BEAT_SECONDS = 30.0
_WATCHED_SECONDS = 45.0  # for a sign of life, whatever the clocks of two machines say
_LONG_AGO_SECONDS = 3600.0  # more than clocks differ
_DYING_SECONDS = 5.0  # that a process which was killed may hold its lock for
_POLL_SECONDS = 0.5
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class OwnedError(ConfigError):
    """Another process works in the folder; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that owns a folder."""

    host: str = "an unknown host"
    process: int = 0
    started: str = "at an unknown time"
    seen: float = 0.0  # seconds since 1970 of its last sign of life
    boot: str = ""  # of its machine: one that is started again is another
    namespace: str = ""  # in which its number is that process
    birth: str = ""  # of the process: numbers are used again
    token: str = ""  # of this owner alone

    @classmethod
    def this(cls) -> "Owner":
        """This process, as an owner of its own."""
        return cls(
            host=socket.gethostname(),
            process=os.getpid(),
            started=datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
            seen=time.time(),
            boot=_boot(),
            namespace=_namespace(),
            birth=_birth(os.getpid()),
            token=uuid.uuid4().hex,
        )

    @classmethod
    def parse(cls, data: bytes) -> "Owner":
        """What `bytes` gave; of a file that is being written or is damaged, an unknown owner."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return cls()

    def bytes(self) -> bytes:
        """For the file."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    def is_alive(self) -> bool | None:
        """Whether it is a process of this machine that is running; None: that cannot be told."""
        if not self.boot or self.boot != _boot():
            return None
        if self.birth and _birth(self.process) == self.birth:
            return True
        return False if self.namespace and self.namespace == _namespace() else None

    def __str__(self) -> str:
        said = f"process {self.process} on {self.host}, started {self.started}"
        if not self.seen:
            return said
        return f"{said}, last sign of life {max(time.time() - self.seen, 0):,.0f} s ago"


def beside(out: str) -> str:
    """Where the owner's file of an output is that takes its place only when it is complete."""
    parent, name = posixpath.split(out.rstrip("/"))
    return posixpath.join(parent, f".{name}.{FILE}")


@contextlib.contextmanager
def owned(path: str, force: bool = False) -> Iterator[None]:
    """Owns the folder of the owner's file `path` while the block runs.

    Where the owner that is there may have died on another machine, it is watched for at most
    `STALE_SECONDS` before its place is taken.

    Args:
        path: of the owner's file, local or in an object store.
        force: take the place of an owner that may be dead without waiting for that.

    Raises:
        OwnedError: another process, which is alive, owns it.
        StorageError: the file cannot be written. Stores raise errors of their own, too.
    """
    me = Owner.this()
    file = _InStore(path) if storage.is_remote(path) else _OnDisk(path)
    _take(file, me, path, force)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, me, path, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join(_DYING_SECONDS)
        with contextlib.suppress(Exception):  # what is left is known to be of a dead process
            file.release(me)


class _OnDisk:
    """The owner's file on a file system, with the kernel's lock on it where there are locks."""

    def __init__(self, path: str):
        self._path = pathlib.Path(path).expanduser().absolute()
        self._open: int | None = None
        self._made = False  # whether the folder was not there before
        self._locks = True

    def take(self, me: Owner) -> Owner | None:
        """Writes `me`, or returns the owner that is in the way."""
        # Others may make and remove the folder at the same time: each call is tried, none foreseen.
        with contextlib.suppress(FileExistsError):
            self._path.parent.mkdir(parents=True)
            self._made = True
        if (opened := self._file()) is None:
            return self.take(me)  # its owner removed it in between
        file, is_new = opened
        try:
            got = self._lock(file)
            there = Owner.parse(os.pread(file, 1 << 16, 0))
            is_free = is_new  # without locks: who makes the file has it
            if self._locks:
                is_free = got and (there == Owner() or there.boot == me.boot)
            if not is_free:
                return there
            if self._is_at_path(file):
                self._open, file = file, -1
                self._begin(me)
                return None
        finally:
            if file >= 0:
                os.close(file)
        return self.take(me)  # its owner removed the file in between

    def _file(self) -> tuple[int, bool] | None:
        """The open file, and whether this call made it; None: it was there, and then it was not."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileNotFoundError:
            if self._path.parent.is_symlink():  # to where nothing is
                raise
            return None
        except FileExistsError:
            try:
                return os.open(self._path, flags), False
            except FileNotFoundError:
                if self._path.is_symlink():  # to where nothing is: it never can be opened
                    raise
                return None

    def _begin(self, me: Owner) -> None:
        """Writes the file for the first time; where that fails nothing is left of it."""
        try:
            self.write(me)
        except OSError:
            self.clear()
            self._close()
            raise

    def _is_at_path(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _lock(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._locks = False
        return True

    def is_alive(self, there: Owner) -> bool | None:
        """Whether the owner that `take` returned is alive; None: that cannot be told."""
        if self._locks and there.boot and there.boot == _boot():
            return True  # else the kernel would have given its lock away
        return there.is_alive()

    def read(self) -> Owner | None:
        """The owner, if there is a file."""
        try:
            return Owner.parse(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, me: Owner) -> None:
        """Writes the file anew; the lock stays."""
        data = me.bytes()
        os.pwrite(self._open, data, 0)
        os.ftruncate(self._open, len(data))

    def clear(self) -> None:
        """Removes the file. A lock that another process holds on it has no effect from then on."""
        self._path.unlink(missing_ok=True)

    def release(self, me: Owner) -> None:
        """Removes the file if it is that of `me`, and the lock."""
        there = self.read()
        if there is not None and there.token == me.token:
            self.clear()
        self._close()

    def _close(self) -> None:
        """Gives the lock back, and removes the folder if it was made here and is empty."""
        os.close(self._open)
        if self._made:
            with contextlib.suppress(OSError):  # it holds what was made in it
                self._path.parent.rmdir()


class _InStore:
    """The owner's file as an object, which is made only where there is none."""

    def __init__(self, path: str):
        storage.check_package(path)
        self._store, self._path = fsspec.url_to_fs(path)

    def take(self, me: Owner) -> Owner | None:
        """Writes `me`, or returns the owner that is in the way."""
        try:
            self._store.pipe_file(self._path, me.bytes(), mode="create")
        except FileExistsError:
            return self.read() or Owner()
        return None

    def is_alive(self, there: Owner) -> bool | None:
        """Whether the owner that `take` returned is alive; None: that cannot be told."""
        return there.is_alive()

    def read(self) -> Owner | None:
        """The owner, if there is an object."""
        self._store.invalidate_cache()
        try:
            return Owner.parse(self._store.cat_file(self._path))
        except FileNotFoundError:
            return None

    def write(self, me: Owner) -> None:
        """Writes the object anew."""
        self._store.pipe_file(self._path, me.bytes())

    def clear(self) -> None:
        """Removes the object."""
        self._store.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._path)

    def release(self, me: Owner) -> None:
        """Removes the object if it is that of `me`."""
        there = self.read()
        if there is not None and there.token == me.token:
            self.clear()


def _take(file: _OnDisk | _InStore, me: Owner, path: str, force: bool) -> None:
    start, first = time.monotonic(), None
    while (there := _asked(file, me, path)) is not None:
        alive, waited = file.is_alive(there), time.monotonic() - start
        if alive:
            if waited < _DYING_SECONDS:
                time.sleep(_POLL_SECONDS)
                continue
            raise OwnedError(f"{_in_use(path, there)}, or end it: kill {there.process}.")
        if first is None:
            first, patience = there, _patience(there)
            if alive is None and not force and patience:
                logging.warning(
                    "%s says that its folder is in use: %s. It is taken over in %.0f s unless "
                    "there is a sign of life; with --force, if that process is dead, at once.",
                    path,
                    there,
                    patience,
                )
        elif (there.token, there.seen) != (first.token, first.seen):
            raise OwnedError(
                f"{_in_use(path, there)}, or end it there. Where it is known to be dead all the "
                "same, start with --force."
            )
        if alive is False or force or waited >= patience:
            logging.warning("%s: the place of a dead owner is taken: %s.", path, there)
            file.clear()
            first = None
        else:
            time.sleep(_POLL_SECONDS)


def _asked(file: _OnDisk | _InStore, me: Owner, path: str) -> Owner | None:
    try:
        return file.take(me)
    except OSError as error:  # a file in the way, a full disk, a folder that is read-only
        raise storage.StorageError(f"{path} cannot be written: {error}") from error


def _in_use(path: str, there: Owner) -> str:
    return (
        f"{path} says that its folder is in use: {there}. Two at a time would spoil what is in it. "
        "Choose another folder, wait for that process"
    )


def _patience(there: Owner) -> float:
    """How long to watch an owner for a sign of life before it counts as dead."""
    age = time.time() - there.seen
    if there.seen and age > _LONG_AGO_SECONDS:
        return 0.0
    return min(max(STALE_SECONDS - age, _WATCHED_SECONDS), STALE_SECONDS)


def _beat(file: _OnDisk | _InStore, me: Owner, path: str, done: threading.Event) -> None:
    failing = False
    while not done.wait(_BEAT_SECONDS):
        try:
            there = file.read()
            if there is not None and there.token not in ("", me.token):
                _end(f"{path}: another process has taken the folder over: {there}. This one ends.")
            file.write(dataclasses.replace(me, seen=time.time()))
            failing = False
        except Exception as error:  # stores raise errors of their own, and none is worth a run
            if not failing:
                logging.warning("%s: no sign of life could be written: %s", path, error)
            failing = True


def _end(message: str) -> None:
    """Ends this process at once: what it would still write is another's now."""
    logging.error("%s", message)
    logging.flush()
    os._exit(1)


def _boot() -> str:
    """An id of this machine since its last start; empty where the kernel has none."""
    return _text("/proc/sys/kernel/random/boot_id")


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _birth(process: int) -> str:
    """When a process was started, by the kernel's clock; empty if it has ended."""
    fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""
