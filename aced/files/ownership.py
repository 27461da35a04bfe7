"""Folder ownership: one process works in a folder at a time, and a second one is refused.

The owner's file names the process, its host and its start, and is rewritten every half minute as a
heartbeat. On a file system the process also holds a lock on it (flock), which the kernel releases
when the process ends for any reason, so that a dead owner on the same machine is detected at once.
Object stores have no locks, and locks of network file systems do not always work between machines.
There an owner without a heartbeat for `STALE_SECONDS` counts as dead.
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

FORCE = (  # help of the flag --force
    "Take the folder over from another process, named in owner.json, which is known to be dead. "
    "Without this, one that died on another machine is noticed within three minutes."
)
FILE = "owner.json"
STALE_SECONDS = 180.0
_BEAT_SECONDS = 30.0
_WATCHED_SECONDS = 45.0  # minimum time to wait for a heartbeat, in case the clocks differ
_LONG_AGO_SECONDS = 3600.0  # more than clocks differ
_DYING_SECONDS = 5.0  # a killed process may hold its lock this long
_POLL_SECONDS = 0.5
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class OwnedError(ConfigError):
    """Another process works in the folder; the message names it and the next step."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that owns a folder."""

    host: str = "an unknown host"
    process: int = 0
    started: str = "at an unknown time"
    seen: float = 0.0  # time of the last heartbeat, seconds since 1970
    boot: str = ""  # id of the machine's last boot
    namespace: str = ""  # PID namespace of `process`
    birth: str = ""  # start time of the process, since numbers are reused
    token: str = ""  # unique id of this owner

    @classmethod
    def this(cls) -> "Owner":
        """This process as a new owner."""
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
        """The owner in a file; an unknown one if the file is being written or damaged."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return cls()

    def bytes(self) -> bytes:
        """The content of the owner's file."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    def is_alive(self) -> bool | None:
        """Whether the process runs on this machine; None if unknown."""
        if not self.boot or self.boot != _boot():
            return None
        if self.birth and _birth(self.process) == self.birth:
            return True
        return False if self.namespace and self.namespace == _namespace() else None

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended, as far as this is certain without waiting.

        A process of this machine since its last boot is recognised at once, any other one after an
        hour without a heartbeat, since the clocks of machines differ.
        """
        alive = self.is_alive()
        return not _patience(self) if alive is None else not alive

    def __str__(self) -> str:
        text = f"process {self.process} on {self.host}, started {self.started}"
        if not self.seen:
            return text
        return f"{text}, last sign of life {max(time.time() - self.seen, 0):,.0f} s ago"


def beside(out: str) -> str:
    """The path of the owner's file of an output that is moved to its place when complete."""
    parent, name = posixpath.split(out.rstrip("/"))
    return posixpath.join(parent, f".{name}.{FILE}")


def owner_in(path: str) -> Owner | None:
    """The process in the owner's file `path`, dead or alive; None without such a file."""
    return _owners_file(path).read()


