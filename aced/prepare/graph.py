"""The preparation as one Beam pipeline."""

from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from aced.files import own_files
from aced.prepare import inputs, order, shards, statistics
from aced.prepare.config import PrepareConfig
from aced.prepare.duplicates import drop_duplicates, drop_near_duplicates
from aced.prepare.workspace import Workspace

_PART_BITS = 18  # a sorted part of rejected.jsonl covers 2^18 lines of the input


def build(
    pipeline: beam.Pipeline, config: PrepareConfig, blocks: list[tuple[int, int]], digest: str
) -> None:
    """Adds all steps to `pipeline`, which write the parts of the data set to the workspace.

    Args:
        pipeline: an empty pipeline.
        config: the settings.
        blocks: blocks of records, see `inputs.from_records`; empty for a table.
        digest: of the settings and the input, for the names of blocks.
    """
    if config.captions:
        examined, rejected = inputs.from_table(config, pipeline, digest)
    else:
        examined, rejected = inputs.from_records(config, pipeline, blocks, digest)
    kept, equal = drop_duplicates(config, examined)
    everything, pairs = [rejected, equal], pipeline | "no pairs" >> beam.Create([[]])
    if config.near_duplicates >= 0:
        different = kept
        kept, near, pairs = drop_near_duplicates(config, different)
        pairs = statistics.least_alike(different, pairs)
        everything.append(near)
    rejected = everything | "rejected" >> beam.Flatten()
    counts = statistics.rejected_counts(rejected)

    parts = order.split(config, kept, counts, statistics.first_rejected(rejected))
    labels = order.number_labels(config, kept)
    written_parts = order.with_clean(config, parts)
    ranked, layout = order.to_shards(config, written_parts)
    written = shards.write_shards(config, ranked, layout, labels)
    listed = (
        rejected
        | "key by part" >> beam.Map(lambda entry: (entry[0] >> _PART_BITS, entry))
        | "group by part" >> beam.GroupByKey()
        | "list rejected" >> beam.Map(_list, config)
    )
    _ = (
        pipeline
        | "summary" >> beam.Create([None])
        | "summarise"
        >> beam.Map(
            _summarise,
            config,
            beam.pvalue.AsList(statistics.counters(written_parts)),
            beam.pvalue.AsDict(counts),
            beam.pvalue.AsList(written),
            beam.pvalue.AsList(listed),
            beam.pvalue.AsSingleton(labels),
            beam.pvalue.AsSingleton(statistics.repeated_captions(parts)),
            beam.pvalue.AsSingleton(statistics.samples(config, parts)),
            beam.pvalue.AsSingleton(pairs),
        )
    )


def part_name(part: int) -> str:
    """Name of the file with a sorted part of rejected.jsonl."""
    return f"parts/{part:08d}.jsonl"


def _list(grouped: tuple[int, Iterable[tuple[int, str, str]]], config: PrepareConfig) -> int:
    """Writes one sorted part of rejected.jsonl; returns its number."""
    part, entries = grouped
    text = "".join(f"{entry}\n" for _, _, entry in sorted(map(tuple, entries)))
    Workspace(config.out).write(part_name(part), own_files.seal(text.encode()))
    return part


def _summarise(
    _: None,
    config: PrepareConfig,
    counted: list[tuple[statistics.Counter, int]],
    rejected: dict[str, int],
    written: list[tuple[str, int, dict[str, Any]]],
    listed: list[int],
    labels: tuple[dict[str, int], list[str] | None],
    captions: list[tuple[int, str]],
    samples: list[Any],
    pairs: list[Any],
) -> None:
    """Writes summary.json, the input of `dataset.json` and the page."""
    by_split: dict[str, list[dict[str, Any]]] = {}
    for part, _, shard in sorted(written, key=lambda item: item[:2]):
        by_split.setdefault(part, []).append(shard)
    summary = {
        "statistics": statistics.as_statistics(counted, rejected),
        "shards": by_split,
        "class_names": labels[1],
        "parts": sorted(listed),
        "captions": [(-count, text) for count, text in captions],
        "samples": [(picture, texts) for _, picture, texts in samples],
        "pairs": pairs,
    }
    Workspace(config.out).write_json("summary.json", summary)
