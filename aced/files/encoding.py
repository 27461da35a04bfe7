"""The text in users' files: it is UTF-8, and where it is not, that is said with what to do."""

import codecs

MARK = "\ufeff"  # the byte order mark that editors on Windows put before UTF-8
# That of UTF-16 is the beginning of that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_PACKED = ((b"\x1f\x8b", "compressed by gzip"), (b"PK\x03\x04", "a zip file, or a spreadsheet"))


def foreign(head: bytes) -> str | None:
    """What is wrong with a file of text that begins with `head`, and what to do; None: nothing."""
    for begin, what in _PACKED:
        if head.startswith(begin):
            return f"it is {what}, and no text; unpack or export it"
    for mark, name in _MARKS:
        if head.startswith(mark):
            return _convert(name)
    if head.count(0) * 4 > len(head):  # without a mark, every second byte of plain English is zero
        return _convert("UTF-16")
    return None


def decode(data: bytes) -> str:
    """`data`, a whole text, without a byte order mark.

    Raises:
        ValueError: it is not UTF-8; the message says what it may be.
    """
    if (problem := foreign(data)) is not None:
        raise ValueError(problem)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(data[error.start])) from error


def without_mark(text: str) -> str:
    """`text` without a byte order mark before it; files that were joined have them anywhere."""
    return text.removeprefix(MARK)


def trouble(text: str) -> str:
    """Why `text`, read with errors="surrogateescape", cannot be encoded."""
    for character in text:
        if "\udc80" <= character <= "\udcff":
            return _not_utf8(ord(character) - 0xDC00)
    return "it is not valid Unicode: half of a surrogate pair"


def printable(text: str) -> str:
    """`text` with what cannot be encoded written as escapes, for messages."""
    return text.encode("utf-8", "backslashreplace").decode()


def _convert(name: str) -> str:
    return f"it is {name}, and must be UTF-8; convert it: `iconv -f {name} -t UTF-8 OLD > NEW`"


def _not_utf8(byte: int) -> str:
    return (
        f"it is not UTF-8 (byte 0x{byte:02x}); if it is Latin-1, convert the file: "
        "`iconv -f LATIN1 -t UTF-8 OLD > NEW`"
    )
