"""The table of captions that `python -m aced.prepare` reads.

JSON lines or CSV, one caption or a list of captions per line (in CSV the list is JSON). A malformed
line is counted and listed; a problem of the whole table, such as a column missing in all lines, is
an error.
"""

import collections
import contextlib
import csv
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from aced.data import records
from aced.data.captions import GIVEN, KIND
from aced.errors import UserError
from aced.files import encoding, storage

_HEAD_BYTES = 4096  # read to tell text from other files
_MOST_LACKING = 10_000  # lines of JSON without a column before the table is refused
_SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "bars"}  # found in tables named .csv
_DECIMAL = re.compile(r"[+-]?\d+\.\d*")
# `_text` rejects a long field alone; the csv module would reject the whole table.
csv.field_size_limit(1 << 30)


class PrepareError(UserError, ValueError):
    """The input can't be prepared; the message names the place and the next step."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the table's columns; empty: the table has no such column."""

    image: str = "image"  # path in the folder of images
    caption: str = "caption"
    kind: str = ""  # of the line's captions in that column
    more: tuple[tuple[str, str], ...] = ()  # further columns of captions: (kind, column)
    label: str = ""
    noisy: str = ""
    clean: tuple[str, str] = ("", "")  # a column, and its value in clean lines
    second: str = ""  # path of a second picture
    answers: str = ""  # list of the answers that people gave to the question
    extra: tuple[str, ...] = ()  # kept unchanged
    lower: bool = False  # whether to lower-case captions

    @property
    def names(self) -> list[str]:
        """All columns that every line must have."""
        columns = (self.image, self.caption, self.label, self.noisy, self.clean[0], self.second)
        columns += (self.kind, *(name for _, name in self.more), self.answers, *self.extra)
        return [name for name in columns if name]


@dataclasses.dataclass
class CaptionedImage:
    """An image of the input with its captions, label and other fields."""

    key: str
    texts: list[str]
    kinds: list[str]  # of `texts`, one by one
    label: str | None
    is_noisy: bool | None
    is_clean: bool  # whether all of its lines are clean
    extra: dict[str, records.Scalar]
    line: int  # the first line of the table with this image, or the index of the record
    second: str | None  # path of the second picture; None for records, which contain it
    answers: list[str]  # what people answered to the question


class RejectedError(Exception):
    """A line or image is left out; the arguments are the reason (a category) and the detail."""


@contextlib.contextmanager
def located(image: CaptionedImage, prefix: str = "") -> Iterator[None]:
    """Puts `prefix` before the detail of a RejectedError, and adds the location of `image`."""
    try:
        yield
    except RejectedError as error:
        reason, detail = error.args
        where = {"image": image.key, "line": image.line}
        raise RejectedError(reason, f"{prefix}{detail}", where) from error


class Rejects:
    """Collects rejected lines and images, each as (line, reason, JSON object to list).

    `place` is the name of the line number in the JSON objects, such as "record".
    """

    def __init__(self, place: str = "line") -> None:
        self._place = place
        self._entries: list[tuple[int, str, str]] = []

    def add(self, error: RejectedError, *, line: int, **where: Any) -> None:
        """Adds `error` at `line`; `where` may name the image."""
        reason, detail = error.args
        entry = {"reason": reason, **where, self._place: line, "detail": detail}
        self._entries.append((line, reason, json.dumps(entry)))

    def take(self) -> list[tuple[int, str, str]]:
        """Returns and clears the entries."""
        entries, self._entries = self._entries, []
        return entries


