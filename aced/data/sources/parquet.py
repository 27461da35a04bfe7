"""Parquet files with pictures in a column, as in Hugging Face data sets and img2dataset.

Reading one row means reading and unpacking its whole row group, a hundred to many thousand rows. A
random order would read a group once per row. So these sources have `groups`, and
`order.GroupedOrder` shuffles in two levels: groups, and rows within a window of several groups. A
few groups are kept in memory, so that every process reads each group that it needs once per epoch.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from aced.bounds import PositiveInt
from aced.config import Checked, ConfigError, MayChange
from aced.data import records
from aced.data.captions import check_kinds, joined
from aced.data.records import RecordError, check_index
from aced.data.sources import parquet_footer, parquet_splits
from aced.files import encoding, storage
from aced.files.storage import File

if TYPE_CHECKING:
    import pyarrow as pa

_THREADS = 16
_BATCH_ROWS = 128


@dataclasses.dataclass(frozen=True)
class ParquetConfig(Checked):
    """Parquet files with the bytes of pictures in a column, or {bytes, path} as `datasets` does."""

    # A file, a folder of them, or a pattern: /data/coco/data/train-*.parquet, s3://bucket/*.parquet.
    path: MayChange[str] = ""
    split: str = "train"  # the split of a folder whose files are named by splits, as on the hub
    image: str = "image"  # column of the encoded pictures
    # Columns of captions: strings, lists of strings, or classes named by `datasets`, whose names
    # are then the captions. May be empty if there is a label.
    captions: tuple[str, ...] = ("caption",)
    # Kinds of the captions, one for each of these columns, such as ("given", "synthetic"), for
    # data.caption_weights. Empty: all are "given".
    kinds: tuple[str, ...] = ()
    # Column with the number of a class, or with its name; names are numbered in sorted order.
    # Empty: no labels.
    label: str = ""
    second: str = ""  # column of the second picture of examples about two pictures; empty: none
    # Column with the answers that people gave to the question in the caption: strings, or structs
    # with `answer`, as in the hub's VQAv2. Empty: no answers.
    answers: str = ""
    # Window of the shuffle, in MiB of unpacked row groups: examples are mixed only within it. Every
    # process keeps up to twice as much in memory. The order of examples depends on it.
    window_mib: PositiveInt = 1024

    def _check(self) -> None:
        check_kinds(self.kinds, self.captions, "data.parquet")
        if not self.captions and not self.label:
            raise ConfigError(
                "data.parquet.captions is empty; name the columns with captions, or a .label."
            )


@dataclasses.dataclass(frozen=True)
class _Group:
    """A row group."""

    path: str
    number: int  # in its file
    name: str  # of the file, the same on every machine


class ParquetSource:
    """The rows of a set of parquet files; see `Source`.

    Attributes:
        groups: rows of every row group, in order.
        group_bytes: unpacked bytes of every row group.
        window_bytes: size of the window of the shuffle.
        split: the split that is read; "" if the folder has none, or `path` names files.
        class_names: names of the labels, or of captions that are classes; None without classes.
    """

    def __init__(self, config: ParquetConfig):
        """Reads the footers of all files.

        Raises:
            ConfigError: pyarrow, the split or a column is missing, a column has another type, or
                labels have too many names to be classes.
            DatasetError: a file is not parquet, or has other columns than the first.
            StorageError: the files do not exist or cannot be read.
        """
        parquet_footer.pyarrow()
        from aced.data.sources import parquet_classes

        self._config = config
        self._columns = [config.image, *config.captions]
        self._columns += filter(None, [config.label, config.second, config.answers])
        files, self.split = parquet_splits.find(config.path, config.split)
        names = storage.names([file.path for file in files])
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            footers = list(pool.map(parquet_footer.read, files, itertools.repeat(self._columns)))
        self._groups: list[_Group] = []
        self.groups: list[int] = []
        self.group_bytes: list[int] = []
        self.window_bytes = config.window_mib << 20
        digest = hashlib.sha256(repr(self._columns).encode())
        full = []
        for file, name, footer in zip(files, names, footers, strict=True):
            if any(footer.rows):  # a file without rows may have columns without a type
                full.append((file, footer.schema))
                _check_columns(*full[-1], config)
            digest.update(f"{name} {footer.sha256}\n".encode())
            for number, rows in enumerate(footer.rows):
                if rows:
                    self._groups.append(_Group(file.path, number, name))
                    self.groups.append(rows)
                    self.group_bytes.append(footer.sizes[number])
        self.name = f"{config.path}, split {self.split!r}" if self.split else config.path
        self.fingerprint = f"parquet {digest.hexdigest()}"
        self._ends = [0, *itertools.accumulate(self.groups)]
        self._names_of = parquet_classes.names_of(full, config.label, config.captions)
        self.class_names = next(iter(self._names_of.values()), None)
        self._numbers = None  # of labels that are names
        if full and config.label and parquet_classes.are_names(full[0][1].field(config.label)):
            names = self._names_of.pop(config.label)
            self._numbers = {name: number for number, name in enumerate(names)}
        self._kept: collections.OrderedDict[int, concurrent.futures.Future] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Row `index`, see `Source`; without captions `texts` is empty.

        Raises:
            IndexError: `index` is out of range.
            RecordError: the row has no picture, or its row group is damaged.
            StorageError: the file cannot be read at the moment.
        """
        index = check_index(self, index)
        number = bisect.bisect_right(self._ends, index) - 1
        group, row = self._groups[number], index - self._ends[number]
        where = f"{group.path}, row group {group.number}"
        try:
            table = self._table(number)
            out = {"image": _picture(table[self._config.image][row].as_py()), "id": index}
            if self._config.second:
                out["second"] = _picture(table[self._config.second][row].as_py())
            captions = [
                _captions(table[column][row].as_py(), self._names_of.get(column))
                for column in self._config.captions
            ]
            out |= joined(captions, self._config.kinds, records.MAX_ITEMS)
            if self._config.label:
                out["label"] = _label(table[self._config.label][row].as_py(), self._numbers)
            if self._config.answers:
                out["answers"] = _answers(table[self._config.answers][row].as_py())
        except Exception as error:  # damaged pages make pyarrow raise nearly anything
            if storage.is_passing(error):
                raise storage.StorageError(f"{where} cannot be read: {error}") from error
            raise RecordError(f"{where}, row {row}: {error}") from error
        return out | {"key": f"{group.name}/{group.number}/{row}"}

    def _table(self, number: int) -> "pa.Table":
        """A row group, read once for all threads; errors of damaged groups are kept, too."""
        with self._lock:
            future = self._kept.get(number)
            is_new = future is None
            if is_new:
                future = self._kept[number] = concurrent.futures.Future()
                self._evict()
            self._kept.move_to_end(number)
        if is_new:
            try:
                future.set_result(_read_group(self._groups[number], self._columns))
            except BaseException as error:  # other threads wait for the future
                if storage.is_passing(error):  # to be tried again
                    with self._lock:
                        self._kept.pop(number, None)
                future.set_exception(error)
        return future.result()

    def _evict(self) -> None:
        """Evicts the least recently used groups, down to two windows."""
        kept = sum(self.group_bytes[number] for number in self._kept)
        while kept > 2 * self.window_bytes and len(self._kept) > 2:
            oldest, _ = self._kept.popitem(last=False)
            kept -= self.group_bytes[oldest]


