"""The description of a cache: `plan.json` while it is made, `cache.json` when it is complete.

    my_cache/
      cache.json                                  the model, the data, the precision and its error
      embeddings-00000-of-00002.array_record
      embeddings-00001-of-00002.array_record

Files are not trusted: types, sizes and lengths are checked, and the names of shards are built from
their numbers, never read. Both files have a checksum; those of the shards are in `cache.json`, and
ArrayRecord compares one per group of entries on reading.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Interval

from aced.bounds import Finite, NonNegativeInt, PositiveFloat
from aced.cache import entries, precision
from aced.cache.calibration import Calibration
from aced.cache.libraries import About
from aced.cache.precision import Precision
from aced.config import Checked, ConfigError, flatten, from_config
from aced.data.images.augment import AugmentConfig
from aced.data.records import DatasetError
from aced.data.sources import MAX_EXAMPLES, DataConfig
from aced.files import own_files, storage
from aced.models.two_tower import TwoTowerConfig

FORMAT, VERSION = "aced-embeddings", 1
T = TypeVar("T")
PLAN, COMPLETE = "plan.json", "cache.json"
TOWERS = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}
AGAIN = "copy the cache again, or remove its folder and make it again"  # where one is damaged
_MAX_BYTES = 1 << 30  # of a description; 10 million missing examples need half of it
_MAX_WIDTH = 1 << 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Settings that may change when a pass is resumed: how the model is computed, except its dtype, and
# the path of its vocabulary, whose content is in the fingerprint.
_FREE = re.compile(r"model\.(scan|remat|attention|tokenizer\.path)")


class CacheError(DatasetError):
    """A cache is missing, damaged, or of another model or data set."""


@dataclasses.dataclass(frozen=True)
class Plan(Checked):
    """The settings of a cache, fixed before the first example is embedded."""

    examples: Annotated[int, Interval(ge=1, le=MAX_EXAMPLES)]  # of the data set
    towers: Literal["both", "image", "text"]
    precision: Precision
    # Examples of a shard; the last one may have fewer.
    shard_size: Annotated[int, Interval(ge=1, le=MAX_EXAMPLES)]
    model: TwoTowerConfig | None  # None: another library's
    scale: PositiveFloat  # of the model's logits
    bias: Finite | None  # None: it was trained without one
    calibration_pairs: int  # maximum number of pairs for fitting a scale and a bias
    calibration_batch_size: int  # b of the sigmoid loss in that fit
    fingerprint: dict[str, str]  # of "weights", "tokenizer", "decode" and "data"
    other: About | None = None  # another library's model
    augmentations: NonNegativeInt = 0  # stored ones of each picture; 0: pictures as they are
    augment: AugmentConfig = AugmentConfig()  # what these augmentations are

    def _check(self) -> None:
        if self.shards > entries.MAX_SHARDS:
            raise ConfigError(
                f"shard_size = {self.shard_size} makes {self.shards} shards of {self.examples} "
                f"examples; {entries.MAX_SHARDS} are allowed, so raise it."
            )
        if (self.model is None) == (self.other is None):
            raise ConfigError("Either a model or another library's model must be described.")
        if not 1 <= self.width <= _MAX_WIDTH:
            raise ConfigError(f"The model's width must be 1 to {_MAX_WIDTH}.")

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.other.width if self.model is None else self.model.width

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return precision.row_bytes(self.precision, self.width)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.examples // self.shard_size)

    def range(self, shard: int) -> range:
        """The examples of a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.examples))

    @property
    def pictures(self) -> int:
        """Rows of the pictures in the entry of an example."""
        return max(1, self.augmentations) if self.has("image") else 0

    def has(self, tower: str) -> bool:
        """Whether the cache has embeddings of `tower` ("image" or "text")."""
        return tower in TOWERS[self.towers]

    def other_fingerprints(self, expected: Mapping[str, str]) -> list[str]:
        """The fingerprints that differ from `expected`, one line each."""
        return [
            f"{name}: here {value}, there {self.fingerprint.get(name)}"
            for name, value in expected.items()
            if self.fingerprint.get(name) != value
        ]

    def other_augmentations(self, data: DataConfig) -> list[str]:
        """The settings of stored augmentations that differ from those of `data`, one line each."""
        if not self.has("image"):
            return []
        here, there = (
            flatten({"augmentations": x.augmentations, "augment": dataclasses.asdict(x.augment)})
            for x in (data, self)
        )
        return [
            f"data.{name}: here {value}, there {there[name]}"
            for name, value in here.items()
            if there[name] != value
        ]

    def path(self, folder: pathlib.Path, shard: int) -> pathlib.Path:
        """The file of a shard."""
        return folder / entries.shard_name(shard, self.shards)