def _csv_rows(file: Iterable[str], path: str, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Line number and columns of each row of CSV.

    A row with too many or too few fields is rejected. Most have an unquoted comma in a caption, so
    the fields cannot be assigned to columns.
    """
    reader = csv.reader(file, strict=True)
    try:
        rows = filter(None, reader)  # without blank lines
        header = next(rows, None)
        if header is None:
            raise PrepareError(f"{path} is empty; its first line must name the columns.")
        if (name := _repeated([name for name in header if name in columns.names])) is not None:
            raise PrepareError(
                f"{path}, line {reader.line_num}: two columns are called {name!r}; rename one of "
                "them."
            )
        if not set(columns.names) <= set(header):
            raise _without_columns(path, reader.line_num, header, columns)
        captioned = (columns.caption, *(name for _, name in columns.more))
        for row in rows:
            if len(row) == len(header):
                fields = dict(zip(header, row, strict=True))
                try:
                    fields |= {name: _in_csv(fields[name]) for name in captioned}
                except RejectedError as error:
                    yield reader.line_num, error
                    continue
                yield reader.line_num, fields
                continue
            text = f"{','.join(row)!r:.200}"
            detail = (
                f"{len(row)} fields, and the header has {len(header)}; a text with a comma in it "
                f"must be in quotes: {text}"
            )
            yield reader.line_num, RejectedError("malformed_line", detail)
    except csv.Error as error:
        raise PrepareError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _in_csv(text: str) -> str | list[str | None]:
    """The captions in a field of CSV: a text, or a list of texts in JSON.

    Raises:
        RejectedError: it is a list in another form, such as Python's with single quotes.
    """
    written = text.strip()
    if not written.startswith("[") or not written.endswith("]"):
        return text
    try:
        texts = json.loads(written)
    except (ValueError, RecursionError):
        texts = None
    if texts is not None and all(x is None or isinstance(x, str) for x in texts):
        return texts
    if written[1:2] in ("'", '"'):
        example = json.dumps(["one", "two"])
        raise RejectedError(
            "malformed_line", f"a list of captions must be JSON, as {example}: {text!r:.80}"
        )
    return text


def _json_rows(file: Iterable[str], path: str, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Line number and columns of each line of JSON.

    A line that lacks a column is rejected. If all lines do, for example because a column's name
    is misspelt, the table is refused, at its end or after `_MOST_LACKING` lines.
    """
    required, any_whole, first, lacking = set(columns.names), False, None, 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(encoding.without_mark(line), object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            yield number, RejectedError("malformed_line", f"not JSON: {error}")
            continue
        if not isinstance(row, dict):
            yield number, RejectedError("malformed_line", "not a JSON object")
        elif required <= row.keys():
            any_whole = True
            yield number, row
        else:
            missing = next(name for name in columns.names if name not in row)
            yield number, RejectedError("malformed_line", f"there is no column {missing!r}")
            first, lacking = first or (number, list(row)), lacking + 1
            if lacking == _MOST_LACKING and not any_whole:
                break
    if first is not None and not any_whole:
        raise _without_columns(path, *first, columns)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose field names must be unique; json.loads would keep the last value."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {_repeated(names)!r} occurs twice")
    return fields


def _repeated(names: list[str]) -> str | None:
    name, count = max(collections.Counter(names).items(), key=lambda item: item[1], default=("", 0))
    return name if count > 1 else None


def _without_columns(path: str, line: int, names: list[str], columns: Columns) -> PrepareError:
    """The error for a table that lacks a required column."""
    where = f"{path}, line {line}"
    missing = next(name for name in columns.names if name not in names)
    listed = encoding.printable(", ".join(names))
    if listed != ", ".join(names):
        return PrepareError(
            f"{where}: the names of the columns are {listed}: {encoding.trouble(''.join(names))}."
        )
    for separator, separator_name in _SEPARATORS.items():
        if any(separator in name for name in names):
            return PrepareError(
                f"{where}: the columns are separated by {separator_name}, not commas. Write the "
                f"table again, in Python: pandas.read_csv({path!r}, sep={separator!r}).to_json("
                "'captions.jsonl', orient='records', lines=True)"
            )
    return PrepareError(
        f"{where}: there is no column {missing!r}; the columns are: {listed}. Name it with "
        "--image_column, --caption_column, --second_column, --label_column, --noisy_column, "
        "--answers_column, --clean_column, --kind_column, --more_captions or --extra_columns."
    )


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RejectedError("malformed_line", f"{name} is {value!r:.80}, not text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise RejectedError("malformed_line", f"{name}: {encoding.trouble(value)}") from error
    if size > records.MAX_STRING_BYTES or "\0" in value:
        raise RejectedError("malformed_line", f"{name} has {size} bytes or a zero byte")
    return encoding.without_mark(value.strip()).strip()


def _key(value: Any) -> str:
    path = pathlib.PurePosixPath(_text(value, "the image's path"))
    if not path.parts:
        raise RejectedError("malformed_line", "no image path")
    if path.is_absolute() or ".." in path.parts:
        raise RejectedError("outside_folder", f"{path} is absolute or leads upwards")
    return str(path)


def _flag(value: Any) -> bool | None:
    known = {"": None, "none": None, "0": False, "false": False, "1": True, "true": True}
    if (name := str(value).strip().lower()) not in known:
        raise RejectedError("malformed_line", f"{value!r:.80} is not true or false")
    return known[name]


def _as_text(value: Any) -> str:
    """A field as text: CSV fields unchanged, other JSON values as JSON."""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _label(value: Any) -> str | None:
    """A class's name or number. Pandas writes 2.0 for 2 in a column with gaps."""
    text = _text("" if value is None else str(value), "the label")
    if text and _DECIMAL.fullmatch(text):
        if not float(text).is_integer():
            raise RejectedError("malformed_line", f"label {text} is neither whole nor a name")
        return str(int(float(text)))
    return text or None


def _answers(value: Any) -> list[str]:
    """A list of answers; in CSV it is written as JSON."""
    try:
        answers = json.loads(value) if isinstance(value, str) else value or []
    except ValueError:
        answers = None
    if not isinstance(answers, list) or len(answers) > records.MAX_ITEMS:
        raise RejectedError("malformed_line", f"the answers {value!r:.80} are not a list of texts")
    return [_text(text, "an answer") for text in answers]


def _texts(value: Any) -> list[str]:
    """The captions in a column, a text or a list of texts, without empty ones."""
    texts = [text or "" for text in (value if isinstance(value, list) else [value])]
    return [text for text in (_text(text, "the caption") for text in texts) if text]


def _kind(value: Any) -> str:
    text = _text(value or "", "the kind") or GIVEN
    if not KIND.fullmatch(text):
        raise RejectedError(
            "malformed_line", f"the kind {text!r:.80}; it must be of letters, digits, _ and -"
        )
    return text


def _parse(row: dict[str, Any], line: int, columns: Columns) -> CaptionedImage:
    """Converts a line of the table to an image with its non-empty captions."""
    kind = _kind(row[columns.kind]) if columns.kind else GIVEN
    named = ((kind, columns.caption), *columns.more)
    captions = [(text, kind) for kind, column in named for text in _texts(row[column])]
    extra = {name: row[name] for name in columns.extra if row[name] is not None}
    for name, value in extra.items():
        large = type(value) is int and abs(value) >= 1 << 63
        if not isinstance(value, records.Scalar) or large:
            raise RejectedError("malformed_line", f"{name} is {value!r:.80}, not a scalar")
        if isinstance(value, str):
            extra[name] = _text(value, name)
    return CaptionedImage(
        key=_key(row[columns.image]),
        texts=[text.lower() if columns.lower else text for text, _ in captions],
        kinds=[kind for _, kind in captions],
        label=_label(row[columns.label]) if columns.label else None,
        is_noisy=_flag(row[columns.noisy]) if columns.noisy else None,
        is_clean=bool(columns.clean[0]) and _as_text(row[columns.clean[0]]) == columns.clean[1],
        extra=extra,
        line=line,
        second=_key(row[columns.second]) if columns.second else None,
        answers=_answers(row[columns.answers]) if columns.answers else [],
    )


def from_record(record: dict[str, Any], index: int, lower: bool) -> CaptionedImage:
    """Converts a record of a source to an image with its captions, without empty and repeated ones.

    Raises:
        RejectedError: the key or a text is not valid.
    """
    captions: dict[str, str] = {}  # kinds by text
    kinds = record.get("kinds") or [GIVEN] * len(record["texts"])
    for value, kind in zip(record["texts"], kinds, strict=True):
        if text := _text(value, "the caption"):
            captions.setdefault(text.lower() if lower else text, kind)
    label = record.get("label")
    return CaptionedImage(
        key=_key(record["key"]),
        texts=list(captions),
        kinds=list(captions.values()),
        label=None if label is None else str(label),
        is_noisy=record.get("is_noisy"),
        is_clean=False,
        extra={},
        line=index,
        second=None,
        answers=[_text(text, "an answer") for text in record.get("answers", ())],
    )


def merge(first: CaptionedImage, other: CaptionedImage, rejects: Rejects) -> None:
    """Adds to `first` the captions of `other`, which is the same picture.

    The result is noisy if either is, and clean if both are.
    """
    first.is_clean = first.is_clean and other.is_clean
    for text, kind in zip(other.texts, other.kinds, strict=True):
        if text in first.texts:
            error = RejectedError("repeated_caption", text)
        elif len(first.texts) == records.MAX_ITEMS:
            error = RejectedError("too_many_captions", text)
        else:
            first.texts.append(text)
            first.kinds.append(kind)
            continue
        rejects.add(error, image=other.key, line=other.line)
    if other.label != first.label:
        error = RejectedError(
            "other_label", f"{other.label} instead of {first.label}, which is kept; see --separate"
        )
        rejects.add(error, image=other.key, line=other.line)
    if other.is_noisy is not None:
        first.is_noisy = other.is_noisy or bool(first.is_noisy)


def read_captions(path: str, columns: Columns, rejects: Rejects) -> Iterator[CaptionedImage]:
    """Yields the image of each line with a caption in the table `path` (.csv, else JSON lines).

    The table is UTF-8. `rejects` collects the rejected lines, and `merge_lines` joins the lines of
    one image.

    Raises:
        PrepareError: a column is missing, or the file can't be read or is not CSV or UTF-8.
    """
    try:
        problem = encoding.foreign(storage.read(path, 0, _HEAD_BYTES))
    except OSError as error:
        raise PrepareError(str(error)) from error
    if problem is not None:
        raise PrepareError(f"{path} cannot be read: {problem}.")
    rows = _csv_rows if path.endswith(".csv") else _json_rows
    # Invalid UTF-8 becomes surrogates here, which `_text` rejects line by line.
    text = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
    with io.TextIOWrapper(storage.open_file(path), **text) as file:
        for line, row in rows(file, path, columns):
            if isinstance(row, RejectedError):
                rejects.add(row, line=line)
                continue
            try:
                image = _parse(row, line, columns)
                if not image.texts:
                    raise RejectedError("empty_caption", "")
            except RejectedError as error:
                rejects.add(error, image=str(row[columns.image]), line=line)
                continue
            yield image


def merge_lines(images: list[CaptionedImage], rejects: Rejects) -> CaptionedImage:
    """The first of `images` with the captions of all of them, each once."""
    first = dataclasses.replace(images[0], texts=[], kinds=[])
    for image in images:
        merge(first, image, rejects)
    return first
