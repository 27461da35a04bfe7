"""Prepared data sets: a folder of ArrayRecord shards and one `dataset.json` that describes them.

    my_data/
      dataset.json                            counts, hashes, class names, statistics, settings
      train.hashes                            hash of each record's picture, see picture_hashes.py
      train-00000-of-00002.array_record
      train-00001-of-00002.array_record
      val-00000-of-00001.array_record

A record is one example, a msgpack map (`Example`), with the image bytes as found. Files are not
trusted: types and lengths are checked, and the names of shards are built here, never read.
ArrayRecord has its own checksums against damage; the sha256 in a record identifies its picture.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import operator
import os
import pathlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol, SupportsIndex, runtime_checkable

import msgpack
import numpy as np
from array_record.python import array_record_module
from jaxtyping import UInt64

from aced.data import captions, picture_hashes
from aced.errors import UserError
from aced.files import own_files

FORMAT = "aced-records"
VERSION = 1
DESCRIPTION = "dataset.json"
ADVICE = "copy the data set again or prepare it again"  # for a damaged description

# Limits on one record: far above real data, far below the size of memory.
MAX_IMAGE_BYTES = 1 << 28
MAX_STRING_BYTES = 1 << 20
MAX_ITEMS = 1024  # texts of one image, entries of `extra`
# Pictures of a record and the fields of their sha256; all but the first are optional.
_DIGESTS = {"image": "sha256", "thumbnail": "thumbnail_sha256", "second": "second_sha256"}
_REQUIRED = {"image": bytes, "texts": list, "key": str, "sha256": bytes}
_TYPES = {"label": int, "is_noisy": bool, "extra": dict, "answers": list, **_REQUIRED}
_TYPES["kinds"] = dict  # see captions.to_indices
_TYPES |= dict.fromkeys((*_DIGESTS, *_DIGESTS.values()), bytes)

# One record per group, since larger groups slow down random reads (measured: 6x). Uncompressed,
# since compressing encoded pictures saves nothing and doubles the time of a read.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# No read-ahead: reads are random. These are the settings of array_record's own data source.
_READER_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}

Scalar = str | int | float | bool


class DatasetError(UserError, ValueError):
    """A prepared data set is missing, incomplete, empty or inconsistent."""


class RecordError(ValueError):
    """A record can't be read; the message names file, index in the file and reason."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One image with its captions, label and other fields."""

    image: bytes  # encoded (JPEG, PNG, ...), as found; empty where there are only sentences
    texts: tuple[str, ...]  # at least one caption
    key: str  # the image's path in its folder, the same each time that the data set is prepared
    label: int | None = None
    is_noisy: bool | None = None  # whether the pair is known to be bad; None: unknown
    extra: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    thumbnail: bytes | None = None  # the whole picture again, smaller, upright, encoded
    second: bytes | None = None  # a second picture that the texts are also about, encoded
    answers: tuple[str, ...] = ()  # what people answered to the question in `texts`
    kinds: tuple[str, ...] = ()  # of `texts`, one by one; empty: all are captions.GIVEN

    @functools.cached_property
    def sha256(self) -> bytes:
        """The digest of the encoded image."""
        return hashlib.sha256(self.image).digest()


@runtime_checkable
class Source(Protocol):
    """Random access to examples, from any thread; what the input pipeline reads."""

    name: str  # for logs
    fingerprint: str  # changes whenever any example or their order does

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """The fields of an example.

        These are `image` bytes, `texts` (str, ...) and `id`; optional are `second` bytes, `kinds`
        (str, ...) of the texts, `key`, `label`, `answers` (str, ...) and others.
        """


def check_index(source: Source, index: SupportsIndex) -> int:
    """Returns `index` as an int; an IndexError if `source` has no such example."""
    index = operator.index(index)
    if not 0 <= index < len(source):
        raise IndexError(f"Example {index} of {source.name}, which has {len(source)}.")
    return index


def class_number(value: Any, field: str) -> int:
    """Returns `value`, or raises a ValueError if it is not a class number of 32 bits."""
    if type(value) is not int or not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"its {field} is not the number of a class: {value!r:.100}")
    return value


def encode(example: Example) -> bytes:
    """Returns `example` as the bytes of one record."""
    fields = {
        "image": example.image,
        "texts": list(example.texts),
        "key": example.key,
        "sha256": example.sha256,
    }
    for name in ("label", "is_noisy"):
        if (value := getattr(example, name)) is not None:
            fields[name] = value
    if example.extra:
        fields["extra"] = dict(example.extra)
    if example.answers:
        fields["answers"] = list(example.answers)
    if example.kinds and (indices := captions.to_indices(example.kinds)):
        fields["kinds"] = indices
    for name in ("thumbnail", "second"):
        if (picture := getattr(example, name)) is not None:
            fields |= {name: picture, _DIGESTS[name]: hashlib.sha256(picture).digest()}
    _check(fields)
    return msgpack.packb(fields, use_bin_type=True)