@dataclasses.dataclass(frozen=True)
class Shard(Checked):
    """A complete file, and statistics of its examples."""

    bytes: NonNegativeInt
    sha256: str
    captions: NonNegativeInt
    missing: dict[str, str]  # id of an example that could not be embedded: the reason

    def _check(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ConfigError(f"not a shard: {self.bytes} bytes, sha256 {self.sha256!r}.")


@dataclasses.dataclass(frozen=True)
class Description(Checked):
    """A complete cache."""

    plan: Plan
    shards: tuple[Shard, ...]
    fitted: Calibration | None  # None: there is no best scale, or not both towers
    errors: dict[str, Any]  # by precision, including those not chosen: see precision.Errors

    def _check(self) -> None:
        if len(self.shards) != self.plan.shards:
            raise ConfigError(f"{len(self.shards)} shards instead of {self.plan.shards}.")
        for number, shard in enumerate(self.shards):
            within = self.plan.range(number)
            strange = [i for i in shard.missing if not (i.isdecimal() and int(i) in within)]
            if strange:
                raise ConfigError(f"example {strange[0]!r} is missing in shard {number}.")

    @property
    def missing(self) -> dict[int, str]:
        """The reason for each example that could not be embedded, by id."""
        return {int(i): reason for shard in self.shards for i, reason in shard.missing.items()}

    @property
    def digest(self) -> str:
        """The sha256 of everything that training reads."""
        about = [self.plan.scale, self.plan.bias, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    @property
    def captions(self) -> int:
        """Captions that were embedded."""
        return sum(shard.captions for shard in self.shards)


def differences(existing: Plan, new_plan: Plan) -> list[str]:
    """The settings in which two plans differ, one line each."""
    plans = (json.loads(json.dumps(dataclasses.asdict(plan))) for plan in (existing, new_plan))
    lines = own_files.differences(*plans)
    return [line for key, line in lines.items() if not _FREE.fullmatch(key)]


def refuse(folder: str | os.PathLike, lines: Sequence[str]) -> None:
    """Raises a CacheError that lists the mismatches in `lines`, if any."""
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise CacheError(
            f"The embeddings in {folder} are of another model or other data:\n{listed}\n"
            "Choose another cache, or make one with this run's config: python -m aced.cache "
            "--config=CONFIG --model=reference|TEACHER --out=NEW_FOLDER"
        )


def write(path: pathlib.Path, content: Any) -> None:
    """Writes a dataclass as JSON, atomically."""
    about = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(content)
    with storage.whole_file(path) as part:
        part.write_bytes(own_files.dumps(about))


def read(path: pathlib.Path, kind: type[T]) -> T:
    """Returns the dataclass `kind` that `write` wrote to `path`.

    Raises:
        CacheError: the file is damaged, too large, or of another kind.
    """
    with own_files.reading(path, AGAIN, CacheError):
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise ValueError(f"it has {size} bytes; {_MAX_BYTES} are allowed")
        about = own_files.loads(path.read_bytes())
        version = about.pop("format", None), about.pop("version", None)
        if version != (FORMAT, VERSION):
            raise ValueError(f"format and version are {version}, not {(FORMAT, VERSION)}")
        return from_config(kind, about, path.name)


def is_complete(folder: str | os.PathLike) -> bool:
    """Whether `folder` has a complete cache."""
    return "://" not in str(folder) and (pathlib.Path(folder) / COMPLETE).is_file()


def read_complete(folder: str | os.PathLike) -> Description:
    """Returns the description of the complete cache in `folder`, without opening its shards.

    Raises:
        CacheError: the cache is missing or incomplete.
    """
    path = pathlib.Path(folder)
    if not is_complete(path):
        state = "is not finished" if (path / PLAN).is_file() else "is not a cache"
        raise CacheError(
            f"{path} {state}: it has no {COMPLETE}. `python -m aced.cache --out={path} ...` makes "
            "a cache, and resumes where it was stopped."
        )
    return read(path / COMPLETE, Description)