@contextlib.contextmanager
def owned(path: str, force: bool = False) -> Iterator[None]:
    """Owns the folder of the owner's file `path` while the block runs.

    If an earlier owner may have died on another machine, this waits at most `STALE_SECONDS` for its
    heartbeat; with `force` it replaces that owner without waiting.

    Raises:
        OwnedError: a live process owns the folder.
        StorageError: the file cannot be written. Stores raise their own errors, too.
    """
    me = Owner.this()
    file = _owners_file(path)
    _take(file, me, path, force)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(file, me, path, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join(_DYING_SECONDS)
        with contextlib.suppress(Exception):  # a leftover file is recognised as a dead owner's
            owner = file.read()
            if owner is not None and owner.token == me.token:
                file.clear()
            file.close()


class _OnDisk:
    """The owner's file on a file system, with a lock where the file system has locks."""

    def __init__(self, path: str):
        self._path = pathlib.Path(path).expanduser().absolute()
        self._open: int | None = None
        self._made = False  # whether this process made the folder
        self._locks = True

    def take(self, me: Owner) -> Owner | None:
        """Writes `me`, or returns the owner that is in the way."""
        # Other processes may make and remove the folder at the same time.
        with contextlib.suppress(FileExistsError):
            self._path.parent.mkdir(parents=True)
            self._made = True
        if (opened := self._file()) is None:
            return self.take(me)  # its owner removed it meanwhile
        file, is_new = opened
        try:
            is_locked = self._lock(file)
            owner = Owner.parse(os.pread(file, 1 << 16, 0))
            is_free = is_new  # without locks the process that makes the file owns it
            if self._locks:
                is_free = is_locked and (owner == Owner() or owner.boot == me.boot)
            if not is_free:
                return owner
            if self._is_at_path(file):
                self._open, file = file, -1
                self._begin(me)
                return None
        finally:
            if file >= 0:
                os.close(file)
        return self.take(me)  # its owner removed the file meanwhile

    def _file(self) -> tuple[int, bool] | None:
        """The open file, and whether this call made it; None if it was removed meanwhile."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileNotFoundError:
            if self._path.parent.is_symlink():  # a broken link
                raise
            return None
        except FileExistsError:
            try:
                return os.open(self._path, flags), False
            except FileNotFoundError:
                if self._path.is_symlink():  # a broken link
                    raise
                return None

    def _begin(self, me: Owner) -> None:
        """Writes the file for the first time, and removes it if that fails."""
        try:
            self.write(me)
        except OSError:
            self.clear()
            self.close()
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

    def is_alive(self, owner: Owner) -> bool | None:
        """Whether the owner that `take` returned is alive; None if unknown."""
        if self._locks and owner.boot and owner.boot == _boot():
            return True  # otherwise the kernel would have released its lock
        return owner.is_alive()

    def read(self) -> Owner | None:
        """The owner, or None without a file."""
        try:
            return Owner.parse(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, me: Owner) -> None:
        """Rewrites the file, keeping the lock."""
        data = me.bytes()
        os.pwrite(self._open, data, 0)
        os.ftruncate(self._open, len(data))

    def clear(self) -> None:
        """Removes the file, which makes the lock of another process ineffective."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Releases the lock, and removes the folder if it was made here and is empty."""
        os.close(self._open)
        if self._made:
            with contextlib.suppress(OSError):  # the folder has files
                self._path.parent.rmdir()


class _InStore:
    """The owner's file as an object, created only if it does not exist."""

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

    def is_alive(self, owner: Owner) -> bool | None:
        """Whether the owner that `take` returned is alive; None if unknown."""
        return owner.is_alive()

    def read(self) -> Owner | None:
        """The owner, or None without an object."""
        self._store.invalidate_cache()
        try:
            return Owner.parse(self._store.cat_file(self._path))
        except FileNotFoundError:
            return None

    def write(self, me: Owner) -> None:
        """Rewrites the object."""
        self._store.pipe_file(self._path, me.bytes())

    def clear(self) -> None:
        """Removes the object."""
        self._store.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._store.rm_file(self._path)

    def close(self) -> None:
        """Does nothing: an object has no lock."""


def _owners_file(path: str) -> _OnDisk | _InStore:
    return _InStore(path) if storage.is_remote(path) else _OnDisk(path)


def _take(file: _OnDisk | _InStore, me: Owner, path: str, force: bool) -> None:
    start, first = time.monotonic(), None
    while (owner := _try_take(file, me, path)) is not None:
        alive, waited = file.is_alive(owner), time.monotonic() - start
        if alive:
            if waited < _DYING_SECONDS:
                time.sleep(_POLL_SECONDS)
                continue
            raise OwnedError(f"{_in_use(path, owner)}, or end it: kill {owner.process}.")
        if first is None:
            first, patience = owner, _patience(owner)
            if alive is None and not force and patience:
                logging.warning(
                    "The folder of %s is in use: %s. It is taken over in %.0f s unless there is a "
                    "sign of life. If that process is dead, --force takes it over at once.",
                    path,
                    owner,
                    patience,
                )
        elif owner != Owner() and (owner.token, owner.seen) != (first.token, first.seen):
            # Not while the file is being written.
            raise OwnedError(
                f"{_in_use(path, owner)}, or end it there. If it is known to be dead after all, "
                "start with --force."
            )
        if alive is False or force or waited >= patience:
            logging.warning("%s: taken over from a dead owner: %s.", path, owner)
            file.clear()
            first = None
        else:
            time.sleep(_POLL_SECONDS)


def _try_take(file: _OnDisk | _InStore, me: Owner, path: str) -> Owner | None:
    try:
        return file.take(me)
    except OSError as error:  # a file in the way, a full disk, a read-only folder
        raise storage.StorageError(f"{path} cannot be written: {error}") from error


def _in_use(path: str, owner: Owner) -> str:
    return (
        f"The folder of {path} is in use: {owner}. Two processes would corrupt its files. "
        "Choose another folder, wait for that process"
    )


def _patience(owner: Owner) -> float:
    """Seconds to wait for an owner's heartbeat before it counts as dead."""
    age = time.time() - owner.seen
    if owner.seen and age > _LONG_AGO_SECONDS:
        return 0.0
    return min(max(STALE_SECONDS - age, _WATCHED_SECONDS), STALE_SECONDS)


def _beat(file: _OnDisk | _InStore, me: Owner, path: str, done: threading.Event) -> None:
    failing = False
    while not done.wait(_BEAT_SECONDS):
        try:
            owner = file.read()
            if owner is not None and owner.token not in ("", me.token):
                _end(f"{path}: another process has taken the folder over: {owner}. This one stops.")
            file.write(dataclasses.replace(me, seen=time.time()))
            failing = False
        except Exception as error:  # stores raise their own errors; the run continues
            if not failing:
                logging.warning("%s: the heartbeat could not be written: %s", path, error)
            failing = True


def _end(message: str) -> None:
    """Ends this process at once, since another process owns its files now."""
    logging.error("%s", message)
    logging.flush()
    os._exit(1)


def _boot() -> str:
    """An id of this machine since its last boot, or ""."""
    return _text("/proc/sys/kernel/random/boot_id")


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _birth(process: int) -> str:
    """The start time of a process by the kernel's clock, or "" if it has ended."""
    fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in "ZX" else fields[19]


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""
