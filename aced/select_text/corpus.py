"""Corpora of sentences: lines of text, JSON lines, parquet, or the captions of a data set.

A corpus is a list of parts, which different processes may read, starting at any position. Texts
that are dropped are counted by reason.
"""

import collections
import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from absl import logging
from annotated_types import Interval, Le

from aced.bounds import PositiveInt
from aced.config import Checked, ConfigError
from aced.data import records
from aced.data.records import RecordError
from aced.data.sources import parquet_footer
from aced.files import encoding, storage
from aced.files.storage import File

_PART_BYTES = 1 << 26  # size of a part of an uncompressed file of lines
_PART_EXAMPLES = 1 << 16  # size of a part of a data set
_ROWS = 4096  # rows of parquet that are unpacked at a time
_HEAD_BYTES = 4096  # read to tell text from other files
_SKIP_BYTES = 1 << 20  # read at a time to skip a line that is too long
_KINDS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")

Counts = collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class CorpusConfig(Checked):
    """Which files hold the sentences, and which sentences are left out for their length."""

    # .txt, .txt.gz, .jsonl, .jsonl.gz or .parquet: files, globs, {0..9}; or folders of data sets
    paths: tuple[str, ...] = ()
    column: str = "text"  # field of the JSON lines, column of the parquet files
    split: str = "train"  # of a data set
    min_characters: PositiveInt = 2  # after normalisation
    # A character has up to four bytes of UTF-8, and a chosen sentence must fit into a record.
    max_characters: Annotated[int, Le(records.MAX_STRING_BYTES // 4)] = 1000
    # Longer lines and values are left out without parsing.
    max_line_bytes: Annotated[int, Interval(ge=1, le=records.MAX_STRING_BYTES)] = 1 << 20

    def _check(self) -> None:
        if not self.paths:
            raise ConfigError("--corpus is empty; name the files with the sentences.")
        if self.min_characters > self.max_characters:
            raise ConfigError(
                f"min_characters = {self.min_characters} must be at most max_characters = "
                f"{self.max_characters}."
            )


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the corpus that one process reads."""

    path: str  # of the file or data set
    kind: str  # one of _KINDS, or "" for a data set
    start: int  # lines: those that begin in bytes `start` to `end`; data set: examples
    end: int
    size: int  # bytes of the file (of this piece, if it is cut); see `Corpus.read`


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A normalised sentence and the position after it."""

    text: str
    position: int  # for `Corpus.read`
    done: int  # about how much of the part's `size` has been read


class Corpus:
    """The sentences of a `CorpusConfig`.

    Attributes:
        parts: the parts in order.
        fingerprint: changes with the files' names or sizes, and with the limits on sentences.
    """

    def __init__(self, config: CorpusConfig, normalise: Callable[[str], str]):
        """Lists the files without reading them.

        Raises:
            ConfigError: a file has an unknown ending.
            StorageError: a path does not exist, or no file matches it.
            DatasetError: a data set is missing or damaged.
        """
        self._config, self._normalise = config, normalise
        self.parts: list[Part] = []
        digest = hashlib.sha256()
        for path in config.paths:
            if not storage.is_remote(path) and (pathlib.Path(path) / records.DESCRIPTION).is_file():
                source = records.open_dataset(path, config.split)
                digest.update(f"data set {source.fingerprint}\n".encode())
                self.parts += _ranges(path, "", len(source), _PART_EXAMPLES)
                continue
            files = _find(path)
            names = storage.names([file.path for file in files])
            for file, name in zip(files, names, strict=True):
                kind = _kind(file.path)
                digest.update(f"{name} {kind} {file.size}\n".encode())
                step = _PART_BYTES if kind in (".txt", ".jsonl") else max(file.size, 1)
                self.parts += _ranges(file.path, kind, file.size, step)
        settings = dataclasses.asdict(config)
        for name in ("paths", "split"):  # the content of the files is hashed instead
            del settings[name]
        digest.update(json.dumps(settings).encode())
        self.fingerprint = digest.hexdigest()

    def read(self, number: int, position: int, counts: Counts) -> Iterator[Sentence]:
        """The sentences of part `number`, in order.

        Args:
            number: number of the part.
            position: 0 for its beginning, or the `position` of the sentence to continue after.
            counts: counts sentences, and dropped texts by reason. A dropped text is counted when
                the sentence after it is requested.

        Raises:
            ConfigError: a parquet file lacks the column of strings, or a text file is not UTF-8.
            StorageError: a file cannot be opened.
        """
        part = self.parts[number]
        if part.kind == "":
            texts = self._captions(part, position, counts)
        elif part.kind == ".parquet":
            texts = self._rows(part, position, counts)
        else:
            texts = self._lines(part, position, counts)
        for text, after, done in texts:
            text = self._normalise(encoding.without_mark(text))
            length = len(text)
            if not length:
                counts["blank"] += 1
            elif length < self._config.min_characters:
                counts["too_short"] += 1
            elif length > self._config.max_characters:
                counts["too_long"] += 1
            elif not _is_encodable(text):  # a lone surrogate, which JSON can have
                counts["not_utf8"] += 1
            else:
                counts["sentences"] += 1
                yield Sentence(text, after, done)

    def _captions(self, part: Part, position: int, counts: Counts) -> Iterator[tuple]:
        """Yields (text, next position, done); positions are index * MAX_ITEMS + caption."""
        source = records.open_dataset(part.path, self._config.split)
        first = part.start * records.MAX_ITEMS
        position = max(position, first)
        for index in range(position // records.MAX_ITEMS, part.end):
            try:
                texts = source[index]["texts"]
            except RecordError as error:
                logging.warning("Left out: %s", error)
                counts["damaged_records"] += 1
                continue
            for k, text in enumerate(texts):
                here = index * records.MAX_ITEMS + k
                if here >= position:
                    yield text, here + 1, index - part.start

    def _rows(self, part: Part, position: int, counts: Counts) -> Iterator[tuple]:
        """As `_captions`; positions are row numbers."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ConfigError(
                f"{part.path} needs pyarrow to be read: `pip install '.[parquet]'`."
            ) from error
        column, row, rows = self._config.column, 0, 1
        try:
            with (
                storage.open_file(part.path) as file,
                pyarrow.parquet.ParquetFile(
                    file, pre_buffer=False, page_checksum_verification=True
                ) as whole,
            ):
                _check_column(part.path, whole.schema_arrow, column)
                rows = max(whole.metadata.num_rows, 1)
                for group in range(whole.num_row_groups):
                    size = whole.metadata.row_group(group).num_rows
                    if row + size <= position:
                        row += size
                        continue
                    for batch in whole.iter_batches(_ROWS, [group], [column], use_threads=False):
                        for value in batch.column(0):
                            row += 1
                            if row <= position:
                                continue
                            if not value.is_valid:
                                counts["no_text"] += 1
                            elif value.as_buffer().size > self._config.max_line_bytes:
                                counts["too_long"] += 1
                            else:
                                try:
                                    yield value.as_py(), row, part.size * row // rows
                                except UnicodeDecodeError:
                                    counts["not_utf8"] += 1
        except ConfigError:
            raise
        except Exception as error:  # pyarrow raises nearly anything for damaged files
            if storage.is_passing(error):
                raise storage.StorageError(f"{part.path} cannot be read: {error}") from error
            _cut_off(part, counts, error)

    def _lines(self, part: Part, position: int, counts: Counts) -> Iterator[tuple]:
        """As `_captions`; positions are unpacked bytes."""
        limit = self._config.max_line_bytes
        parse = self._field if part.kind.startswith(".jsonl") else lambda text: text
        with _opened(part) as (raw, file):
            try:
                if not part.start and (problem := encoding.foreign(file.read(_HEAD_BYTES))):
                    raise ConfigError(f"{part.path} cannot be read: {problem}.")
                at = _go_to(file, part, position)
                while part.kind.endswith(".gz") or at < part.end:
                    line = file.readline(limit + 1)
                    if not line:
                        break
                    at += len(line)
                    if len(line) > limit and not line.endswith(b"\n"):
                        at += _skip_line(file)
                        counts["too_long"] += 1
                        continue
                    try:
                        text = parse(encoding.without_mark(line.decode()))
                    except UnicodeDecodeError:
                        counts["not_utf8"] += 1
                        continue
                    except _NoTextError as error:
                        counts[str(error)] += 1
                        continue
                    yield text, at, (raw.tell() if raw is not file else at - part.start)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                _cut_off(part, counts, error)

    def _field(self, line: str) -> str:
        if not line.strip():
            return ""
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _NoTextError("not_json") from error
        text = value.get(self._config.column) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise _NoTextError("no_text")
        return text


class _NoTextError(ValueError):
    """A line without a sentence; the message is the reason to count."""


def _ranges(path: str, kind: str, size: int, step: int) -> list[Part]:
    starts = range(0, size, step)
    return [Part(path, kind, i, min(i + step, size), min(step, size - i)) for i in starts]


def _find(path: str) -> list[File]:
    """The files that `path` names; in a folder the .txt files."""
    try:
        return storage.find(path, ".txt")
    except storage.StorageError as error:
        if storage.is_remote(path) or not os.path.isdir(path):
            raise
        raise storage.StorageError(
            f"{path} is a folder without {records.DESCRIPTION} and without *.txt; give a data set "
            f"or a pattern such as {path}/*.jsonl.gz."
        ) from error


def _kind(path: str) -> str:
    for kind in sorted(_KINDS, key=len, reverse=True):
        if path.endswith(kind):
            return kind
    raise ConfigError(
        f"{path}: a corpus is made of files that end in {', '.join(_KINDS)}, or it is the folder "
        "of a data set."
    )


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _opened(part: Part) -> Iterator[tuple[Any, Any]]:
    """The stored and the unpacked file of a part; the same object if it is not compressed."""
    try:
        raw = storage.open_file(part.path)
    except OSError as error:
        raise storage.StorageError(f"{part.path} cannot be opened: {error}") from error
    with raw:
        if not part.kind.endswith(".gz"):
            yield raw, raw
            return
        with gzip.GzipFile(fileobj=raw) as file:
            yield raw, file


def _go_to(file: Any, part: Part, position: int) -> int:
    """Seeks `position`, or the first line that begins in the part; returns the new position."""
    if position or not part.start:
        return file.seek(position)
    file.seek(part.start - 1)
    return part.start - 1 + _skip_line(file)


def _skip_line(file: Any) -> int:
    """Skips to the byte after the next line feed; returns the number of bytes."""
    skipped = 0
    while piece := file.readline(_SKIP_BYTES):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _check_column(path: str, schema: Any, column: str) -> None:
    import pyarrow

    index = schema.get_field_index(column)
    kind = schema.field(index).type if index >= 0 else None
    if kind is None or not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ConfigError(
            f"--column={column} must be a column of strings, and in {path} it "
            f"{parquet_footer.described(schema, column)}. There are: {columns}."
        )


def _cut_off(part: Part, counts: Counts, error: Exception) -> None:
    logging.warning("%s is damaged; the rest of it is left out: %s", part.path, error)
    counts["damaged_files"] += 1
