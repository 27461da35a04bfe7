"""Checksums of a checkpoint's files, so that a bit that flipped on a disk is not trained on.

They are written into the checkpoint before it gets its name, and compared with what is there when
it is read. Checkpoints of before there were any are read without. One file has none, which Orbax
adds the time to when all others are done; of that, what the run says in it is compared.
"""

import concurrent.futures
import json
import zlib
from typing import Any

from etils import epath

FILE = "checksums.json"
_METADATA, _ABOUT = (
    "_CHECKPOINT_METADATA",
    "custom_metadata",
)  # of Orbax, and what is the run's in it
_FORMAT, _VERSION = "aced-checksums", 1
_BLOCK_BYTES = 1 << 22
_THREADS = 8  # files at once; zlib and reads leave the interpreter free


def write(folder: epath.Path, metadata: Any) -> None:
    """Writes the sizes and checksums of all files below `folder` to its `FILE`.

    Args:
        folder: of the checkpoint.
        metadata: what Orbax was given to keep with it, as JSON has it.

    Raises:
        OSError: a file cannot be read, or `FILE` cannot be written.
    """
    files = dict(sorted(_files(folder).items()))
    files.pop(_METADATA, None)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(files, pool.map(_size_and_crc, files.values()), strict=True))
    about = {"format": _FORMAT, "version": _VERSION, "files": found, _ABOUT: metadata}
    (folder / FILE).write_text(json.dumps(about, indent=1))


def exist(folder: epath.Path) -> bool:
    """Whether the checkpoint in `folder` has checksums."""
    return (folder / FILE).exists()


def damage(
    folder: epath.Path, files: slice = slice(None), most_bytes: int | None = None
) -> str | None:
    """The first file of a checkpoint that is not as it was written, and what is wrong with it.

    Args:
        folder: of the checkpoint.
        files: which ones to read, of all in the order of their names. What Orbax was given to
            keep is compared in any case.
        most_bytes: files that were written with more are not read; None: all are.

    Returns:
        None where all is well, or there are no checksums to tell by.

    Raises:
        OSError: a file is there and cannot be read, which may pass.
    """
    if not exist(folder):
        return None
    try:
        about = json.loads((folder / FILE).read_bytes())
        if (about["format"], about["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"format and version are {about['format']!r}, {about['version']!r}")
        expected = {name: (int(size), int(crc)) for name, (size, crc) in about["files"].items()}
        metadata = about[_ABOUT]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FILE} is not readable ({error!r})"
    if _read_metadata(folder) != metadata:
        return f"{_METADATA} is missing or has other content than was written"
    names = list(expected)[files]
    if most_bytes is not None:
        names = [name for name in names if expected[name][0] <= most_bytes]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _difference(folder / name, *expected[name]), names)
        wrong = (f"{name} {what}" for name, what in zip(names, found, strict=True) if what)
        return next(wrong, None)


def _read_metadata(folder: epath.Path) -> Any:
    """What Orbax was given to keep; None where it cannot be told."""
    try:
        return json.loads((folder / _METADATA).read_bytes())[_ABOUT]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _difference(path: epath.Path, size: int, crc: int) -> str | None:
    try:
        found = _size_and_crc(path)
    except FileNotFoundError:
        return "is missing"
    if found[0] != size:
        return f"has {found[0]:,} bytes instead of {size:,}"
    return None if found[1] == crc else "has other content than was written"


def _size_and_crc(path: epath.Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _files(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    """All files below a folder, by their names from there on."""
    found = {}
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        found |= _files(path, f"{name}/") if path.is_dir() else {name: path}
    return found
