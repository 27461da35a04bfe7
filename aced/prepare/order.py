"""Split, shard and position of each image in the data set.

Images are ordered by sha256("SEED:KEY"), and the first `val` eligible ones are held out. The order
depends on an image's key and the seed only, so adding or removing images hardly changes it. For a
distributed sort the hash's first bits choose a bucket: the counts of the buckets give their first
ranks, and each bucket is sorted alone.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from aced.prepare import progress
from aced.prepare.blocks import Facts, unpack
from aced.prepare.config import PrepareConfig
from aced.prepare.workspace import Workspace

CLEAN = "clean"  # split of the clean images, which are in "train" as well
SHARD_BYTES = 1 << 28  # of images per shard, unless the number of shards is set
_BUCKET_BITS = 12  # a worker holds the facts of one in 4,096 images while it sorts

Order = tuple[bytes, int]  # hash, and line, since images in several tars may share a key


def split(
    config: PrepareConfig,
    kept: beam.PCollection[bytes],
    counts: beam.PCollection,
    examples: beam.PCollection,
) -> beam.PCollection[tuple[str, bytes]]:
    """Returns the split of each image, with its packed facts.

    `counts` of rejected images and lines by reason, and `examples` of them, are for errors.
    """
    totals = (
        kept
        | "countable" >> beam.Map(lambda packed: (1, int(_may_be_held_out(unpack(packed), config))))
        | "totals" >> beam.CombineGlobally(_sums)
    )
    last = (
        kept.pipeline
        | "bound of val" >> beam.Create([None])
        | "find the bound"
        >> beam.Map(
            _bound,
            config,
            beam.pvalue.AsSingleton(totals),
            beam.pvalue.AsSingleton(_smallest(config, kept)),
            beam.pvalue.AsDict(counts),
            beam.pvalue.AsDict(examples),
        )
    )
    return kept | "split" >> beam.Map(
        _split, config, beam.pvalue.AsSingleton(last)
    ).with_output_types(tuple[str, bytes])


def order_of(facts: Facts, seed: int) -> Order:
    """The sort key of an image."""
    return hashlib.sha256(f"{seed}:{facts.key}".encode()).digest(), facts.line


def _may_be_held_out(facts: Facts, config: PrepareConfig) -> bool:
    is_bad = facts.is_noisy or (config.clean_column and not facts.is_clean)
    return not (config.val_clean and is_bad)


def _sums(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    total_first = total_second = 0
    for first, second in pairs:
        total_first, total_second = total_first + first, total_second + second
    return total_first, total_second


def _smallest(config: PrepareConfig, kept: beam.PCollection[bytes]) -> beam.PCollection:
    """The first `config.val` eligible images, as one list."""
    if not config.val:
        return kept.pipeline | "no val" >> beam.Create([[]])
    return (
        kept
        | "order" >> beam.FlatMap(_order_of_val, config)
        | "first of them" >> beam.combiners.Top.Smallest(config.val)
    )


def _order_of_val(packed: bytes, config: PrepareConfig) -> Iterator[Order]:
    if _may_be_held_out(facts := unpack(packed), config):
        yield order_of(facts, config.seed)


def _bound(
    _: None,
    config: PrepareConfig,
    totals: tuple[int, int],
    smallest: list[Order],
    counts: dict[str, int],
    examples: dict[str, str],
) -> Order:
    """The last image that is held out.

    Raises:
        PrepareError: no image is left, or too few to hold out `val`.
    """
    total, eligible = totals
    refuse = Workspace(config.out).refuse
    if not total:
        raise refuse(_nothing_left(config, counts, examples))
    if config.val > eligible or config.val == total:
        raise refuse(
            f"--val={config.val} is too large: {eligible} of {total} examples can be held out, and "
            "at least one must remain to train on. Lower it."
        )
    return max(smallest, default=(b"", -1))


def _nothing_left(config: PrepareConfig, counts: dict[str, int], examples: dict[str, str]) -> str:
    """The reasons with an example of each, since `rejected.jsonl` will not be written."""
    source = config.captions or config.tars or config.parquet
    if not counts:
        return f"No image is left: {source} has no {config.place}s."
    text = f"No image is left of {source}. Left out:"
    for reason, count in sorted(counts.items()):
        text += f"\n  {reason} {count}, the first: {examples[reason]:.1000}"
    if counts.keys() & {"missing_file", "outside_folder"}:
        text += (
            f"\nAre --images and the paths in --captions (column {config.columns.image!r}) "
            "relative to the same folder?"
        )
    return text


def _split(packed: bytes, config: PrepareConfig, last: Order) -> tuple[str, bytes]:
    facts = unpack(packed)
    is_val = _may_be_held_out(facts, config) and order_of(facts, config.seed) <= tuple(last)
    return ("val" if is_val else "train"), packed


def with_clean(
    config: PrepareConfig, parts: beam.PCollection[tuple[str, bytes]]
) -> beam.PCollection[tuple[str, bytes]]:
    """Returns `parts`, with the clean training images in the split `CLEAN` as well."""
    if not config.clean_column:
        return parts
    return parts | "add the clean ones" >> beam.FlatMap(_and_clean).with_output_types(
        tuple[str, bytes]
    )


def _and_clean(image: tuple[str, bytes]) -> Iterator[tuple[str, bytes]]:
    part, packed = image
    yield image
    if part == "train" and unpack(packed).is_clean:
        yield CLEAN, packed


def to_shards(
    config: PrepareConfig, parts: beam.PCollection[tuple[str, bytes]]
) -> tuple[beam.PCollection, beam.PCollection]:
    """Returns ((split, shard), (rank in the split, packed facts)) of each image, and the layout.

    The layout is one dict by split: images, shards, and the first rank of each bucket.
    """
    buckets = parts | "bucket" >> beam.Map(_bucket, config).with_output_types(
        tuple[tuple[str, int], bytes]
    )
    sums = (
        buckets
        | "sizes" >> beam.MapTuple(lambda bucket, packed: (bucket, (1, unpack(packed).image_bytes)))
        | "sizes of buckets" >> beam.CombinePerKey(_sums)
    )
    layout = (
        parts.pipeline
        | "layout" >> beam.Create([None])
        | "lay out" >> beam.Map(_layout, config, beam.pvalue.AsDict(sums))
    )
    ranked = (
        buckets
        | "group by bucket" >> beam.GroupByKey()
        | "rank" >> beam.FlatMap(_rank, config, beam.pvalue.AsSingleton(layout))
    )
    return ranked, layout


def _bucket(image: tuple[str, bytes], config: PrepareConfig) -> tuple[tuple[str, int], bytes]:
    part, packed = image
    digest, _ = order_of(unpack(packed), config.seed)
    return (part, int.from_bytes(digest[:2]) >> (16 - _BUCKET_BITS)), packed


def _layout(
    _: None, config: PrepareConfig, sums: dict[tuple[str, int], tuple[int, int]]
) -> dict[str, Any]:
    if config.clean_column and not any(part == CLEAN for part, _ in sums):
        column, value = config.columns.clean
        raise Workspace(config.out).refuse(
            f"No training picture is clean by --clean_column: none that is not held out has "
            f"{value!r} in column {column!r} of all its lines in {config.captions}. Correct the "
            "value, or lower --val."
        )
    layout: dict[str, Any] = {}
    for (part, bucket), (count, size) in sorted(sums.items()):
        sizes = layout.setdefault(part, {"images": 0, "bytes": 0, "begin": {}})
        sizes["begin"][bucket] = sizes["images"]
        sizes["images"] += count
        sizes["bytes"] += size
    for sizes in layout.values():
        sizes["shards"] = min(sizes["images"], config.shards or -(-sizes["bytes"] // SHARD_BYTES))
    return layout


def _rank(
    grouped: tuple[tuple[str, int], Iterable[bytes]],
    config: PrepareConfig,
    layout: dict[str, Any],
) -> Iterator[tuple[tuple[str, int], tuple[int, bytes]]]:
    (part, number), group = grouped
    images, shards = layout[part]["images"], layout[part]["shards"]
    ordered = sorted(group, key=lambda packed: order_of(unpack(packed), config.seed))
    progress.expect("write", len(ordered))
    for rank, packed in enumerate(ordered, layout[part]["begin"][number]):
        # Shard s begins at rank s * images // shards, so that counts are nearly equal.
        yield (part, ((rank + 1) * shards - 1) // images), (rank, packed)


def number_labels(config: PrepareConfig, kept: beam.PCollection[bytes]) -> beam.PCollection:
    """Returns one pair: the number of each label, and the class names unless labels are numbers."""
    labels = (
        kept
        | "labels" >> beam.Map(lambda packed: unpack(packed).label)
        | "known labels" >> beam.Filter(lambda label: label is not None).with_output_types(str)
        | "different labels" >> beam.Distinct()
    )
    return (
        kept.pipeline
        | "numbers of labels" >> beam.Create([None])
        | "number labels" >> beam.Map(_number, config, beam.pvalue.AsIter(labels))
    )


def _number(
    _: None, config: PrepareConfig, labels: Iterable[str]
) -> tuple[dict[str, int], list[str] | None]:
    names = sorted(labels)
    try:
        numbers, are_names = {label: int(label) for label in names}, False
    except ValueError:
        numbers, are_names = {label: i for i, label in enumerate(names)}, True
    if wrong := [label for label, number in numbers.items() if not 0 <= number < 1 << 31]:
        raise Workspace(config.out).refuse(f"Label {wrong[0]} is negative or does not fit 32 bits.")
    return numbers, names if are_names else None