def _check_columns(file: File, schema: "pa.Schema", config: ParquetConfig) -> None:
    """Raises a ConfigError if a column is missing or has a wrong type."""
    from aced.data.sources import parquet_classes
    from aced.data.sources.parquet_roles import is_picture

    types = parquet_footer.pyarrow().types

    def is_text(field: "pa.Field") -> bool:
        kind = field.type
        if types.is_list(kind) or types.is_large_list(kind):
            kind = kind.value_type
        if types.is_integer(kind):
            return parquet_classes.described(schema, field.name) is not None
        return types.is_string(kind) or types.is_large_string(kind)

    def is_class(field: "pa.Field") -> bool:
        return types.is_integer(field.type) or parquet_classes.are_names(field)

    def is_answers(field: "pa.Field") -> bool:
        kind = field.type
        if not types.is_list(kind) and not types.is_large_list(kind):
            return False
        kind = kind.value_type
        if types.is_struct(kind) and kind.get_field_index("answer") >= 0:
            kind = kind.field("answer").type
        return types.is_string(kind) or types.is_large_string(kind)

    required = [("image", config.image, is_picture, "bytes, or a struct with `bytes`")]
    required += [("captions", c, is_text, "strings, or lists of strings") for c in config.captions]
    if config.second:
        required.append(("second", config.second, is_picture, "bytes, or a struct with `bytes`"))
    if config.label:
        required.append(("label", config.label, is_class, "whole numbers, or names"))
    if config.answers:
        required.append(("answers", config.answers, is_answers, "lists of strings"))
    for key, name, fits, expected in required:
        index = schema.get_field_index(name)
        if index < 0 or not fits(schema.field(index)):
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise ConfigError(
                f"data.parquet.{key} = {name!r} must be a column of {expected}, and in {file.path} "
                f"it {parquet_footer.described(schema, name)}. There are: {columns}."
            )


def _read_group(group: _Group, columns: Sequence[str]) -> "pa.Table":
    parquet = parquet_footer.pyarrow().parquet
    with (
        storage.open_file(group.path) as file,
        parquet.ParquetFile(file, pre_buffer=True, page_checksum_verification=True) as whole,
    ):
        # In batches, since an array cannot hold a group with more than 2 GiB in a struct.
        batches = whole.iter_batches(
            _BATCH_ROWS, row_groups=[group.number], columns=list(columns), use_threads=False
        )
        return parquet_footer.pyarrow().Table.from_batches(batches)


def _picture(value: Any) -> bytes:
    if isinstance(value, dict):
        value = value.get("bytes")
    if not value:
        raise ValueError("it has no bytes of a picture; its path is not followed")
    if len(value) > records.MAX_IMAGE_BYTES:
        raise ValueError(f"a picture of {len(value)} bytes; at most {records.MAX_IMAGE_BYTES}")
    return value


def _captions(value: Any, names: Sequence[str] | None) -> list[str]:
    """Captions of one row; `names` are the class names if the column has class numbers."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if text is not None]
    if names is None:
        return [encoding.without_mark(text) for text in texts]
    if texts and max(texts) >= len(names):
        raise ValueError(f"class {max(texts)} has no name; there are {len(names)}")
    return [names[number] for number in texts if number >= 0]  # -1: unknown


def _answers(value: Any) -> tuple[str, ...]:
    texts = [item["answer"] if isinstance(item, dict) else item for item in value or ()]
    return tuple(text for text in texts if text is not None)[: records.MAX_ITEMS]


def _label(value: Any, numbers: Mapping[str, int] | None) -> int:
    if numbers is not None:
        value = numbers.get(value)
    return records.class_number(value, "label")
