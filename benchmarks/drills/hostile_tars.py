"""Tars with members that are none, and tars that are none."""

import gzip
import io
import random
import tarfile
from collections.abc import Callable, Sequence

from benchmarks.drills.bench import add
from benchmarks.drills.hostile_pictures import PICTURES

Members = Sequence[tuple[str, bytes]]


def packed(members: Members) -> bytes:
    """A tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            add(tar, name, data)
    return out.getvalue()


def _header(**settings) -> bytes:
    """The header of a member that is not there."""
    info = tarfile.TarInfo("zzz.png")
    for name, value in settings.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.USTAR_FORMAT)


def _raw(change: Callable[[bytearray], None]) -> bytes:
    """A header with a right checksum after a change."""
    header = bytearray(_header())
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _pax(records: bytes) -> bytes:
    data = records.ljust(-(-len(records) // 512) * 512, b"\0")
    return _header(name="pax", type=tarfile.XHDTYPE, size=len(records)) + data


def _set(start: int, data: bytes) -> Callable[[bytearray], None]:
    def change(header: bytearray) -> None:
        header[start : start + len(data)] = data

    return change


_PNG = PICTURES["PNG, palette"](random.Random(0)).data
_LONG = b"5" * 5000
# Blocks between two members, before or behind a pair: all pairs are to be kept, or it is an error,
# or what is left out is mentioned.
BLOCKS: dict[str, Callable[[random.Random], bytes]] = {
    "a block of zeros": lambda rng: bytes(512),
    "two blocks of zeros": lambda rng: bytes(1024),
    "40 blocks of zeros": lambda rng: bytes(512 * 40),
    "a random block": lambda rng: rng.randbytes(512),
    "half a random block": lambda rng: rng.randbytes(256),
    "ten random blocks": lambda rng: rng.randbytes(5120),
    "a size of 5,000 digits": lambda rng: _pax(b"5012 size=" + _LONG + b"\n"),
    "a time of 5,000 digits": lambda rng: _pax(b"5013 mtime=" + _LONG + b"\n"),
    "a record of 5,000 digits": lambda rng: _pax(_LONG + b" path=x\n"),
    "a pax size below zero": lambda rng: _pax(b"11 size=-9\n"),
    "a pax path with NUL": lambda rng: _pax(b"13 path=a\0b\n"),
    "a pax path that is no UTF-8": lambda rng: _pax(b"13 path=\xff\xfe\xfd\n"),
    "pax of random bytes": lambda rng: _pax(rng.randbytes(300)),
    "an empty pax header": lambda rng: _pax(b""),
    "a size below zero": lambda rng: _raw(_set(124, b"\xff" * 12)),
    "a size of 2^90": lambda rng: _raw(_set(124, b"\x80" + b"\x7f" * 11)),
    "a size that is no number": lambda rng: _raw(_set(124, b"12345zzzzzz\0")),
    "a size of 8 GB": lambda rng: _raw(_set(124, b"77777777777\0")),
    "a name without letters": lambda rng: _raw(_set(0, bytes(100))),
    "a name that is no UTF-8": lambda rng: _raw(_set(0, b"\xff\xfe\xfd.png" + bytes(90))),
    "a kind that is unknown": lambda rng: _raw(_set(156, b"?")),
    "a sparse file": lambda rng: _raw(_set(156, b"S")),
    "a link": lambda rng: _header(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": lambda rng: _header(type=tarfile.LNKTYPE, linkname="nothing"),
    "a pipe": lambda rng: _header(type=tarfile.FIFOTYPE),
    "a folder": lambda rng: _header(type=tarfile.DIRTYPE, name="folder"),
    "a long name without a file": lambda rng: (
        _header(name="././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=300) + b"n" * 512
    ),
    "a wrong checksum": lambda rng: _header()[:148] + b"000000\0 " + _header()[156:],
}
# More pairs beside the good ones, which are all to be kept; these are to be left out.
PAIRS: dict[str, Members] = {
    "shadow files of macOS": (("._00000.png", b"\0\5\x16\7" + bytes(90)), ("._00000.txt", b"x")),
    "a caption that is no UTF-8": (("zzz.png", _PNG), ("zzz.txt", b"caf\xe9\xff")),
    "no caption": (("zzz.png", _PNG),),
    "an empty caption": (("zzz.png", _PNG), ("zzz.txt", b"")),
    "a caption of white space": (("zzz.png", _PNG), ("zzz.txt", b" \n\t ")),
    "a caption of a mark": (("zzz.png", _PNG), ("zzz.txt", b"\xef\xbb\xbf")),
    "no picture": (("zzz.txt", b"x"), ("zzz.json", b"{}")),
    "an empty picture": (("zzz.png", b""), ("zzz.txt", b"x")),
    "other files": (("README.md", b"x"), (".DS_Store", bytes(99)), ("zzz.cls", b"3")),
}


def with_blocks(members: Members, blocks: bytes, rng: random.Random) -> bytes:
    """A tar with blocks between two pairs of members."""
    place = 2 * rng.randrange(1, len(members) // 2)
    return (
        packed(members[:place]).rstrip(b"\0")[: _size(members[:place])]
        + blocks
        + packed(members[place:])
    )


def _size(members: Members) -> int:
    return sum(512 + -(-len(data) // 512) * 512 for _, data in members)


# Other forms of a whole tar: all pairs are kept, or it is an error, or what is lost is mentioned.
FORMS: dict[str, Callable[[Members, random.Random], bytes]] = {
    "cut off": lambda members, rng: packed(members)[: rng.randrange(600, _size(members))],
    "cut off at a block": lambda members, rng: packed(members)[
        : 512 * rng.randrange(1, _size(members) // 512)
    ],
    "without an end": lambda members, rng: packed(members)[: _size(members)],
    "twice one behind the other": lambda members, rng: (
        packed(members[: len(members) // 4 * 2]) + packed(members[len(members) // 4 * 2 :])
    ),
    "captions last": lambda members, rng: packed([*members[::2], *members[1::2]]),
    "captions first": lambda members, rng: packed(
        [m for pair in zip(members[1::2], members[::2], strict=True) for m in pair]
    ),
    "in capitals": lambda members, rng: packed(
        [(name.replace(".png", ".PNG"), data) for name, data in members]
    ),
    "every member twice": lambda members, rng: packed(
        [m for i in range(0, len(members), 2) for m in (*members[i : i + 2], *members[i : i + 2])]
    ),
    "a gzip": lambda members, rng: gzip.compress(packed(members), mtime=0),
    "no bytes": lambda members, rng: b"",
    "zeros": lambda members, rng: bytes(10240),
    "random bytes": lambda members, rng: rng.randbytes(9000),
    "a text": lambda members, rng: b"hello\n" * 300,
    "captions with a mark": lambda members, rng: packed(
        [(n, b"\xef\xbb\xbf" + data if n.endswith(".txt") else data) for n, data in members]
    ),
    "in PAX": lambda members, rng: _other(members, tarfile.PAX_FORMAT),
    "in GNU's format": lambda members, rng: _other(members, tarfile.GNU_FORMAT),
    "zeros in the middle": lambda members, rng: _zeros(packed(members), rng),
}


def _other(members: Members, form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, pax_headers={"a": "ż" * 99}) as tar:
        for name, data in members:
            add(tar, name, data)
    return out.getvalue()


def _zeros(data: bytes, rng: random.Random) -> bytes:
    start = 512 * rng.randrange(1, len(data) // 512 - 20)
    size = 512 * rng.randrange(1, 9)
    return data[:start] + bytes(size) + data[start + size :]
