"""What is read, and how: the settings of the input, and the data sets behind one protocol."""

import dataclasses
from typing import Literal

from aced.config import ConfigError
from aced.data import records
from aced.data.records import Source
from aced.data.shapes import Shapes, ShapesConfig

MAX_EXAMPLES = 2**31 - 1  # ids are int32 on the device


@dataclasses.dataclass(frozen=True)
class ArrayRecordConfig:
    """A data set that `python -m aced.prepare` wrote."""

    path: str = ""  # its folder
    split: str = "train"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which examples are read, and by how many threads."""

    source: Literal["shapes", "array_record"] = "shapes"  # the embedded data set, or prepared files
    shapes: ShapesConfig = dataclasses.field(default_factory=ShapesConfig)
    array_record: ArrayRecordConfig = ArrayRecordConfig()
    shuffle: bool = True  # another permutation of the whole data set every epoch
    # Of several captions of one picture: the first, or another one every time.
    caption: Literal["first", "random"] = "random"
    num_threads: int = 16  # that read and decode, per process; 0: none, for debugging
    prefetch: int = 2  # super-batches ready and waiting, per process; each costs its size in memory
    max_pixels: int = 89_478_485  # larger pictures are skipped; Pillow's limit (256 MB as RGB)
    # Unreadable records in a row that stop the run. Single ones are skipped and counted.
    max_skipped_in_a_row: int = 100

    def __post_init__(self) -> None:
        if self.source == "array_record" and not self.array_record.path:
            raise ConfigError(
                "data.array_record.path is empty, but data.source='array_record' reads it; set it "
                "to a folder that `python -m aced.prepare` wrote."
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


def open_source(config: DataConfig) -> Source:
    """Opens the data set that `config` names.

    Raises:
        ConfigError: it is empty, or has more examples than an int32 id can tell apart.
        aced.data.records.DatasetError: the prepared files are missing or damaged.
    """
    if config.source == "shapes":
        source = Shapes(config.shapes)
    else:
        source = records.open_dataset(config.array_record.path, config.array_record.split)
    check_size(source)
    return source


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
