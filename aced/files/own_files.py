"""Files of our own that are read back: each has a checksum, and one reader notices any damage.

A JSON object has the checksum as its entry `sha256`, of all else in it, so that it can be read and
written with any tool; other files have a CRC-32 in a last line. JSON files of before there were
checksums are read without.
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from aced.config import ConfigError

CHECKSUM = "sha256"
_SEAL = b"\ncrc32 %08x\n"
_SEAL_BYTES = len(_SEAL % 0)


class UnreadableError(ValueError):
    """Bytes that are not what was written.

    Attributes:
        reason: what is wrong.
        line: where it is wrong, from 1 on; None: that cannot be told.
    """

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason if line is None else f"line {line}: {reason}")
        self.reason, self.line = reason, line


@contextlib.contextmanager
def reading(
    path: str | os.PathLike, advice: str, kind: type[Exception] = ConfigError
) -> Iterator[None]:
    """Names the file in the error of a block that reads it and looks at what is in it.

    Args:
        path: of the file.
        advice: what to do about it, the end of a sentence.
        kind: of the error.

    Raises:
        kind: instead of every error that content or a disk can cause.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"it has no {error.args[0]!r}" if type(error) is KeyError else error
        raise kind(f"{path} is not readable ({reason}); {advice}.") from error


def parse(data: bytes) -> dict[str, Any]:
    """Returns the JSON object in `data`.

    Raises:
        UnreadableError: there is none.
    """
    if not data.strip(b"\0"):
        raise UnreadableError(f"it is {len(data):,} zero bytes" if data else "it is empty")
    try:
        found = json.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"byte 0x{data[error.start]:02x} is not UTF-8", line) from error
    except json.JSONDecodeError as error:
        reason = f"no JSON: {error.msg}, column {error.colno}"
        raise UnreadableError(reason, error.lineno) from error
    except RecursionError as error:
        raise UnreadableError("no JSON of ours: brackets within brackets") from error
    if type(found) is not dict:
        raise UnreadableError(f"it is no JSON object but a {type(found).__name__}")
    return found


def dumps(content: Mapping[str, Any]) -> bytes:
    """Returns a JSON object with its checksum, as `loads` reads it."""
    content = json.loads(json.dumps(content))  # as it is read: keys are strings, tuples are lists
    content[CHECKSUM] = _sha256(content)
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def loads(data: bytes) -> dict[str, Any]:
    """Returns the object that `dumps` wrote.

    Raises:
        UnreadableError: it is not that.
    """
    content = parse(data)
    written = content.pop(CHECKSUM, None)
    wrong = _ends_with_checksum(content) if written is None else written != _sha256(content)
    if wrong:
        raise UnreadableError(
            f"its content is not that of its {CHECKSUM}: it was changed. If you changed it "
            f"yourself, remove the entry {CHECKSUM!r}"
        )
    return content


def _ends_with_checksum(content: Mapping[str, Any]) -> bool:
    """Whether the last entry is the checksum of the others, so that its name was changed."""
    *others, last = content.items() or [("", None)]
    return last[1] == _sha256(dict(others))


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal(data: bytes) -> bytes:
    """Returns `data` with its checksum, as `unseal` reads it."""
    return data + _SEAL % zlib.crc32(data)


def unseal(data: bytes) -> bytes:
    """Returns what `seal` was given.

    Raises:
        UnreadableError: it is not that.
    """
    content, found = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if found != _SEAL % zlib.crc32(content):
        raise UnreadableError("its content is not that of its checksum: it was cut off or changed")
    return content
