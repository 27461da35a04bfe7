"""The names of the classes in a parquet column, and their numbers."""

import concurrent.futures
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet

from aced.config import ConfigError
from aced.data.records import DatasetError
from aced.files import storage
from aced.files.storage import File

MOST = 100_000  # names in a column that are taken for classes
_THREADS = 16


def names_of(
    files: Sequence[tuple[File, pa.Schema]], label: str, captions: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The class names by number of each column that has them; the column `label` comes first.

    Raises:
        ConfigError, StorageError: see `occurring`.
        DatasetError: see `occurring`; or files disagree on the names.
    """
    names_by_column = {}
    for column in filter(None, (label, *captions)):
        definitions = {}  # one example file for each
        for file, schema in files:
            named = column == label and are_names(schema.field(column))
            definitions[named, described(schema, column)] = file.path
        if len(definitions) > 1:
            raise DatasetError(
                f"{' and '.join(definitions.values())} name the classes of their column {column!r} "
                "differently; write them again, as one data set."
            )
        for named, names in definitions:
            if named:
                names = occurring([file for file, _ in files], column)
            if names is not None:
                names_by_column[column] = names
    return names_by_column


def are_names(field: pa.Field) -> bool:
    """Whether the values of a column are strings, which may be class names."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def described(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """The class names by number in the metadata of Hugging Face's `datasets`, or None."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        while "feature" in feature:  # of a list
            feature = feature["feature"]
        names = feature["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    is_names = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if is_names else None


def occurring(files: Sequence[File], column: str) -> tuple[str, ...]:
    """The distinct values of a column of all `files`, sorted; the index of each is its number.

    Reads the whole column.

    Raises:
        ConfigError: there are more than `MOST` values.
        DatasetError: a file is damaged.
        StorageError: a file cannot be read at the moment.
    """

    def distinct(file: File) -> set[str | None]:
        try:
            with storage.open_file(file.path) as opened:
                table = pyarrow.parquet.read_table(opened, columns=[column])
            return set(table[column].unique().to_pylist())
        except Exception as error:  # damaged pages make pyarrow raise nearly anything
            if storage.is_passing(error):
                raise storage.StorageError(f"{file.path} cannot be read: {error}") from error
            raise DatasetError(f"{file.path}, column {column!r}: {error}.") from error

    names: set[str | None] = set()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for names_of_file in pool.map(distinct, files):
            names |= names_of_file
            if len(names) > MOST:
                raise ConfigError(
                    f"The column {column!r} has more than {MOST:,} different names, too many for "
                    "classes; correct data.parquet.label."
                )
    return tuple(sorted(names - {None}))
