"""The settings of the input, and the sources of examples behind one protocol."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval

from aced import bounds
from aced.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from aced.config import Checked, ConfigError, MayChange, expand
from aced.data import records
from aced.data.captions import check_names
from aced.data.images.augment import AugmentConfig
from aced.data.images.filters import FilterConfig
from aced.data.records import Source
from aced.data.shapes.scenes import ShapesConfig
from aced.data.shapes.tasks import open_shapes
from aced.data.sources.candidates import CandidatesConfig, CandidatesSource
from aced.data.sources.mixture import Mixture
from aced.data.sources.parquet import ParquetConfig, ParquetSource
from aced.data.sources.tars import TarSource, WebDatasetConfig, refuse_packed
from aced.data.sources.tfds import TfdsConfig, TfdsSource
from aced.files import storage

MAX_EXAMPLES = 2**31 - 1  # ids are int32 on the device
MAX_AUGMENTATIONS = 1024  # stored ones of a picture
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6  # of a kind of captions; sums of others may lose precision


@dataclasses.dataclass(frozen=True)
class ArrayRecordConfig(Checked):
    """A data set that `python -m aced.prepare` wrote."""

    path: MayChange[str] = ""  # its folder
    split: str = "train"


def _open_prepared(config: ArrayRecordConfig) -> Source:
    return records.open_dataset(expand(config.path), config.split)


class Kind(NamedTuple):
    """How a kind of source is opened, and the settings that it needs."""

    open: Callable[[Any], Source]
    needed: tuple[str, ...]  # at least one of these settings has to be given
    advice: str  # the value to suggest for the first of them


def _kind(
    default: Any, opened_by: Callable[[Any], Source], needed: tuple[str, ...] = (), advice: str = ""
) -> Any:
    """The field of a kind of source, with its default settings."""
    return dataclasses.field(default=default, metadata={"kind": Kind(opened_by, needed, advice)})


@dataclasses.dataclass(frozen=True)
class SourceConfig(Checked):
    """Which examples are read. Each kind of source has a field, which is its only entry."""

    source: str = "shapes"  # the name of one of the kinds
    # The embedded data set.
    shapes: ShapesConfig = _kind(ShapesConfig(), open_shapes)
    array_record: ArrayRecordConfig = _kind(
        ArrayRecordConfig(),
        _open_prepared,
        ("path",),
        "a folder that `python -m aced.prepare` wrote",
    )
    # Tars as img2dataset writes them.
    webdataset: WebDatasetConfig = _kind(
        WebDatasetConfig(),
        TarSource,
        ("path",),
        "a folder of tars, or a pattern such as /data/{00000..00099}.tar",
    )
    parquet: ParquetConfig = _kind(
        ParquetConfig(),
        ParquetSource,
        ("path",),
        "a folder of parquet files, or a pattern such as /data/train-*.parquet",
    )
    # WinoGAViL, for evaluations.
    candidates: CandidatesConfig = _kind(
        CandidatesConfig(),
        CandidatesSource,
        ("path",),
        "a folder of WinoGAViL's parquet files",
    )
    # TensorFlow Datasets.
    tfds: TfdsConfig = _kind(
        TfdsConfig(),
        TfdsSource,
        ("name", "builder_dir"),
        "the name of a prepared data set, or set .builder_dir",
    )

    def _check(self) -> None:
        kinds = self.kinds()
        if message := bounds.wrong_choice(kinds, self.source, "data.source"):
            raise ConfigError(message)
        name, kind = self.source, kinds[self.source]
        settings = getattr(self, name)
        if kind.needed and not any(getattr(settings, key) for key in kind.needed):
            raise ConfigError(
                f"data.{name}.{kind.needed[0]} is empty, but data.source={name!r} reads it; set "
                f"it to {kind.advice}."
            )
        for key in kind.needed:
            path = expand(getattr(settings, key))
            storage.check_scheme(path, f"data.{name}.{key}", storage.STORES, storage.DOWNLOAD)

    @property
    def place(self) -> str:
        """What to call the data set in messages: its path or name, and its split."""
        settings, kind = getattr(self, self.source), self.kinds()[self.source]
        place = next(filter(None, (getattr(settings, key) for key in kind.needed)), self.source)
        split = getattr(settings, "split", "")
        return f"{place}, split {split}" if split else place

    @classmethod
    def kinds(cls) -> dict[str, Kind]:
        """The kinds of sources by name: the fields that `_kind` made."""
        fields = dataclasses.fields(cls)
        return {f.name: f.metadata["kind"] for f in fields if "kind" in f.metadata}


@dataclasses.dataclass(frozen=True)
class MemberConfig(SourceConfig):
    """A member of a mixture."""

    weight: PositiveFloat = 1.0  # its share of the rows, relative to the weights of the others


def _open_mixture(members: Mapping[str, MemberConfig]) -> Source:
    return Mixture(
        {name: (open_source(members[name]), members[name].weight) for name in sorted(members)}
    )


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Which examples are read, and how."""

    # Several data sets by name, each with its own epochs; ids are consecutive, in the order of the
    # names.
    mixture: dict[str, MemberConfig] = dataclasses.field(
        default_factory=dict, metadata={"kind": Kind(_open_mixture, (), "")}
    )
    filters: FilterConfig = FilterConfig()  # examples to leave out
    shuffle: bool = True  # another permutation of the whole data set every epoch
    # Which caption of a picture with several is used: the first, or a random one every time.
    caption: Literal["first", "random"] = "random"
    # Weights of the kinds of captions in that random choice, such as {"given": 1, "synthetic": 3}:
    # the weight of a kind, 0 or 1e-6 to 1e6, is shared by its captions of the picture. Kinds that
    # are left out are not used, and pictures without other captions are skipped and counted. Empty:
    # all captions have the same probability.
    caption_weights: dict[str, NonNegativeFloat] = dataclasses.field(default_factory=dict)
    # Stored augmentations of each picture, k; 0: none. One is drawn every time, for all models. Its
    # crop and flip follow from the example's id and its number alone, so that a cache has the
    # embeddings of all k.
    augmentations: Annotated[int, Interval(ge=0, le=MAX_AUGMENTATIONS)] = 0
    augment: AugmentConfig = AugmentConfig()  # what these augmentations are
    # Threads per process that read and decode; 0: none, for debugging.
    num_threads: MayChange[NonNegativeInt] = 16
    # Super-batches that each process prepares in advance; each takes its size in memory.
    prefetch: MayChange[NonNegativeInt] = 2
    # Pictures with more pixels are skipped. A PNG of this size takes 0.8 GB.
    max_pixels: PositiveInt = 89_478_485
    # How pictures are decoded and resized for training; evaluation is always "exact".
    # "exact": in full, by Pillow's filters, as published preprocessing does.
    # "fast": JPEGs at 1/2, 1/4 or 1/8 where that has enough pixels, then resized by OpenCV, which
    # is 2 to 4 times as fast. On photographs the mean difference is 1 to 2 grey levels.
    decode: Literal["exact", "fast"] = "exact"
    # Whether a model reads the stored thumbnail, if there is one with enough pixels.
    thumbnails: bool = False
    # The run stops when this many records in a row are unreadable for one row of a batch. Single
    # ones are skipped and counted, and replaced by random ones of the data set or member.
    max_skipped_in_a_row: MayChange[PositiveInt] = 100

    def _check(self) -> None:
        super()._check()
        if self.source == "mixture" and not self.mixture:
            raise ConfigError(
                "data.mixture is empty, but data.source='mixture' reads it; add members to it in "
                "the config file: config.data.mixture = {'web': to_config(MemberConfig(...))}."
            )
        self._check_captions()
        self._check_augment()
        for name in self.mixture:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
                raise ConfigError(
                    f"data.mixture has a member {name!r}; names have only letters, digits, _ and -."
                )

    def _check_augment(self) -> None:
        """Raises a ConfigError if only one of the settings of stored augmentations is given."""
        if self.augmentations and not self.augment.changes:
            raise ConfigError(
                f"data.augmentations = {self.augmentations}, but data.augment changes no picture; "
                "set data.augment.crop_area, such as (0.4, 1.0), or .flip."
            )
        if self.augment != AugmentConfig() and not self.augmentations:
            raise ConfigError(
                "data.augment is read only with stored augmentations; set data.augmentations to "
                "their number for each picture, or leave data.augment at its defaults."
            )

    def _check_captions(self) -> None:
        """Raises a ConfigError if the weights of captions are wrong or not read."""
        weights = self.caption_weights
        check_names(tuple(weights), "data.caption_weights")
        for kind, weight in weights.items():
            if message := bounds.wrong(NonNegativeFloat, weight, f"data.caption_weights.{kind}"):
                raise ConfigError(message)
            if weight and not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
                raise ConfigError(
                    f"data.caption_weights.{kind} must be 0, or {LEAST_WEIGHT:g} to "
                    f"{MOST_WEIGHT:g}, got {weight!r}; only the ratios of the weights matter."
                )
        if weights and not any(weights.values()):
            raise ConfigError(
                f"data.caption_weights = {weights} leaves no captions; one of the weights must be "
                "above 0."
            )
        if weights and self.caption == "first":
            raise ConfigError(
                "data.caption_weights is for a random choice, and data.caption = 'first' makes "
                "none; set data.caption to 'random', or leave the weights out."
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
    source = config.kinds()[config.source].open(getattr(config, config.source))
    check_size(source)
    return source


def kind_of(path: str) -> str:
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