def decode(record: bytes) -> Example:
    """Returns the example that `encode` wrote.

    Raises:
        ValueError: the bytes are not a valid record.
    """
    fields = msgpack.unpackb(
        record,
        raw=False,
        strict_map_key=True,
        max_bin_len=MAX_IMAGE_BYTES,
        max_str_len=MAX_STRING_BYTES,
        max_array_len=MAX_ITEMS,
        max_map_len=MAX_ITEMS,
        max_ext_len=0,
    )
    _check(fields)
    fields = {name: x for name, x in fields.items() if name not in _DIGESTS.values()}
    if "kinds" in fields:
        fields["kinds"] = captions.from_indices(fields["kinds"], len(fields["texts"]))
    return Example(**fields | {name: tuple(fields.get(name, ())) for name in ("texts", "answers")})


def _check(fields: Any) -> None:
    """Raises ValueError for an invalid record. Runs for every example that is read."""
    if type(fields) is not dict:
        raise ValueError(f"a record must be a map, got {type(fields).__name__}")
    if not fields.keys() >= _REQUIRED.keys():
        raise ValueError(f"no field {min(_REQUIRED.keys() - fields.keys())!r}")
    for name, value in fields.items():
        if name not in _TYPES:
            raise ValueError(f"unknown field {name!r}")
        if type(value) is not (kind := _TYPES[name]):
            raise ValueError(f"field {name!r} must be {kind.__name__}, got {type(value).__name__}")
    for name, digest in _DIGESTS.items():
        if name in fields:
            size, least = len(fields[name]), 0 if name == "image" else 1
            if not least <= size <= MAX_IMAGE_BYTES:
                raise ValueError(
                    f"{name!r} has {size} bytes; {least} to {MAX_IMAGE_BYTES} are allowed"
                )
        if (name in fields) != (digest in fields):
            raise ValueError(f"only one of {name!r} and {digest!r} is present")
        if digest in fields and len(fields[digest]) != 32:
            raise ValueError(f"{digest!r} has {len(fields[digest])} bytes instead of 32")
    texts, key = fields["texts"], fields["key"]
    if not 0 < len(texts) <= MAX_ITEMS or not all(type(text) is str for text in texts):
        raise ValueError(f"'texts' must be 1 to {MAX_ITEMS} strings")
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise ValueError(f"key {key!r} is not a path inside a folder")
    answers = fields.get("answers", ())
    if len(answers) > MAX_ITEMS or not all(type(text) is str for text in answers):
        raise ValueError(f"'answers' must be at most {MAX_ITEMS} strings")
    _check_lengths((key, *texts, *answers))
    if "extra" in fields:
        _check_extra(fields["extra"])
    class_number(fields.get("label", 0), "label")


def _check_extra(extra: Mapping[Any, Any]) -> None:
    if len(extra) > MAX_ITEMS:
        raise ValueError(f"'extra' has {len(extra)} entries; {MAX_ITEMS} are allowed")
    for name, value in extra.items():
        if type(name) is not str or type(value) not in (str, int, float, bool):
            raise ValueError(f"'extra' maps strings to scalars, got {name!r}: {value!r}")
        if type(value) is int and not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"extra[{name!r}] = {value} does not fit 64 bits")
    _check_lengths((*extra, *(value for value in extra.values() if type(value) is str)))


def _check_lengths(texts: Iterable[str]) -> None:
    for text in texts:
        if len(text.encode()) > MAX_STRING_BYTES:
            raise ValueError(f"a text of more than {MAX_STRING_BYTES} bytes")


def shard_name(split: str, shard: int, shards: int) -> str:
    """The file name of one shard, for example `train-00000-of-00002.array_record`."""
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", split):
        raise DatasetError(
            f"A split's name must be of letters, digits and underscores, got {split!r}."
        )
    return f"{split}-{shard:05d}-of-{shards:05d}.array_record"


