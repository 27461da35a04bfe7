"""Lists the members of a tar file: POSIX ustar and pax, and GNU long names.

Python's `tarfile` ends silently at the first damaged header. This reader reports damage and
continues at the next good header. Nothing is unpacked: a member's name is not used as a path.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator

BLOCK = 512
_MAX_NAME_BYTES = 1 << 20  # of a long name or a pax header
_MAX_END_BYTES = 1 << 16  # zeros after the last member
_PIECE = 1 << 16  # bytes read at once in zeros
_COUNT = re.compile(rb"\d{1,19}")  # a number of bytes; `int` refuses very many digits
_REGULAR = b"0\x007"
_ZEROS = bytes(BLOCK)


@dataclasses.dataclass(frozen=True)
class Member:
    """A regular file in a tar."""

    name: str
    start: int  # of its bytes in the tar
    size: int


@dataclasses.dataclass(frozen=True)
class Damage:
    """An unusable part of a tar."""

    name: str  # of the member, or the position
    reason: str


class TarError(ValueError):
    """A file that is not a tar or is compressed."""


def members(
    read: Callable[[int, int], bytes], size: int, digest: "hashlib._Hash"
) -> Iterator[Member | Damage]:
    """The members of a tar of `size` bytes, in their order.

    `read(start, length)` returns up to `length` bytes, and fewer only at the end of the tar.
    `digest` is updated with all headers: names, sizes and times of change.

    Raises:
        TarError: it is compressed, or does not begin as a tar does.
    """
    position, overrides = 0, {}  # None: the header about the next member is damaged
    while position < size:
        block = read(position, BLOCK)
        if block == _ZEROS:
            end = _end_of_zeros(read, position, size)
            if end == size and end - position <= _MAX_END_BYTES:
                return
            reason = f"{end - position} bytes of zeros: it was not written, or copied, completely"
            yield Damage(f"byte {position}", reason)
            if end == size:
                return
            position, overrides = _next_header(read, end - BLOCK, size), {}
            continue
        if not _is_header(block):
            if position == 0:
                _refuse(block)
            problem = "cut off in a header" if len(block) < BLOCK else "a damaged header"
            yield Damage(f"byte {position}", problem)
            position, overrides = _next_header(read, position, size), {}
            continue
        digest.update(block)
        kind, length = block[156:157], _number(block[124:136])
        start, is_about_next = position + BLOCK, kind in b"xgLK"
        name = _name(block)
        if not is_about_next and overrides:
            name, length = overrides.get("path", name), int(overrides.get("size", length))
        if not 0 <= length <= size - start:
            yield Damage(name, f"cut off: {length} bytes are announced, {size - start} are left")
            position, overrides = _next_header(read, position, size), {}
            continue
        position = start + -(-length // BLOCK) * BLOCK
        if is_about_next:
            fields = None
            if length <= _MAX_NAME_BYTES:
                data = read(start, length)
                digest.update(data)
                fields = _about_next(kind, data)
            overrides = None if None in (fields, overrides) else overrides | fields
            continue
        if kind in _REGULAR:
            if overrides is None:
                yield Damage(name, "the header before it, with its name or size, is damaged")
            else:
                yield Member(name, start, length)
        overrides = {}
    if size:
        yield Damage(f"byte {size}", "the tar ends without its end mark; it was cut off")


def _is_header(block: bytes) -> bool:
    """Whether the header's checksum is right."""
    if len(block) < BLOCK:
        return False
    return _number(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * 0x20


def _number(field: bytes) -> int:
    """Parses octal digits or GNU's base 256; -1 for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _name(block: bytes) -> str:
    name, prefix = block[:100].partition(b"\0")[0], b""
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].partition(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _about_next(kind: bytes, data: bytes) -> dict[str, str] | None:
    """`path` and `size` of the next member, if `data` has them; None if `data` are damaged."""
    if kind == b"L":
        return {"path": data.rstrip(b"\0").decode("utf-8", "replace")}
    return _pax(data) if kind == b"x" else {}


def _pax(data: bytes) -> dict[str, str] | None:
    """`path` and `size` of a pax header, which has lines of "length key=value"."""
    fields, data = {}, data.rstrip(b"\0")
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not _COUNT.fullmatch(length):
            return None
        if not len(length) + 3 <= int(length) <= len(data):
            return None
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"size" and value and not _COUNT.fullmatch(value):
            return None
        if key in (b"path", b"size") and value:
            fields[key.decode()] = value.decode("utf-8", "replace")
        data = data[int(length) :]
    return fields


def _next_header(read: Callable[[int, int], bytes], position: int, size: int) -> int:
    """The position of the next valid header, of the end mark, or of the end."""
    place = position + BLOCK
    while place < size:
        block = read(place, BLOCK)
        if block[257:262] == b"ustar" and _is_header(block):
            return place
        if block != _ZEROS:
            place += BLOCK
        elif (end := _end_of_zeros(read, place, size)) < size:
            place = end
        else:
            return place
    return size


def _end_of_zeros(read: Callable[[int, int], bytes], position: int, size: int) -> int:
    """The position of the first block from `position` on that is not all zeros, or the end."""
    for place in range(position, size, _PIECE):
        data = read(place, min(_PIECE, size - place))
        if rest := data.lstrip(b"\0"):
            return place + (len(data) - len(rest)) // BLOCK * BLOCK
    return size


def _refuse(block: bytes) -> None:
    if block[:2] == b"\x1f\x8b" or block[:3] == b"BZh" or block[:6] == b"\xfd7zXZ\0":
        raise TarError("it is compressed, and has no random access; decompress it")
    if len(block) < BLOCK or block[257:262] != b"ustar":
        raise TarError("it is not a tar file")
