"""Writes shards of ArrayRecord from the spools, one worker per shard."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
from absl import logging

from aced.data import records
from aced.files import storage
from aced.prepare import progress
from aced.prepare.blocks import ahead, read_pictures, unpack
from aced.prepare.captions import PrepareError
from aced.prepare.config import PrepareConfig
from aced.prepare.workspace import Workspace


def write_shards(
    config: PrepareConfig,
    ranked: beam.PCollection,
    layout: beam.PCollection,
    labels: beam.PCollection,
) -> beam.PCollection:
    """Returns (split, shard, its part of `dataset.json`) of each shard."""
    return (
        ranked
        | "group by shard" >> beam.GroupByKey()
        | "write"
        >> beam.Map(
            _write, config, beam.pvalue.AsSingleton(layout), beam.pvalue.AsSingleton(labels)
        )
    )


def _write(
    grouped: tuple[tuple[str, int], Iterable[tuple[int, bytes]]],
    config: PrepareConfig,
    layout: dict[str, Any],
    labels: tuple[dict[str, int], list[str] | None],
) -> tuple[str, int, dict[str, Any]]:
    """Writes one shard, unless an earlier run has written it from the same facts."""
    workspace, ((part, shard), group) = Workspace(config.out), grouped
    packed = [facts for _, facts in sorted(group)]
    file = records.shard_name(part, shard, layout[part]["shards"])
    digest = hashlib.sha256(json.dumps(labels[0], sort_keys=True).encode())
    for facts in packed:
        digest.update(hashlib.sha256(facts).digest())
    made_of = digest.hexdigest()
    note = f"shards/{file}.json"
    hashes = hashes_name(file)
    described = _from_earlier_run(workspace, note, f"out/{file}", made_of)
    if described is not None and workspace.exists(hashes):
        progress.advance("write", len(packed))
        return part, shard, described
    with (
        workspace.file(f"out/{file}") as path,
        workspace.file(hashes) as hashes_path,
        hashes_path.open("wb") as hashes_file,
    ):
        images = ahead(lambda facts: _example(facts, config, labels[0]), packed, config.decoders)
        described = records.write_shard(path, _counted(images), hashes_file)
    workspace.write_json(note, {"made_of": made_of, "shard": described})
    return part, shard, described


def hashes_name(file: str) -> str:
    """Name of the workspace's file with the hashes of a shard's pictures."""
    return f"shards/{file}.hashes"


def _from_earlier_run(
    workspace: Workspace, note: str, file: str, made_of: str
) -> dict[str, Any] | None:
    """The description in `note` of the shard `file`, or None if it must be written again."""
    if not (workspace.exists(note) and workspace.exists(file)):
        return None
    try:
        content = workspace.read_json(note)
    except PrepareError as error:
        logging.warning("The shard is made again: %s", error)
        return None
    if content["made_of"] != made_of:
        return None
    with storage.open_file(workspace.path(file)) as shard:
        digest = hashlib.file_digest(shard, "sha256").hexdigest()
    if digest == content["shard"]["sha256"]:
        return content["shard"]
    logging.warning("%s is made again: its checksum is wrong.", workspace.path(file))
    return None


def _counted(examples: Iterable[records.Example]) -> Iterator[records.Example]:
    written = beam.metrics.Metrics.counter("aced", "written")
    for example in examples:
        yield example
        written.inc()
        progress.advance("write")


def _example(packed: bytes, config: PrepareConfig, labels: dict[str, int]) -> records.Example:
    facts = unpack(packed)
    image, thumbnail, second = read_pictures(Workspace(config.out), facts)
    return records.Example(
        image=image,
        texts=tuple(facts.texts),
        kinds=tuple(facts.kinds),
        key=facts.key,
        label=None if facts.label is None else labels[facts.label],
        is_noisy=facts.is_noisy,
        extra=facts.extra,
        thumbnail=thumbnail or None,
        second=second or None,
        answers=tuple(facts.answers),
    )