def write_split(
    directory: str | os.PathLike, split: str, examples: Iterable[Example], count: int, shards: int
) -> list[dict[str, Any]]:
    """Writes `count` examples in order to `shards` files of nearly equal counts.

    Returns:
        The split's part of `dataset.json`: records, bytes and sha256 of every shard.
    """
    if not 1 <= shards <= count:
        raise DatasetError(
            f"{count} examples of split {split!r} are too few for {shards} shards; ask for fewer."
        )
    iterator = iter(examples)
    described = []
    with (pathlib.Path(directory) / picture_hashes.file_name(split)).open("wb") as hashes:
        for shard in range(shards):
            size = (shard + 1) * count // shards - shard * count // shards
            path = pathlib.Path(directory) / shard_name(split, shard, shards)
            described.append(write_shard(path, itertools.islice(iterator, size), hashes))
            if described[-1]["records"] < size:
                raise DatasetError(
                    f"Split {split!r} has fewer examples than the {count} announced."
                )
    return described


def write_shard(
    path: str | os.PathLike, examples: Iterable[Example], hashes: BinaryIO
) -> dict[str, Any]:
    """Writes `examples` to the file `path`, and the hashes of their pictures to `hashes`.

    Returns:
        The shard's part of `dataset.json`: its records, bytes and sha256, and the sha256 of its
        hashes.
    """
    path, count, pictures = pathlib.Path(path), 0, hashlib.sha256()
    writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
        for example in examples:
            writer.write(encode(example))
            count += 1
            picture_hash = picture_hashes.of(example.sha256 if example.image else None)
            pictures.update(picture_hash)
            hashes.write(picture_hash)
    finally:
        writer.close()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "records": count,
        "bytes": path.stat().st_size,
        "sha256": digest,
        picture_hashes.DIGEST: pictures.hexdigest(),
    }


