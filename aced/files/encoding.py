"""Decodes users' text files as UTF-8; errors of other encodings explain how to convert them."""

import codecs

MARK = "\ufeff"  # byte order mark, which editors on Windows put before UTF-8
# UTF-32 comes first, since its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_PACKED = ((b"\x1f\x8b", "compressed by gzip"), (b"PK\x03\x04", "a zip file, or a spreadsheet"))


def foreign(head: bytes) -> str | None:
    """Why a file that begins with `head` is not UTF-8 text, with advice, or None."""
    for begin, kind in _PACKED:
        if head.startswith(begin):
            return f"it is {kind}, not text; unpack or export it"
    for mark, name in _MARKS:
        if head.startswith(mark):
            return _convert(name)
    if head.count(0) * 4 > len(head):  # UTF-16 without a mark: half of the bytes of ASCII are zero
        return _convert("UTF-16")
    return None


def decode(data: bytes) -> str:
    """Decodes a whole text, without its byte order mark.

    Raises:
        ValueError: it is not UTF-8; the message names the likely encoding.
    """
    if (problem := foreign(data)) is not None:
        raise ValueError(problem)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(data[error.start])) from error


def without_mark(text: str) -> str:
    """Removes a byte order mark; concatenated files may have one on any line."""
    return text.removeprefix(MARK)


def trouble(text: str) -> str:
    """Why `text`, read with errors="surrogateescape", cannot be encoded."""
    for character in text:
        if "\udc80" <= character <= "\udcff":
            return _not_utf8(ord(character) - 0xDC00)
    return "it is not valid Unicode: half of a surrogate pair"


def printable(text: str) -> str:
    """`text` with escapes for characters that cannot be encoded, for messages."""
    return text.encode("utf-8", "backslashreplace").decode()


def _convert(name: str) -> str:
    return f"it is {name}, and must be UTF-8; convert it: `iconv -f {name} -t UTF-8 OLD > NEW`"


def _not_utf8(byte: int) -> str:
    return (
        f"it is not UTF-8 (byte 0x{byte:02x}); if it is Latin-1, convert the file: "
        "`iconv -f LATIN1 -t UTF-8 OLD > NEW`"
    )
