"""Files on disk and in object stores: listing, sizes, partial reads and atomic writes.

A path without a scheme is local; gs://, s3://, memory:// and others go through fsspec, whose
packages for stores are optional dependencies.
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
import uuid
from collections.abc import Iterator, Sequence

import fsspec

from aced.config import ConfigError
from aced.errors import UserError

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}  # of setup.py
RECOMMENDED = ("gs", "s3")
STORES = (*RECOMMENDED, "gcs", "s3a", "az", "abfs", "abfss", "memory")  # for data sets
DOWNLOAD = (
    "Download it and give its folder; from the Hugging Face hub: "
    "hf download OWNER/NAME --repo-type=dataset --local-dir=FOLDER"
)
MOUNT = "Mount the store (with gcsfuse, rclone) and give the path there."
# Entries of listings that identify a file's content, the best first.
_STAMPS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "modified", "created")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_GLOB = re.compile(r"[*?\[]")


class StorageError(UserError, OSError):
    """A file or folder cannot be listed or read; the message names it and the reason."""


class NoFileError(StorageError):
    """No file has this name or matches this pattern."""


@dataclasses.dataclass(frozen=True)
class File:
    """A listed file."""

    path: str  # as given: local, or with its scheme
    size: int  # bytes
    stamp: str  # changes when the file is rewritten: an ETag or a time


def is_remote(path: str) -> bool:
    """Whether `path` has a scheme, such as gs://."""
    return "://" in path


def is_shadow(name: str) -> bool:
    """Whether a file or tar member has the name of a shadow file of macOS.

    It has the ending of the file beside it, but holds attributes, an icon or a preview.
    """
    *folders, base = name.split("/")
    return base.startswith("._") or "__MACOSX" in folders


def is_passing(error: BaseException) -> bool:
    """Whether an error comes from the disk or the network, not from a file's content."""
    return getattr(error, "errno", None) is not None


def check_scheme(path: str, key: str, stores: Sequence[str], advice: str = MOUNT) -> None:
    """Raises a ConfigError if the value of the setting `key` has a scheme other than `stores`.

    The path is expanded; local paths pass. `advice` ends the message.
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
    """Raises a ConfigError if the package for the path's store is not installed."""
    _store(path)


def expand(pattern: str) -> list[str]:
    """Expands braces as a shell does: `{000..123}` and `{a,b}`.

    Raises:
        ConfigError: a range runs backwards, or has more than ten million paths.
    """
    if braces := _RANGE.search(pattern):
        first, last = braces.groups()
        if not 0 <= int(last) - int(first) < 10_000_000:
            raise ConfigError(f"{pattern}: the range {braces[0]} must ascend by less than 10^7.")
        width = len(first) if first.startswith("0") else 0
        middle = [f"{i:0{width}d}" for i in range(int(first), int(last) + 1)]
    elif braces := _CHOICE.search(pattern):
        middle = braces[1].split(",")
    else:
        return [pattern]
    heads, tails = expand(pattern[: braces.start()]), expand(pattern[braces.end() :])
    return [f"{h}{m}{t}" for h, m, t in itertools.product(heads, middle, tails)]


def find(pattern: str, suffix: str) -> list[File]:
    """The distinct files that `pattern` names, without shadow files of macOS.

    A pattern is a file, a folder (its files that end in `suffix`, such as ".tar"), a glob, or
    braces. Files of a glob are sorted by name, braces keep their order, and symbolic links are
    followed.

    Raises:
        NoFileError: a path that is not a glob does not exist, or no file matches.
        StorageError: a path cannot be listed, or a link is broken.
        ConfigError: the store needs a package that is not installed.
    """
    files: dict[str, File] = {}
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
                files[file.path] = file
    if not files:
        raise NoFileError(
            f"No file matches {pattern}; give a folder with *{suffix} files, one file, or a "
            f"pattern such as /data/{{00000..00099}}{suffix} or /data/*{suffix}."
        )
    return list(files.values())


def matching(pattern: str) -> list[File]:
    """As `find`, but returns an empty list if no file matches.

    Raises:
        StorageError: the files cannot be listed.
    """
    try:
        return find(pattern, "")
    except NoFileError:
        return []


