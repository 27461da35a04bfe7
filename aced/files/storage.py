"""Files on disk and in object stores: listing, sizes, and reads of a part of a file.

A path without a scheme is local; gs://, s3://, memory:// and the like go through fsspec, whose
packages for stores are extras. Nothing is written here but by `write`, which is atomic.
"""

import contextlib
import dataclasses
import datetime
import functools
import io
import itertools
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator, Sequence

import fsspec

from aced.config import ConfigError
from aced.errors import UserError

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # of setup.py
RECOMMENDED = ("gs", "s3")
STORES = (*RECOMMENDED, "gcs", "s3a", "az", "abfs", "abfss", "memory")  # for data sets
DOWNLOAD = (
    "Download it and give its folder; of the Hugging Face hub: "
    "hf download OWNER/NAME --repo-type=dataset --local-dir=FOLDER"
)
MOUNT = "Mount the store (with gcsfuse, rclone) and give the path there."
# What object stores and file systems say of a file's content, the best first.
_STAMPS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "modified", "created")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_GLOB = re.compile(r"[*?\[]")


class StorageError(UserError, OSError):
    """A file or folder that cannot be listed or read; the message names it and says why."""


class NoFileError(StorageError):
    """No file is of this name or pattern."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was when it was listed."""

    path: str  # as given: local, or with its scheme
    size: int  # bytes
    stamp: str  # changes when the file is written again: an ETag, or the time of that


def is_remote(path: str) -> bool:
    """Whether `path` has a scheme, such as gs://."""
    return "://" in path


def is_shadow(name: str) -> bool:
    """Whether a file or member of a tar of this name is what macOS notes beside another file.

    It ends as that one does, but holds no picture, caption or table: attributes, icons, a preview.
    """
    *folders, base = name.split("/")
    return base.startswith("._") or "__MACOSX" in folders


def is_passing(error: BaseException) -> bool:
    """Whether an error is the disk's or the network's, and not of what a file holds."""
    return getattr(error, "errno", None) is not None


def check_scheme(path: str, key: str, stores: Sequence[str], advice: str = MOUNT) -> None:
    """Refuses a path with a scheme that cannot be used there.

    Args:
        path: spelled out; local ones pass.
        key: the setting or flag that it is the value of.
        stores: schemes that can be used there.
        advice: what to do instead.

    Raises:
        ConfigError: it has another scheme.
    """
    if not is_remote(path):
        return
    scheme = path.partition("://")[0]
    if scheme not in stores:
        works = ["Local paths", *(f"{store}://" for store in stores if store in RECOMMENDED)]
        raise ConfigError(
            f"{key} = {path!r} cannot be used, as it begins with {scheme}://. "
            f"{' and '.join(works)} can. {advice}"
        )


def check_package(path: str) -> None:
    """Refuses a path in a store that cannot be reached from here.

    Raises:
        ConfigError: the package for it is not installed.
    """
    _store(path)


def expand(pattern: str) -> list[str]:
    """The paths that braces stand for, in order: `{000..123}`, as a shell has it, and `{a,b}`.

    Raises:
        ConfigError: a range runs backwards, or stands for more than ten million paths.
    """
    if found := _RANGE.search(pattern):
        first, last = found.groups()
        if not 0 <= int(last) - int(first) < 10_000_000:
            raise ConfigError(f"{pattern}: the range {found[0]} must go up, by less than 10^7.")
        width = len(first) if first.startswith("0") else 0
        middle = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    elif found := _CHOICE.search(pattern):
        middle = found[1].split(",")
    else:
        return [pattern]
    before, tails = pattern[: found.start()], expand(pattern[found.end() :])
    heads = expand(before)
    return [f"{h}{m}{t}" for h, m, t in itertools.product(heads, middle, tails)]


def find(pattern: str, suffix: str) -> list[File]:
    """The files that `pattern` names, each once.

    Args:
        pattern: a file, a folder (its files that end in `suffix`), globs, braces; those of a glob
            are sorted by name, braces keep their order, shadow files of macOS are left out. A
            symbolic link is the file that it leads to.
        suffix: such as ".tar".

    Raises:
        NoFileError: a path that is not a glob does not exist, or nothing matches.
        StorageError: a path cannot be listed, or a link leads to where nothing is.
        ConfigError: the store needs a package that is not installed.
    """
    found: dict[str, File] = {}
    for path in expand(pattern.removeprefix("file://")):
        store, inner = _store(path)
        try:
            with _named_errors(path, "listed"):
                if not _GLOB.search(inner) and store.isdir(inner):
                    inner = posixpath.join(inner, f"*{suffix}")
                if _GLOB.search(inner):
                    listed = store.glob(inner, detail=True)
                    infos = [listed[name] for name in sorted(listed) if not is_shadow(name)]
                else:
                    infos = [store.info(inner)]
        except FileNotFoundError as error:
            raise NoFileError(f"{path} does not exist; correct the path, or copy it.") from error
        for info in infos:
            if info.get("islink"):
                info = _behind_link(store, info)
            if info["type"] == "file":
                file = _file(path, store, info)
                found[file.path] = file
    if not found:
        raise NoFileError(
            f"No file matches {pattern}; give a folder with *{suffix} files, one file, or a "
            f"pattern such as /data/{{00000..00099}}{suffix} or /data/*{suffix}."
        )
    return list(found.values())