def fingerprint(splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """The sha256 of the hashes of all shards of `splits` (`write_split`'s results by name)."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        hashes = " ".join(shard["sha256"] for shard in splits[name])
        digest.update(f"{name} {hashes}\n".encode())
    return digest.hexdigest()


def write_description(
    directory: str | os.PathLike,
    splits: Mapping[str, list[dict[str, Any]]],
    *,
    statistics: Mapping[str, Any],
    settings: Mapping[str, Any],
    class_names: list[str] | None = None,
) -> None:
    """Writes `dataset.json`. Call it last: a folder with this file is complete."""
    description = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint(splits),
        "splits": {
            name: {"records": sum(shard["records"] for shard in shards), "shards": shards}
            for name, shards in splits.items()
        },
        "class_names": class_names,
        "statistics": statistics,
        "settings": settings,
    }
    (pathlib.Path(directory) / DESCRIPTION).write_bytes(own_files.dumps(description))


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the checked `dataset.json` of the data set `path`.

    Raises:
        DatasetError: the file is missing or has another format.
    """
    if "://" in str(path):
        raise DatasetError(
            f"{path}: ArrayRecord is read only from file systems, because its reader silently "
            "finds 0 records in stores; mount the store (gcsfuse), or use tars or parquet there."
        )
    file = pathlib.Path(path) / DESCRIPTION
    if not file.is_file():
        raise DatasetError(
            f"{path} is not a prepared data set: it has no {DESCRIPTION}. Make one with "
            "`python -m aced.prepare --images=... --captions=... --out=...`, or correct the path."
        )
    with own_files.reading(file, ADVICE, DatasetError):
        description = own_files.loads(file.read_bytes())
        if (version := (description["format"], description["version"])) != (FORMAT, VERSION):
            raise ValueError(f"format and version are {version}, not {(FORMAT, VERSION)}")
        for split_name, split in description["splits"].items():
            shard_name(split_name, 0, 1)
            for shard in split["shards"]:
                for name in ("records", "bytes"):
                    if type(shard[name]) is not int or shard[name] < 0:
                        raise ValueError(f"a shard of {shard[name]!r} {name}")
                for digest in (shard["sha256"], shard.get(picture_hashes.DIGEST, "0" * 64)):
                    if not re.fullmatch(r"[0-9a-f]{64}", digest):
                        raise ValueError(f"a shard's sha256 is {digest!r}")
        names = description["class_names"]
        if names is not None and not all(type(name) is str for name in names):
            raise ValueError("class_names must be strings or null")
    return description


def _described(
    path: str | os.PathLike, description: Mapping[str, Any], split: str
) -> Mapping[str, Any]:
    """The part of `description` about `split`; a DatasetError if that does not exist."""
    if split not in description["splits"]:
        known = ", ".join(description["splits"]) or "none"
        raise DatasetError(f"{path} has no split {split!r}; it has: {known}.")
    return description["splits"][split]


class RecordSource:
    """The examples of one split; see `Source`. Files are opened on the first read."""

    def __init__(self, path: str | os.PathLike, split: str):
        description = read_description(path)
        shards = _described(path, description, split)["shards"]
        self.name = f"{pathlib.Path(path).name}/{split}"
        self.fingerprint = fingerprint({split: shards})
        self.class_names: list[str] | None = description["class_names"]
        # Of the data set: a first record without answers or label must not hide those of others.
        self._has_answers = bool(description["settings"].get("answers_column"))
        self._directory, self._split = pathlib.Path(path), split
        self._counts = [shard["records"] for shard in shards]
        self._ends = [0, *itertools.accumulate(self._counts)]  # i-th: examples before shard i
        self._files = [
            self._directory / shard_name(split, i, len(shards)) for i in range(len(shards))
        ]
        # ArrayRecord's reader silently reports 0 records for a missing or truncated file.
        for file, shard in zip(self._files, shards, strict=True):
            if not file.is_file():
                raise DatasetError(f"Shard {file} is missing; copy it again or prepare it again.")
            if (size := file.stat().st_size) != shard["bytes"]:
                raise DatasetError(
                    f"Shard {file} has {size} bytes instead of {shard['bytes']} ({DESCRIPTION}); "
                    "it was cut off or belongs to another data set: copy it again or prepare it "
                    "again."
                )
        if (stated := description["splits"][split]["records"]) != self._ends[-1]:
            raise DatasetError(
                f"{path}/{DESCRIPTION} states {stated} records of split {split!r}, but its shards "
                f"have {self._ends[-1]}; prepare the data set again."
            )
        if not self._ends[-1]:
            raise DatasetError(f"Split {split!r} of {path} has no records; prepare it again.")
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __reduce__(self):
        # A worker process opens the files itself.
        return RecordSource, (self._directory, self._split)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example `index`, see `Source`, with `extra` if it has any.

        Raises:
            IndexError: `index` is out of range.
            RecordError: the record is damaged.
            DatasetError: a shard does not match `dataset.json`.
        """
        index = check_index(self, index)
        shard = bisect.bisect_right(self._ends, index) - 1
        row = index - self._ends[shard]
        reader = self._reader(shard)
        try:
            example = decode(reader.read([row])[0])
        except (ValueError, RuntimeError, IndexError, msgpack.UnpackException) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RecordError(f"{self._files[shard]}, record {row}: {reason}") from error
        out = {"image": example.image, "texts": example.texts, "id": index, "key": example.key}
        if example.extra:
            out["extra"] = dict(example.extra)
        if example.kinds:
            out["kinds"] = example.kinds
        if self._has_answers:
            out |= {"answers": example.answers, "label": -1}  # unknown, unless the record has one
        for name in ("label", "is_noisy", "thumbnail", "second"):
            if (value := getattr(example, name)) is not None:
                out[name] = value
        return out

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        with self._lock:  # opens each file once; reads are thread-safe
            if shard not in self._readers:
                file, count = self._files[shard], self._counts[shard]
                try:
                    reader = array_record_module.ArrayRecordReader(str(file), **_READER_OPTIONS)
                    records = reader.num_records()
                except (RuntimeError, ValueError) as error:
                    raise DatasetError(
                        f"{file} is not readable: {error}; copy it again."
                    ) from error
                if records != count:
                    raise DatasetError(
                        f"{file} has {records} records instead of {count} ({DESCRIPTION}); it is "
                        "damaged or belongs to another data set: copy it again or prepare it again."
                    )
                self._readers[shard] = reader
            return self._readers[shard]


def open_dataset(path: str | os.PathLike, split: str) -> RecordSource:
    """Returns the examples of `split` of the prepared data set in folder `path`.

    Raises:
        DatasetError: no such data set or split, a shard is missing, or there are no examples.
    """
    return RecordSource(path, split)


def read_hashes(path: str | os.PathLike, split: str) -> Iterator[UInt64[np.ndarray, " n"]] | None:
    """The hashes of the pictures of `split`, shard by shard; see `picture_hashes`.

    Returns:
        One hash per example; 0 without a picture. None: the data set was made without hashes.

    Raises:
        DatasetError: the data set or split does not exist, or, during iteration, the file is
            missing or damaged.
    """
    description = read_description(path)
    shards = _described(path, description, split)["shards"]
    if not all(picture_hashes.DIGEST in shard for shard in shards):
        return None
    parts = [(shard["records"], shard[picture_hashes.DIGEST]) for shard in shards]
    return _checked_hashes(pathlib.Path(path) / picture_hashes.file_name(split), parts)


def _checked_hashes(
    file: pathlib.Path, parts: list[tuple[int, str]]
) -> Iterator[UInt64[np.ndarray, " n"]]:
    try:
        yield from picture_hashes.read(file, parts)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file} cannot be read ({error}); copy it again or prepare the data set again."
        ) from error
