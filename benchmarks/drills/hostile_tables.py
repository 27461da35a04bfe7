"""Tables of captions with lines that are none."""

import csv
import io
import json
import random
from collections.abc import Callable, Sequence

Rows = Sequence[tuple[str, str]]  # image and caption

# Lines among good ones, which are all to be kept: each is left out, counted, or an error.
JSON_LINES: dict[str, bytes] = {
    "half an object": b'{"image": "1.png", "caption": "a',
    "a list": b"[1, 2]",
    "null": b"null",
    "a number": b"1e999",
    "100,000 brackets": b"[" * 100_000,
    "brackets in an object": b'{"image": ' + b"[" * 100_000,
    "5,000 digits": b'{"image": "1.png", "caption": ' + b"9" * 5000 + b"}",
    "a caption that is a number": b'{"image": "1.png", "caption": 5}',
    "a caption that is an object": b'{"image": "1.png", "caption": {"en": "x"}}',
    "a caption that is NaN": b'{"image": "1.png", "caption": NaN}',
    "a caption of white space": b'{"image": "1.png", "caption": " \\t\\u00a0"}',
    "half a surrogate": b'{"image": "1.png", "caption": "\\ud800"}',
    "an image that is a number": b'{"image": 1, "caption": "x"}',
    "an image that is a list": b'{"image": ["1.png"], "caption": "x"}',
    "an image with NUL": b'{"image": "1\\u0000.png", "caption": "x"}',
    "an image outside": b'{"image": "../captions.jsonl", "caption": "x"}',
    "an absolute image": b'{"image": "/etc/passwd", "caption": "x"}',
    "a folder as image": b'{"image": ".", "caption": "x"}',
    "a device as image": b'{"image": "/dev/zero", "caption": "x"}',
    "a pipe as image": b'{"image": "pipe.png", "caption": "x"}',
    "a link to a device": b'{"image": "device.png", "caption": "x"}',
    "a name of 9,000 letters": b'{"image": "' + b"x" * 9000 + b'.png", "caption": "x"}',
    "an image that is missing": b'{"image": "none.png", "caption": "x"}',
    "no UTF-8": b'{"image": "1.png", "caption": "caf\xe9"}',
    "other columns": b'{"file": "1.png", "text": "x"}',
    "a key twice": b'{"image": "1.png", "caption": "x", "caption": "y"}',
    "NUL bytes": bytes(700),
    "control characters": b'{"image": "1.png", "caption": "a\x01b"}',
    "4 MB in one line": b'{"image": "none.png", "caption": "' + b"x " * 2_000_000 + b'"}',
}
CSV_LINES: dict[str, bytes] = {
    "a comma in a caption": b"1.png,a square, green, on a table",
    "one field": b"1.png",
    "nothing but commas": b",,,,",
    "an open quote": b'1.png,"a square',
    "a quote inside": b'1.png,"a "square" b"',
    "NUL": b"1.png,a\0b",
    "NUL bytes": bytes(700),
    "no UTF-8": b"1.png,caf\xe9",
    "an image outside": b"../captions.csv,x",
    "an absolute image": b"/etc/passwd,x",
    "a pipe as image": b"pipe.png,x",
    "a link to a device": b"device.png,x",
    "a field of 4 MB": b"none.png," + b"x " * 2_000_000,
    "an empty caption": b"1.png,",
    "an empty image": b",x",
    "a carriage return inside": b"none.png,a\rnone.png,b",
}


def json_table(rows: Rows) -> bytes:
    """A table of JSON lines."""
    return "".join(json.dumps({"image": i, "caption": c}) + "\n" for i, c in rows).encode()


def csv_table(rows: Rows, **settings) -> bytes:
    """A table of CSV."""
    out = io.StringIO()
    writer = csv.writer(out, **({"lineterminator": "\n"} | settings))
    writer.writerows([("image", "caption"), *rows])
    return out.getvalue().encode()


def with_line(table: bytes, line: bytes, rng: random.Random) -> bytes:
    """`table` with `line` somewhere behind its first line."""
    lines = table.split(b"\n")
    place = rng.randrange(1, len(lines))
    return b"\n".join([*lines[:place], line, *lines[place:]])


# Whole tables in other forms: all pairs are kept as they are, or it is an error.
FORMS: dict[str, Callable[[Rows], tuple[str, bytes]]] = {
    "JSON, UTF-8 with a mark": lambda rows: ("jsonl", b"\xef\xbb\xbf" + json_table(rows)),
    "JSON, UTF-16": lambda rows: ("jsonl", json_table(rows).decode().encode("utf-16")),
    "JSON, UTF-32": lambda rows: ("jsonl", json_table(rows).decode().encode("utf-32")),
    "JSON, CRLF": lambda rows: ("jsonl", json_table(rows).replace(b"\n", b"\r\n")),
    "JSON, one array": lambda rows: (
        "jsonl",
        json.dumps([{"image": i, "caption": c} for i, c in rows], indent=1).encode(),
    ),
    "JSON called CSV": lambda rows: ("csv", json_table(rows)),
    "CSV called JSON": lambda rows: ("jsonl", csv_table(rows)),
    "CSV, UTF-8 with a mark": lambda rows: ("csv", b"\xef\xbb\xbf" + csv_table(rows)),
    "CSV, UTF-16": lambda rows: ("csv", csv_table(rows).decode().encode("utf-16")),
    "CSV, CRLF": lambda rows: ("csv", csv_table(rows, lineterminator="\r\n")),
    "CSV, all quoted": lambda rows: ("csv", csv_table(rows, quoting=csv.QUOTE_ALL)),
    "CSV, tabs": lambda rows: ("csv", csv_table(rows, delimiter="\t")),
    "CSV, semicolons": lambda rows: ("csv", csv_table(rows, delimiter=";")),
    "CSV without a header": lambda rows: ("csv", csv_table(rows).partition(b"\n")[2]),
    "CSV, the header alone": lambda rows: ("csv", b"image,caption\n"),
    "CSV, a column twice": lambda rows: ("csv", csv_table([("image", "caption"), *rows])),
    "no bytes": lambda rows: ("jsonl", b""),
    "no bytes, CSV": lambda rows: ("csv", b""),
    "zeros": lambda rows: ("csv", bytes(5000)),
    "Latin-1": lambda rows: (
        "csv",
        csv_table([*rows, ("none.png", "café")]).decode().encode("latin-1"),
    ),
    "a gzip": lambda rows: ("jsonl", b"\x1f\x8b\x08\0" + bytes(100)),
}
