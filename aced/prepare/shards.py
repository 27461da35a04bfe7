"""Shards of ArrayRecord, each written by one worker from the spools."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from aced.data import records
from aced.prepare import progress
from aced.prepare.ahead import ahead
from aced.prepare.blocks import read_spool
from aced.prepare.captions import PrepareError
from aced.prepare.config import PrepareConfig
from aced.prepare.facts import unpack
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
    """Writes one shard, or takes the one that is there where it was made of the same facts."""
    workspace, ((part, shard), group) = Workspace(config.out), grouped
    packed = [facts for _, facts in sorted(group)]
    file = records.shard_name(part, shard, layout[part]["shards"])
    digest = hashlib.sha256(json.dumps(labels[0], sort_keys=True).encode())
    for facts in packed:
        digest.update(hashlib.sha256(facts).digest())
    made_of = digest.hexdigest()
    note = f"shards/{file}.json"
    hashes = hashes_name(file)
    if all(map(workspace.exists, (note, hashes, f"out/{file}"))):
        found = json.loads(workspace.read(note))
        if found["made_of"] == made_of:
            progress.advance("write", len(packed))
            return part, shard, found["shard"]
    with (
        workspace.file(f"out/{file}") as path,
        workspace.file(hashes) as hashes_path,
        hashes_path.open("wb") as hashes_file,
    ):
        images = ahead(lambda facts: _example(facts, config, labels[0]), packed, config.decoders)
        described = records.write_shard(path, _counted(images), hashes_file)
    workspace.write(note, json.dumps({"made_of": made_of, "shard": described}).encode())
    return part, shard, described


def hashes_name(file: str) -> str:
    """Where the workspace has the hashes of a shard's pictures, until those of a split are one."""
    return f"shards/{file}.hashes"


def _counted(examples: Iterable[records.Example]) -> Iterator[records.Example]:
    written = beam.metrics.Metrics.counter("aced", "written")
    for example in examples:
        yield example
        written.inc()
        progress.advance("write")


def _example(packed: bytes, config: PrepareConfig, labels: dict[str, int]) -> records.Example:
    facts = unpack(packed)
    behind = facts.size + facts.thumbnail_size  # where the second picture begins
    size = behind + facts.second_size
    data = read_spool(Workspace(config.out), facts.block, facts.offset, size)
    pictures = data[: facts.size] + data[behind:]
    if hashlib.sha256(pictures).digest() != facts.sha256 or len(data) != size:
        raise PrepareError(
            f"The copy of {facts.key} in {Workspace(config.out).root} is damaged; remove that "
            "folder and start again."
        )
    return records.Example(
        image=data[: facts.size],
        texts=tuple(facts.texts),
        key=facts.key,
        label=None if facts.label is None else labels[facts.label],
        is_noisy=facts.is_noisy,
        extra=facts.extra,
        thumbnail=data[facts.size : behind] or None,
        second=data[behind:] or None,
    )
