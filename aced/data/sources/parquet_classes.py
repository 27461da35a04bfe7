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
    """Of the columns whose values are classes with names, those names by number; `label` first.

    Args:
        files: all of a data set, with their schemas.
        label: the column of labels; "": there is none.
        captions: the columns of captions.

    Raises:
        ConfigError, StorageError: see `occurring`.
        DatasetError: see `occurring`; or files disagree on the names.
    """
    found = {}
    for column in filter(None, (label, *captions)):
        said = {}
        for file, schema in files:
            named = column == label and are_names(schema.field(column))
            said[named, described(schema, column)] = file.path
        if len(said) > 1:
            raise DatasetError(
                f"{' and '.join(said.values())} name the classes of their column {column!r} "
                "differently; write them again, as one data set."
            )
        for named, names in said:
            if named:
                names = occurring([file for file, _ in files], column)
            if names is not None:
                found[column] = names
    return found


def are_names(field: pa.Field) -> bool:
    """Whether the values of a column are strings, and may be names of classes."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def described(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """By number, the names that Hugging Face's `datasets` has noted for a column of numbers."""
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
    """The names in a column of all `files`, sorted: the place of each is its number.

    Reads the column whole, once.

    Raises:
        ConfigError: there are more than `MOST`.
        DatasetError: a file is damaged.
        StorageError: a file cannot be read just now.
    """

    def of(file: File) -> set[str | None]:
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
        for found in pool.map(of, files):
            names |= found
            if len(names) > MOST:
                raise ConfigError(
                    f"The column {column!r} has more than {MOST:,} different names, which are no "
                    "classes; correct data.parquet.label."
                )
    return tuple(sorted(names - {None}))