def matching(pattern: str) -> list[File]:
    """The files that a glob names, as `find` has them; maybe none.

    Raises:
        StorageError: they cannot be listed.
    """
    try:
        return find(pattern, "")
    except NoFileError:
        return []


def _behind_link(store: fsspec.AbstractFileSystem, info: dict) -> dict:
    """What is known of the file that a link leads to; listings have that of the link itself."""
    try:
        with _named_errors(info["name"], "looked up"):
            return store.info(info["name"])
    except FileNotFoundError as error:
        raise StorageError(
            f"{info['name']} is a link to {info['destination']}, where nothing is; copy or "
            "download that file, or remove the link."
        ) from error


def _file(path: str, store: fsspec.AbstractFileSystem, info: dict) -> File:
    name = store.unstrip_protocol(info["name"]) if is_remote(path) else info["name"]
    stamp = next((info[key] for key in _STAMPS if info.get(key) is not None), "")
    if isinstance(stamp, datetime.datetime):  # a listing may have the same time as a number
        stamp = stamp.timestamp()
    return File(name, int(info["size"]), str(stamp))


def stat(path: str) -> File | None:
    """The file `path` as it is now, or None where there is none.

    Raises:
        StorageError: that cannot be told.
    """
    store, inner = _store(path)
    store.invalidate_cache(posixpath.dirname(inner))  # a kept listing knows nothing of other hosts
    try:
        with _named_errors(path, "looked up"):
            return _file(path, store, store.info(inner))
    except FileNotFoundError:
        return None


def is_folder(path: str) -> bool:
    """Whether `path` is a folder, and no file or pattern.

    Raises:
        StorageError: that cannot be told.
    """
    store, inner = _store(path)
    with _named_errors(path, "looked up"):
        return not _GLOB.search(inner) and expand(path) == [path] and store.isdir(inner)


@contextlib.contextmanager
def _named_errors(path: str, what: str) -> Iterator[None]:
    """Every error but that of a missing file says of which path it is.

    Stores let out those of their own libraries, missing credentials to begin with.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StorageError(f"{path} cannot be {what}: {type(error).__name__}: {error}") from error


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that all `paths` are in."""
    folders = [path.rpartition("/")[0] for path in paths]
    shortest = min(folders, key=len).split("/")
    for depth in range(len(shortest), 0, -1):
        folder = "/".join(shortest[:depth])
        if all(f == folder or f.startswith(f"{folder}/") for f in folders):
            return folder
    return ""


def names(paths: Sequence[str]) -> list[str]:
    """The `paths` without the folder that they have in common: alike on every machine."""
    start = len(common_folder(paths))
    return [path[start:].lstrip("/") for path in paths]


def read(path: str, start: int, length: int) -> bytes:
    """Up to `length` bytes of `path` from `start` on; fewer at its end.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        if not is_remote(path):
            with open(path, "rb", buffering=0) as file:
                return _read_all(file.fileno(), start, length)
        store, inner = _store(path)
        with _named_errors(path, "read"):
            return store.cat_file(inner, start=start, end=start + length) if length else b""
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error


def open_file(path: str) -> io.IOBase:
    """The file `path`, for libraries that seek and read in it themselves."""
    if not is_remote(path):
        return open(path, "rb")
    store, inner = _store(path)
    return store.open(inner, "rb")


def _read_all(descriptor: int, start: int, length: int) -> bytes:
    """One `pread` in all but the rarest case: a read may end early."""
    parts = [os.pread(descriptor, length, start)]
    while (got := sum(map(len, parts))) < length and parts[-1]:
        parts.append(os.pread(descriptor, length - got, start + got))
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the place to write a local file to, `<name>.part`; it is renamed once it is on disk."""
    part = path.with_name(f"{path.name}.part")
    yield part
    with part.open("rb") as written:  # what is renamed must be on the disk before
        os.fsync(written.fileno())
    part.replace(path)


def write(path: str, data: bytes | bytearray) -> None:
    """Writes a file that is there whole, or not at all; its folder is made where it is missing.

    Raises:
        OSError: the place is not writable. Stores raise errors of their own, too.
    """
    if is_remote(path):
        store, inner = _store(path)
        store.pipe_file(inner, data)
        return
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def remove_folder(path: str) -> None:
    """Removes a folder and what is in it, as far as that can be done."""
    store, inner = _store(path)
    with contextlib.suppress(Exception):  # stores raise errors of their own
        store.rm(inner, recursive=True)


def _store(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `path`, and the path as that one has it."""
    scheme = path.partition("://")[0] if is_remote(path) else "file"
    if scheme != "file":
        check_scheme(path, "The path", STORES, DOWNLOAD)
    store = _file_system(scheme)
    return store, store._strip_protocol(path)


@functools.cache
def _file_system(scheme: str) -> fsspec.AbstractFileSystem:
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = f"`pip install '.[{extra}]'`" if extra else "the package that fsspec names"
        raise ConfigError(f"{scheme}:// needs {how}: {error}") from error
