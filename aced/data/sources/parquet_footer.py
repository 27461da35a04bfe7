"""The footer of a parquet file: its columns, and the rows and sizes of its row groups.

With damaged statistics pyarrow raises an error when it reads rows, but ends the process when asked
for the size of a column (2 in 1,000 flipped bits of a footer). So each column is first read from a
file without pages: damage raises an error, and intact statistics lead to the request of a page.
"""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aced.config import ConfigError
from aced.data.records import DatasetError
from aced.files import storage
from aced.files.storage import File

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_BYTES = 1 << 28
_MARK = b"PAR1"


@dataclasses.dataclass(frozen=True)
class Footer:
    """The parsed footer of a file."""

    schema: "pa.Schema"
    rows: list[int]  # of every row group
    sizes: list[int]  # of every row group: unpacked bytes of the columns that are read
    sha256: str  # of the footer: offsets, sizes and statistics of all columns


def pyarrow() -> Any:
    """Imports pyarrow; a ConfigError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "data.source='parquet' needs pyarrow: `pip install '.[parquet]'`."
        ) from error
    return pyarrow


def read(file: File, columns: Sequence[str]) -> Footer:
    """Reads the footer of a file, with the sizes of `columns`.

    Raises:
        DatasetError: the file is damaged or not parquet.
        StorageError: the file cannot be read.
    """
    try:
        tail = storage.read(file.path, max(0, file.size - 8), 8)
        size = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MARK or not 0 < size <= min(file.size - 8, _MAX_BYTES):
            raise ValueError("it does not end like a parquet file: it was cut off or is not one")
        footer = storage.read(file.path, file.size - 8 - size, size)
        return _parse(footer, tail, file.size, columns)
    except storage.StorageError:
        raise
    except Exception as error:  # damaged metadata make pyarrow raise nearly anything
        raise DatasetError(f"{file.path} cannot be used: {error}.") from error


def described(schema: "pa.Schema", column: str) -> str:
    """Returns what a column is, in words, to end a sentence with."""
    indices = schema.get_all_field_indices(column)
    if not indices:
        return "does not exist"
    if len(indices) > 1:
        return f"is the name of {len(indices)} columns; rename all but one of them"
    return f"is {schema.field(indices[0]).type}"


def _parse(footer: bytes, tail: bytes, file_size: int, columns: Sequence[str]) -> Footer:
    library = pyarrow()
    metadata = library.parquet.read_metadata(library.BufferReader(_MARK + footer + tail))
    # Looks up all columns of all groups before the first page.
    pages = library.parquet.ParquetFile(
        _WithoutPages(file_size), metadata=metadata, pre_buffer=True
    )
    paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    leaves = [
        number
        for number, path in enumerate(paths)
        if any(f"{path}.".startswith(f"{column}.") for column in columns)
    ]
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError("its numbers of rows are damaged")
    if groups:
        with contextlib.suppress(_PageError):
            every = list(range(len(groups)))
            pages.reader.read_row_groups(every, column_indices=leaves, use_threads=False)
    sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    if min(sizes, default=0) < 0:
        raise ValueError("the sizes of its columns are damaged")
    schema = metadata.schema.to_arrow_schema()
    return Footer(schema, rows, sizes, hashlib.sha256(footer).hexdigest())


class _PageError(Exception):
    """A page was requested."""


class _WithoutPages(io.RawIOBase):
    """A file of `size` bytes whose `read` raises an error."""

    def __init__(self, size: int):
        super().__init__()
        self._size, self._at = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        raise _PageError
