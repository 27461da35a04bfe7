"""Checksums of our own files, so that damage is detected when they are read.

A JSON object has the checksum of its other entries as the entry `sha256`, so that any tool can read
it; other files have a CRC-32 in a last line. Older JSON files have no checksum.
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from aced.config import ConfigError, flatten

CHECKSUM = "sha256"
_SEAL = b"\ncrc32 %08x\n"
_SEAL_BYTES = len(_SEAL % 0)


class UnreadableError(ValueError):
    """Damaged content.

    Attributes:
        reason: the problem.
        line: the line of the problem, from 1 on; None if unknown.
    """

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason if line is None else f"line {line}: {reason}")
        self.reason, self.line = reason, line


@contextlib.contextmanager
def reading(
    path: str | os.PathLike, advice: str, kind: type[Exception] = ConfigError
) -> Iterator[None]:
    """Converts errors of a block that reads and checks the file `path` to errors that name it.

    Every error that the content or the disk can cause becomes one of type `kind`, whose message
    ends in `advice`, the next step for the user.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it has no {error.args[0]!r}" if type(error) is KeyError else error
        raise kind(f"{path} is not readable ({reason}); {advice}.") from error


def parse(data: bytes) -> dict[str, Any]:
    """Returns the JSON object in `data`.

    Raises:
        UnreadableError: the data are not a JSON object.
    """
    if not data.strip(b"\0"):
        raise UnreadableError(f"it is {len(data):,} zero bytes" if data else "it is empty")
    try:
        content = json.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"byte 0x{data[error.start]:02x} is not UTF-8", line) from error
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg}, column {error.colno}"
        raise UnreadableError(reason, error.lineno) from error
    except RecursionError as error:
        raise UnreadableError("its brackets are nested too deeply") from error
    if type(content) is not dict:
        raise UnreadableError(f"it is not a JSON object but a {type(content).__name__}")
    return content


def dumps(content: Mapping[str, Any]) -> bytes:
    """Returns a JSON object with its checksum, as `loads` reads it."""
    content = json.loads(json.dumps(content))  # converts keys to strings and tuples to lists
    content[CHECKSUM] = _sha256(content)
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def loads(data: bytes) -> dict[str, Any]:
    """Returns the object that `dumps` wrote.

    Raises:
        UnreadableError: the data are damaged.
    """
    content = parse(data)
    written = content.pop(CHECKSUM, None)
    wrong = _ends_with_checksum(content) if written is None else written != _sha256(content)
    if wrong:
        raise UnreadableError(
            f"its {CHECKSUM} does not match its content: it was changed. If you changed it "
            f"yourself, remove the entry {CHECKSUM!r}"
        )
    return content


def _ends_with_checksum(content: Mapping[str, Any]) -> bool:
    """Whether the last entry is the checksum under a damaged name."""
    *others, last = content.items() or [("", None)]
    return last[1] == _sha256(dict(others))


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """The dotted keys in which two JSON objects differ, with a line about each."""
    old, new = flatten(there), flatten(now)
    return {
        key: f"{key}: there {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


def seal(data: bytes) -> bytes:
    """Returns `data` with its checksum, as `unseal` reads it."""
    return data + _SEAL % zlib.crc32(data)


def unseal(data: bytes) -> bytes:
    """Returns the data given to `seal`.

    Raises:
        UnreadableError: the data are damaged.
    """
    content, checksum = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if checksum != _SEAL % zlib.crc32(content):
        raise UnreadableError("its checksum does not match its content: it was cut off or changed")
    return content
