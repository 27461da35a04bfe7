"""Checksums of a checkpoint's files, to detect corrupted data.

They are written into the checkpoint before it gets its final name, and compared when it is read.
Older checkpoints without checksums are read unchecked. Orbax adds a time stamp to its metadata file
at the very end, so of this file only the run's own metadata are compared.
"""

import concurrent.futures
import json
import zlib
from typing import Any

from etils import epath

FILE = "checksums.json"
_METADATA, _ABOUT = "_CHECKPOINT_METADATA", "custom_metadata"  # Orbax's file, and the run's entry
_FORMAT, _VERSION = "aced-checksums", 1
_BLOCK_BYTES = 1 << 22
_THREADS = 8  # zlib and reads release the interpreter lock


def write(folder: epath.Path, metadata: Any) -> None:
    """Writes the sizes and checksums of all files below the checkpoint `folder` to its `FILE`.

    `metadata` is the custom metadata passed to Orbax; it must be JSON-serialisable.

    Raises:
        OSError: a file cannot be read, or `FILE` cannot be written.
    """
    files = dict(sorted(_files(folder).items()))
    files.pop(_METADATA, None)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = dict(zip(files, pool.map(_size_and_crc, files.values()), strict=True))
    about = {"format": _FORMAT, "version": _VERSION, "files": sums, _ABOUT: metadata}
    (folder / FILE).write_text(json.dumps(about, indent=1))


def exist(folder: epath.Path) -> bool:
    """Whether the checkpoint in `folder` has checksums."""
    return (folder / FILE).exists()


def damage(
    folder: epath.Path, files: slice = slice(None), most_bytes: int | None = None
) -> str | None:
    """Describes the first file that has changed since it was written; None: none has.

    The custom metadata are always compared. A checkpoint without checksums counts as unchanged.

    Args:
        folder: the checkpoint.
        files: the files to read, as a slice of all files sorted by name.
        most_bytes: skip larger files; None: read all.

    Raises:
        OSError: a file exists but cannot be read, perhaps temporarily.
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
        differences = pool.map(lambda name: _difference(folder / name, *expected[name]), names)
        pairs = zip(names, differences, strict=True)
        return next((f"{name} {difference}" for name, difference in pairs if difference), None)


def _read_metadata(folder: epath.Path) -> Any:
    """The custom metadata; None if missing or not readable."""
    try:
        return json.loads((folder / _METADATA).read_bytes())[_ABOUT]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _difference(path: epath.Path, size: int, crc: int) -> str | None:
    try:
        current_size, current_crc = _size_and_crc(path)
    except FileNotFoundError:
        return "is missing"
    if current_size != size:
        return f"has {current_size:,} bytes instead of {size:,}"
    return None if current_crc == crc else "has other content than was written"


def _size_and_crc(path: epath.Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _files(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    """All files below a folder, by their relative names."""
    files = {}
    for path in folder.iterdir():
        name = f"{prefix}{path.name}"
        files |= _files(path, f"{name}/") if path.is_dir() else {name: path}
    return files
