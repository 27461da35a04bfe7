"""The roles of the columns of a parquet data set, by their types, names and metadata.

The metadata are those of Hugging Face's `datasets`, which name the classes of a ClassLabel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from aced.config import ConfigError
from aced.data.sources import parquet_classes, parquet_footer, parquet_splits

_PICTURES = ("image", "img", "jpg", "png", "webp", "picture")  # in order of preference
_LABELS = ("label", "labels", "cls", "class", "fine_label")
_CAPTIONS = ("caption", "captions", "sentences", "text", "txt")


class Roles(NamedTuple):
    """The columns of a data set; "" for those that it does not have."""

    image: str
    label: str = ""  # the number or the name of a class
    classes: str = ""  # lists of numbers of named classes
    caption: str = ""


def has_columns(path: str, split: str, names: Sequence[str]) -> bool:
    """Whether the first file of a data set has all these columns.

    Raises:
        ConfigError, DatasetError, StorageError: see `read`.
    """
    return set(names) <= set(_schema(path, split).names)


def _schema(path: str, split: str) -> pa.Schema:
    """The columns of the first file."""
    files, _ = parquet_splits.find(path, split)
    return parquet_footer.read(files[0], ()).schema


def read(path: str, split: str, label: str = "") -> Roles:
    """Determines the columns of the first file of a data set.

    Args:
        path: as in `ParquetConfig`.
        split: as in `ParquetConfig`.
        label: the column of labels, if several columns have classes.

    Raises:
        ConfigError: there is no column of pictures, or there are several columns of classes and
            none has a usual name; or `label` is not a column of classes.
        DatasetError: the file is not parquet.
        StorageError: the file cannot be read.
    """
    schema = _schema(path, split)
    pictures = [field.name for field in schema if is_picture(field)]
    if not pictures:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ConfigError(f"{path} has no column of pictures. There are: {columns}.")
    image = _usual(pictures, _PICTURES) or pictures[0]
    named = [f.name for f in schema if parquet_classes.described(schema, f.name) is not None]
    single = [name for name in named if pa.types.is_integer(schema.field(name).type)]
    several = [name for name in named if name not in single]
    plain = [f.name for f in schema if f.name in _LABELS and _is_class(f)]
    labels = single or plain
    if label and label not in labels:
        raise ConfigError(f"--label={label}: {path} has as columns of classes: {labels}.")
    label = label or _usual(labels, _LABELS) or (labels[0] if len(labels) == 1 else "")
    if len(labels) > 1 and not label:
        raise ConfigError(
            f"{path} has several columns of classes, {', '.join(labels)}; choose one by "
            "--label=COLUMN."
        )
    captions = [field.name for field in schema if _is_text(field)]
    return Roles(image, label, several[0] if several else "", _usual(captions, _CAPTIONS))


def _usual(names: list[str], usual: tuple[str, ...]) -> str:
    """The first of the usual names that is among `names`, or ""."""
    return next((name for name in usual if name in names), "")


def is_picture(field: pa.Field) -> bool:
    """Whether a column has encoded pictures, alone or in a struct with `bytes`."""
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_class(field: pa.Field) -> bool:
    return pa.types.is_integer(field.type) or parquet_classes.are_names(field)


def _is_text(field: pa.Field) -> bool:
    kind = field.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
