"""The inputs of the pipeline: a table or records, checked in blocks of images."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from aced.config import ConfigError
from aced.data import records
from aced.data.sources.parquet import ParquetConfig, ParquetSource
from aced.data.sources.tars import TarSource, WebDatasetConfig
from aced.files import storage
from aced.prepare import progress
from aced.prepare.blocks import (
    BLOCK,
    REJECTED,
    Fetched,
    block_name,
    examine,
    pack,
    tagged,
    unpack_captions,
)
from aced.prepare.captions import (
    CaptionedImage,
    PrepareError,
    RejectedError,
    Rejects,
    from_record,
    located,
    merge_lines,
    read_captions,
)
from aced.prepare.config import PrepareConfig
from aced.prepare.images import read_file
from aced.prepare.workspace import Workspace

_WINDOW_MIB = 64  # of parquet's row groups in memory, at least two: blocks are read in order


def from_table(
    config: PrepareConfig, pipeline: beam.Pipeline, digest: str
) -> tuple[beam.PCollection[bytes], beam.PCollection]:
    """Returns the packed facts of the table's images that decode, and the rejected entries.

    One worker reads the table, because CSV can't be split into lines from its middle. A block has
    the images of adjacent lines, whose files are likely to be neighbours too. `digest` is that of
    the settings and the input.
    """
    lines = (
        pipeline
        | "table" >> beam.Create([config.captions])
        | "read the table"
        >> beam.FlatMap(_lines, config)
        .with_output_types(tuple[str, bytes])
        .with_outputs(REJECTED, main="images")
    )
    images = (
        lines.images
        | "group by image" >> beam.GroupByKey()
        | "merge lines"
        >> beam.FlatMapTuple(_merge)
        .with_output_types(tuple[int, bytes])
        .with_outputs(REJECTED, main="images")
    )
    examined = (
        images.images
        | "group by block" >> beam.GroupByKey()
        | "examine"
        >> beam.FlatMap(_examine_lines, config, digest)
        .with_output_types(bytes)
        .with_outputs(REJECTED, main="facts")
    )
    rejected = (lines[REJECTED], images[REJECTED], examined[REJECTED])
    return examined.facts, rejected | "rejected by the input" >> beam.Flatten()


def _lines(path: str, config: PrepareConfig) -> Iterator[Any]:
    rejects = Rejects(config.place)
    try:
        for image in read_captions(path, config.columns, rejects):
            # Lines with the same pictures become one example.
            key = str(image.line) if config.separate else f"{image.key}\0{image.second or ''}"
            yield key, pack(image)
            yield from tagged(rejects)
            progress.advance("read")
    except PrepareError as error:
        raise Workspace(config.out).refuse(str(error)) from error
    yield from tagged(rejects)


def _merge(_: str, group: Iterable[bytes]) -> Iterator[Any]:
    rejects = Rejects()
    images = sorted(map(unpack_captions, group), key=lambda image: image.line)
    image = merge_lines(images, rejects)
    progress.expect("examine", 1)
    yield image.line // BLOCK, pack(image)
    yield from tagged(rejects)


def _examine_lines(
    grouped: tuple[int, Iterable[bytes]], config: PrepareConfig, digest: str
) -> Iterator[Any]:
    number, group = grouped

    def fetch(image: CaptionedImage) -> Fetched:
        with located(image):
            data = read_file(image.key, config.images, config.follow_links)
        if image.second is None:
            return image, data, None
        with located(image, f"the second picture, {image.second}: "):
            return image, data, read_file(image.second, config.images, config.follow_links)

    images = sorted(map(unpack_captions, group), key=lambda image: image.line)
    yield from examine(config, block_name(number, digest), images, fetch)


def from_records(
    config: PrepareConfig, pipeline: beam.Pipeline, blocks: list[tuple[int, int]], digest: str
) -> tuple[beam.PCollection[bytes], beam.PCollection]:
    """Returns the packed facts of the records that decode, and the rejected entries.

    `config` has `tars` or `parquet`, the pipeline is empty, `blocks` is from `blocks_of`, and
    `digest` is that of the settings and the input.
    """
    examined = (
        pipeline
        | "blocks" >> beam.Create([(i, *block) for i, block in enumerate(blocks)])
        | "expect" >> beam.Map(_expect)
        | "spread" >> beam.Reshuffle()
        | "examine"
        >> beam.FlatMap(_examine_records, config, digest)
        .with_output_types(bytes)
        .with_outputs(REJECTED, main="facts")
    )
    return examined.facts, examined[REJECTED]


@functools.lru_cache(maxsize=1)
def open_records(config: PrepareConfig) -> records.Source:
    """The tars or parquet files of `config`, with random access; kept open in each worker.

    Raises:
        PrepareError: the files are missing, can't be read, or lack a column.
    """
    captions = {"captions": config.caption_columns, "kinds": config.caption_kinds}
    try:
        if config.tars:
            return TarSource(WebDatasetConfig(config.tars, label=config.label_column, **captions))
        return ParquetSource(
            ParquetConfig(
                config.parquet,
                config.split,
                image=config.image_column,
                label=config.label_column,
                second=config.second_column,
                answers=config.answers_column,
                window_mib=_WINDOW_MIB,
                **captions,
            )
        )
    except (ConfigError, records.DatasetError, storage.StorageError) as error:
        raise PrepareError(
            f"{error} (Here these settings are --tars, --parquet, --split, --image_column, "
            "--caption_column, --more_captions, --second_column and --label_column.)"
        ) from error


def blocks_of(source: records.Source) -> list[tuple[int, int]]:
    """Begin and end of the blocks of `source`; in parquet the row groups, which are read whole."""
    if isinstance(source, ParquetSource):
        ends = list(itertools.accumulate(source.groups))
    else:
        ends = [*range(BLOCK, len(source), BLOCK), len(source)] if len(source) else []
    return list(zip([0, *ends], ends, strict=False))


def _expect(numbers: tuple[int, int, int]) -> tuple[int, int, int]:
    _, begin, end = numbers
    progress.expect("examine", end - begin)
    return numbers


def _examine_records(
    numbers: tuple[int, int, int], config: PrepareConfig, digest: str
) -> Iterator[Any]:
    number, begin, end = numbers
    source = open_records(config)

    def fetch(index: int) -> Fetched:
        where = {"line": index}
        try:
            record = source[index]
            image = from_record(record, index, config.columns.lower)
        except (records.RecordError, RejectedError) as error:
            raise RejectedError("unreadable_record", str(error.args[-1]), where) from error
        if not image.texts:
            raise RejectedError("empty_caption", "", where | {"image": image.key})
        return image, record["image"], record.get("second")

    yield from examine(config, block_name(number, digest), range(begin, end), fetch)
