"""Parquet files of WinoGAViL (arXiv 2207.12576): cues, each with candidate pictures.

A row has the columns `cue`, `candidate_images` (a list of pictures, as bytes or {bytes, path}),
`candidates` (their names), and `associations` (the names of those that people chose). Each
candidate picture is an example, with its row as the group.
"""

import dataclasses
import hashlib
import threading
from typing import Any, SupportsIndex

import numpy as np

from aced.config import Checked, ConfigError, MayChange
from aced.data import records
from aced.data.records import DatasetError, RecordError, check_index
from aced.data.sources import parquet_footer, parquet_splits
from aced.files import storage

_PICTURES, _CUE, _NAMES, _CHOSEN = "candidate_images", "cue", "candidates", "associations"
COLUMNS = (_PICTURES, _CUE, _NAMES, _CHOSEN)


@dataclasses.dataclass(frozen=True)
class CandidatesConfig(Checked):
    """WinoGAViL in parquet, for evaluations of kind "associations"."""

    path: MayChange[str] = ""  # a folder whose files are named by splits, as the hub's are
    split: str = "test"


class CandidatesSource:
    """The candidate pictures of all rows, row by row; see `Source`.

    The label of an example is 1 if its picture is associated with the cue, else 0; its text is the
    cue with an article, as in DataComp.
    """

    def __init__(self, config: CandidatesConfig):
        """Reads all columns but the pictures.

        Raises:
            ConfigError: pyarrow, the split or a column is missing.
            DatasetError: a file is damaged.
            StorageError: the files do not exist or cannot be read.
        """
        files, split = parquet_splits.find(config.path, config.split)
        self.name = f"{config.path}, split {split!r}" if split else config.path
        digest = hashlib.sha256()
        self._groups: list[tuple[str, int]] = []  # file and number of each row group
        places, texts, labels = [], [], []
        for file in files:
            footer = parquet_footer.read(file, COLUMNS)
            if missing := [name for name in COLUMNS if name not in footer.schema.names]:
                raise ConfigError(f"{file.path} has no column {missing[0]!r} as WinoGAViL has.")
            digest.update(footer.sha256.encode())
            for number, rows in enumerate(footer.rows):
                table = _read(file.path, number, [_CUE, _NAMES, _CHOSEN]).to_pylist()
                for row in range(rows):
                    names, chosen = table[row][_NAMES], set(table[row][_CHOSEN])
                    places += [(len(self._groups), row, i, len(texts)) for i in range(len(names))]
                    labels += [name in chosen for name in names]
                    texts.append(prompt(table[row][_CUE]))
                self._groups.append((file.path, number))
        self.fingerprint = f"candidates {digest.hexdigest()}"
        self._places = np.array(places, np.int64).reshape(-1, 4)
        self._texts, self._labels = texts, labels
        self._kept: tuple[int, list] | None = None  # the row group that was read last
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example `index`, see `Source`.

        Raises:
            IndexError: `index` is out of range.
            RecordError: there is no picture.
        """
        index = check_index(self, index)
        group, row, place, task = map(int, self._places[index])
        path, number = self._groups[group]
        try:
            picture = self._pictures(group)[row][place]
            picture = picture["bytes"] if isinstance(picture, dict) else picture
        except (IndexError, KeyError, TypeError) as error:
            raise RecordError(f"{path}, row group {number}, row {row}: {error!r}") from error
        if not picture or len(picture) > records.MAX_IMAGE_BYTES:
            raise RecordError(f"{path}, row group {number}, row {row}: it has no picture {place}")
        return {
            "image": picture,
            "id": index,
            "key": f"{group}/{row}/{place}",
            "texts": (self._texts[task],),
            "label": int(self._labels[index]),
            "group": task,
        }

    def _pictures(self, group: int) -> list:
        with self._lock:
            if self._kept is None or self._kept[0] != group:
                path, number = self._groups[group]
                table = _read(path, number, [_PICTURES])
                self._kept = group, table[_PICTURES].to_pylist()
            return self._kept[1]


def prompt(cue: str) -> str:
    """The text of a cue: "An apple", "A car"."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in tuple('aeiou') else 'A'} {cue}"


def _read(path: str, group: int, columns: list[str]) -> Any:
    """Columns of a row group, as a pyarrow table."""
    parquet = parquet_footer.pyarrow().parquet
    try:
        with storage.open_file(path) as file, parquet.ParquetFile(file) as whole:
            return whole.read_row_group(group, columns=columns)
    except Exception as error:  # damaged pages make pyarrow raise nearly anything
        if storage.is_passing(error):
            raise storage.StorageError(f"{path} cannot be read: {error}") from error
        raise DatasetError(f"{path}, row group {group}: {error}.") from error
