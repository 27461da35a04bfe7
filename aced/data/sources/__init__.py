"""The settings of the input, and the sources of examples behind one protocol."""

import dataclasses
import re
from typing import Literal

from aced.config import ConfigError, expand
from aced.data import records
from aced.data.images.filters import FilterConfig
from aced.data.records import Source
from aced.data.shapes.scenes import ShapesConfig
from aced.data.shapes.tasks import open_shapes
from aced.data.sources.mixture import Mixture
from aced.data.sources.parquet import ParquetConfig, ParquetSource
from aced.data.sources.tars import TarSource, WebDatasetConfig, refuse_packed
from aced.data.sources.tfds import TfdsConfig, TfdsSource
from aced.files import storage

MAX_EXAMPLES = 2**31 - 1  # ids are int32 on the device


@dataclasses.dataclass(frozen=True)
class ArrayRecordConfig:
    """A data set that `python -m aced.prepare` wrote."""

    path: str = ""  # its folder
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which examples are read."""

    # The embedded data set, prepared files, img2dataset's tars, parquet, or TensorFlow Datasets.
    source: Literal["shapes", "array_record", "webdataset", "parquet", "tfds"] = "shapes"
    shapes: ShapesConfig = dataclasses.field(default_factory=ShapesConfig)
    array_record: ArrayRecordConfig = ArrayRecordConfig()
    webdataset: WebDatasetConfig = WebDatasetConfig()
    parquet: ParquetConfig = ParquetConfig()
    tfds: TfdsConfig = TfdsConfig()

    def __post_init__(self) -> None:
        for source, (keys, what) in _NEEDED.items():
            settings = getattr(self, source)
            if self.source != source:
                continue
            if not any(getattr(settings, key) for key in keys):
                raise ConfigError(
                    f"data.{source}.{keys[0]} is empty, but data.source={source!r} reads it; set "
                    f"it to {what}."
                )
            for key in keys:
                path = expand(getattr(settings, key))
                storage.check_scheme(
                    *(path, f"data.{source}.{key}", storage.STORES), storage.DOWNLOAD
                )


# What has to be set for each source: one of these keys, and to what.
_NEEDED = {
    "array_record": (("path",), "a folder that `python -m aced.prepare` wrote"),
    "webdataset": (("path",), "a folder of tars, or a pattern such as /data/{00000..00099}.tar"),
    "parquet": (("path",), "a folder of parquet files, or a pattern such as /data/train-*.parquet"),
    "tfds": (("name", "builder_dir"), "the name of a prepared data set, or set .builder_dir"),
}


@dataclasses.dataclass(frozen=True)
class MemberConfig(SourceConfig):
    """A member of a mixture."""

    weight: float = 1.0  # its share of the rows, relative to the weights of the others

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"The weight of a member must be above 0, got {self.weight}.")


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Which examples are read, and how."""

    source: Literal["shapes", "array_record", "webdataset", "parquet", "tfds", "mixture"] = "shapes"
    # Several data sets by name, each in epochs of its own; ids are numbered through in the order of
    # the names.
    mixture: dict[str, MemberConfig] = dataclasses.field(default_factory=dict)
    filters: FilterConfig = FilterConfig()  # examples to leave out
    shuffle: bool = True  # another permutation of the whole data set every epoch
    # Of several captions of one picture: the first, or another one every time.
    caption: Literal["first", "random"] = "random"
    num_threads: int = 16  # that read and decode, per process; 0: none, for debugging
    prefetch: int = 2  # super-batches ready and waiting, per process; each costs its size in memory
    max_pixels: int = 89_478_485  # larger pictures are skipped; of so many a PNG takes 0.8 GB
    # How pictures are decoded and resized for training; evaluation is always "exact".
    # "exact": in full, by Pillow's filters: what published preprocessing gives.
    # "fast": JPEGs at 1/2, 1/4 or 1/8 where that has enough pixels, then resized by OpenCV: 2 to 4
    # times the pictures a second; on photographs 1 to 2 grey levels of difference in the mean.
    decode: Literal["exact", "fast"] = "exact"
    # Models that see no more pixels than a stored thumbnail has read that, where there is one.
    thumbnails: bool = False
    # Unreadable records drawn in a row for one place of a batch that stop the run. Single ones are
    # skipped and counted, and random others of the data set or the member take their place.
    max_skipped_in_a_row: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "mixture" and not self.mixture:
            raise ConfigError(
                "data.mixture is empty, but data.source='mixture' reads it; add members to it in "
                "the config file: config.data.mixture = {'web': to_config(MemberConfig(...))}."
            )
        for name in self.mixture:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
                raise ConfigError(
                    f"data.mixture has a member {name!r}; names are letters, digits, _ and -."
                )
        if self.num_threads < 0 or self.prefetch < 0:
            raise ConfigError(
                f"data.num_threads={self.num_threads} and data.prefetch={self.prefetch} must be at "
                "least 0."
            )
        if self.max_pixels < 1 or self.max_skipped_in_a_row < 1:
            raise ConfigError(
                f"data.max_pixels={self.max_pixels} and data.max_skipped_in_a_row="
                f"{self.max_skipped_in_a_row} must be at least 1."
            )

    @property
    def members(self) -> tuple[str, ...]:
        """The sorted names of a mixture's members; empty for other sources."""
        return tuple(sorted(self.mixture)) if self.source == "mixture" else ()


def open_source(config: SourceConfig) -> Source:
    """Opens the data set that `config` names.

    Raises:
        ConfigError: it is empty, has too many examples for int32 ids, or lacks a column; or a
            package is missing.
        aced.data.records.DatasetError: files are missing or damaged.
        aced.files.storage.StorageError: a path does not exist, or cannot be read.
    """
    if config.source == "mixture":
        members = [(name, config.mixture[name]) for name in config.members]
        source = Mixture({name: (open_source(m), m.weight) for name, m in members})
    else:
        source = _OPEN[config.source](getattr(config, config.source))
    check_size(source)
    return source


_OPEN = {
    "shapes": open_shapes,
    "array_record": lambda config: records.open_dataset(expand(config.path), config.split),
    "webdataset": TarSource,
    "parquet": ParquetSource,
    "tfds": TfdsSource,
}


def kind_of(path: str) -> Literal["array_record", "webdataset", "parquet"]:
    """The source that reads `path`, by its ending or the content of the folder.

    A path that does not exist counts as a prepared data set, whose error explains how to make one.

    Raises:
        ConfigError: `path` is a compressed tar, or a folder with some.
        StorageError: a folder cannot be listed.
    """
    if path.endswith(".tar"):
        return "webdataset"
    if path.endswith(".parquet"):
        return "parquet"
    if storage.is_folder(path) and storage.stat(f"{path}/{records.DESCRIPTION}") is not None:
        return "array_record"
    if storage.matching(f"{path}/*.tar"):
        return "webdataset"
    if any(storage.matching(f"{path}/{inner}*.parquet") for inner in ("", "*/", "data/*/")):
        return "parquet"
    refuse_packed(path)
    return "array_record"


def check_size(source: Source) -> None:
    """Raises a ConfigError if a data set is empty or has too many examples for int32 ids."""
    count = len(source)
    if count == 0:
        raise ConfigError(
            f"The data set {source.name} is empty; check data.source, the path and the split, or "
            "data.shapes.size."
        )
    if count > MAX_EXAMPLES:
        raise ConfigError(
            f"The data set {source.name} has {count} examples, but ids are 32 bits wide and end at "
            f"{MAX_EXAMPLES}; prepare it in several data sets or splits."
        )