def _behind_link(store: fsspec.AbstractFileSystem, info: dict) -> dict:
    """The information about the target of a link; listings describe the link itself."""
    try:
        with _named_errors(info["name"], "looked up"):
            return store.info(info["name"])
    except FileNotFoundError as error:
        raise StorageError(
            f"{info['name']} is a link to {info['destination']}, which does not exist; copy or "
            "download that file, or remove the link."
        ) from error


def _file(path: str, store: fsspec.AbstractFileSystem, info: dict) -> File:
    name = store.unstrip_protocol(info["name"]) if is_remote(path) else info["name"]
    stamp = next((info[key] for key in _STAMPS if info.get(key) is not None), "")
    if isinstance(stamp, datetime.datetime):  # some listings give times as numbers
        stamp = stamp.timestamp()
    return File(name, int(info["size"]), str(stamp))


def stat(path: str) -> File | None:
    """The file `path`, or None if it does not exist.

    Raises:
        StorageError: the path cannot be looked up.
    """
    store, inner = _store(path)
    store.invalidate_cache(posixpath.dirname(inner))  # cached listings miss writes of other hosts
    try:
        with _named_errors(path, "looked up"):
            return _file(path, store, store.info(inner))
    except FileNotFoundError:
        return None


def is_folder(path: str) -> bool:
    """Whether `path` is a folder, not a file or pattern.

    Raises:
        StorageError: the path cannot be looked up.
    """
    store, inner = _store(path)
    with _named_errors(path, "looked up"):
        return not _GLOB.search(inner) and expand(path) == [path] and store.isdir(inner)


@contextlib.contextmanager
def _named_errors(path: str, action: str) -> Iterator[None]:
    """Converts all errors but FileNotFoundError to StorageErrors that name the path.

    Stores raise errors of their own libraries, for example for missing credentials.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise StorageError(f"{path} cannot be {action}: {type(error).__name__}: {error}") from error


def common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that contains all `paths`."""
    folders = [path.rpartition("/")[0] for path in paths]
    shortest = min(folders, key=len).split("/")
    for depth in range(len(shortest), 0, -1):
        folder = "/".join(shortest[:depth])
        if all(f == folder or f.startswith(f"{folder}/") for f in folders):
            return folder
    return ""


def names(paths: Sequence[str]) -> list[str]:
    """The `paths` relative to their common folder, which are the same on every machine."""
    start = len(common_folder(paths))
    return [path[start:].lstrip("/") for path in paths]


def read(path: str, start: int, length: int) -> bytes:
    """Up to `length` bytes of `path` from `start` on; fewer at its end.

    Raises:
        StorageError: the file cannot be read.
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
    """Opens the file `path`, for libraries that read it themselves."""
    if not is_remote(path):
        return open(path, "rb")
    store, inner = _store(path)
    return store.open(inner, "rb")


def _read_all(descriptor: int, start: int, length: int) -> bytes:
    """Repeats `pread`, which may rarely return fewer bytes than requested."""
    parts = [os.pread(descriptor, length, start)]
    while (got := sum(map(len, parts))) < length and parts[-1]:
        parts.append(os.pread(descriptor, length - got, start + got))
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary local path, `<name>.part`, which is synced and renamed at the end."""
    part = path.with_name(f"{path.name}.part")
    yield part
    with part.open("rb") as written:  # the content must be on disk before the rename
        os.fsync(written.fileno())
    part.replace(path)


def write(path: str, data: bytes | bytearray) -> None:
    """Writes a file atomically, making its folder.

    Raises:
        OSError: the path is not writable. Stores raise their own errors, too.
    """
    if is_remote(path):
        store, inner = _store(path)
        store.pipe_file(inner, data)
        return
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: threads, or machines that share the folder, may write the same file.
    part = target.with_name(f"{target.name}.{uuid.uuid4()}.part")
    try:
        part.write_bytes(data)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def remove_folder(path: str) -> None:
    """Removes a folder with its content; errors are ignored."""
    store, inner = _store(path)
    with contextlib.suppress(Exception):  # stores raise their own errors
        store.rm(inner, recursive=True)


def _store(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `path`, and the path within it."""
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
        package = f"`pip install '.[{extra}]'`" if extra else "the package that fsspec names"
        raise ConfigError(f"{scheme}:// needs {package}: {error}") from error
