"""What is read, and how: the settings of the input, and the data sets behind one protocol."""

import dataclasses
import re
from typing import Literal

from aced.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from aced.config import Checked, ConfigError, MayChange, expand
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
class ArrayRecordConfig(Checked):
    """A data set that `python -m aced.prepare` wrote."""

    path: MayChange[str] = ""  # its folder
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class SourceConfig(Checked):
    """Which examples are read."""

    # The embedded data set, prepared files, img2dataset's tars, parquet, or TensorFlow Datasets.
    source: Literal["shapes", "array_record", "webdataset", "parquet", "tfds"] = "shapes"
    shapes: ShapesConfig = dataclasses.field(default_factory=ShapesConfig)
    array_record: ArrayRecordConfig = ArrayRecordConfig()
    webdataset: WebDatasetConfig = WebDatasetConfig()
    parquet: ParquetConfig = ParquetConfig()
    tfds: TfdsConfig = TfdsConfig()

    def _check(self) -> None:
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

    weight: PositiveFloat = 1.0  # its share of the rows, relative to the weights of the others


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
    # That read and decode, per process; 0: none, for debugging.
    num_threads: MayChange[NonNegativeInt] = 16
    # Super-batches ready and waiting, per process; each costs its size in memory.
    prefetch: MayChange[NonNegativeInt] = 2
    # Larger pictures are skipped; of so many a PNG takes 0.8 GB.
    max_pixels: PositiveInt = 89_478_485
    # How pictures are decoded and resized for training; evaluation is always "exact".
    # "exact": in full, by Pillow's filters: what published preprocessing gives.
    # "fast": JPEGs at 1/2, 1/4 or 1/8 where that has enough pixels, then resized by OpenCV: 2 to 4
    # times the pictures a second; on photographs 1 to 2 grey levels of difference in the mean.
    decode: Literal["exact", "fast"] = "exact"
    # Models that see no more pixels than a stored thumbnail has read that, where there is one.
    thumbnails: bool = False
    # Unreadable records drawn in a row for one place of a batch that stop the run. Single ones are
    # skipped and counted, and random others of the data set or the member take their place.
    max_skipped_in_a_row: MayChange[PositiveInt] = 100

    def _check(self) -> None:
        super()._check()
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

    @property
    def members(self) -> tuple[str, ...]:
        """The names of a mixture's members in their order; of other sources none."""
        return tuple(sorted(self.mixture)) if self.source == "mixture" else ()


def open_source(config: SourceConfig) -> Source:
    """Opens the data set that `config` names.

    Raises:
        ConfigError: it is empty, has more examples than an int32 id can tell apart, or lacks a
            column; or a package is missing.
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
    """The source that reads `path`: by its ending or, of a folder, by what is in it.

    What does not exist is taken for a prepared data set, whose reader says how to make one.

    Raises:
        ConfigError: it is, or is full of, compressed tars.
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
    """Refuses a data set that no step can be drawn from, before the first step.

    Raises:
        ConfigError: it is empty, or has more examples than an int32 id can tell apart.
    """
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
