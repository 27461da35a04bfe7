"""Statistics of a data set, for `dataset.json` and the page."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam

from aced.prepare.blocks import unpack
from aced.prepare.config import PrepareConfig
from aced.prepare.duplicates import Pair, in_words
from aced.prepare.order import CLEAN, order_of

SAMPLES = 24  # pictures shown
PAIRS = 24  # near-duplicates shown
CAPTIONS = 20  # repeated captions listed

Counter = tuple[str, str]  # name, and split or bin
Sample = tuple[str, str, int, int]  # key, block, offset, size of a picture shown


def counters(parts: beam.PCollection[tuple[str, bytes]]) -> beam.PCollection:
    """Returns (counter, sum) of all counters."""
    return (
        parts
        | "count" >> beam.FlatMapTuple(_counts).with_output_types(tuple[Counter, int])
        | "sums" >> beam.CombinePerKey(sum)
    )


def _counts(part: str, packed: bytes) -> Iterator[tuple[Counter, int]]:
    facts = unpack(packed)
    yield ("images", part), 1
    yield ("captions", part), len(facts.texts)
    if facts.is_noisy is not None:
        yield ("noisy", part), int(facts.is_noisy)
    yield ("image_bytes", part), facts.image_bytes
    if part == CLEAN:  # the same images are counted in "train"
        return
    yield ("stored_anew", ""), int(facts.anew)
    yield ("thumbnails", ""), int(facts.thumbnail_size > 0)
    yield ("second_pictures", ""), int(facts.second_size > 0)
    longer, shorter = max(facts.width, facts.height), min(facts.width, facts.height)
    yield ("longer_side", _power_of_two(longer)), 1
    yield ("shorter_side", _power_of_two(shorter)), 1
    yield ("aspect", _aspect(facts.width, facts.height)), 1
    for kind in facts.kinds:
        yield ("captions_by_kind", kind), 1
    yield ("captions_per_image", _power_of_two(len(facts.texts))), 1
    for text in facts.texts:
        yield ("caption_characters", _power_of_two(len(text))), 1


def _power_of_two(value: int) -> str:
    """The bin of a number of at least 1, such as "64 to 127"."""
    low = 1 << (value.bit_length() - 1)
    return str(low) if low == 1 else f"{low} to {2 * low - 1}"


def _aspect(width: int, height: int) -> str:
    """The nearest of 1:8, 1:4, ..., 4:1, 8:1 on a logarithmic scale."""
    ratio = max(-3, min(3, round(math.log2(width / height))))
    return f"{1 << max(ratio, 0)}:{1 << max(-ratio, 0)}"


def repeated_captions(parts: beam.PCollection[tuple[str, bytes]]) -> beam.PCollection:
    """Returns one list of (-images, caption): the captions that most images share."""
    return (
        parts
        | "captions"
        >> beam.FlatMapTuple(
            lambda _, packed: [(text, 1) for text in unpack(packed).texts]
        ).with_output_types(tuple[str, int])
        | "images of a caption" >> beam.CombinePerKey(sum)
        | "repeated" >> beam.Filter(lambda counted: counted[1] > 1)
        | "most first" >> beam.MapTuple(lambda text, count: (-count, text))
        | "most repeated" >> beam.combiners.Top.Smallest(CAPTIONS)
    )


def samples(config: PrepareConfig, parts: beam.PCollection[tuple[str, bytes]]) -> beam.PCollection:
    """Returns one list of (order, picture, captions): the first images of the data set."""
    return (
        parts
        | "samples" >> beam.Map(_sample, config)
        | "first samples" >> beam.combiners.Top.Smallest(SAMPLES)
    )


def _sample(image: tuple[str, bytes], config: PrepareConfig) -> tuple[Any, Sample, list[str]]:
    facts = unpack(image[1])
    picture = facts.key, facts.block, facts.offset, facts.size
    return order_of(facts, config.seed), picture, facts.texts[:3]


def least_alike(images: beam.PCollection[bytes], pairs: beam.PCollection[Pair]) -> beam.PCollection:
    """Returns one list of the least similar near-duplicates, the least similar first.

    Each is (dropped image, earlier image, their distance in words); an image is its picture and
    its captions.
    """
    chosen = beam.pvalue.AsSingleton(
        pairs
        | "least alike" >> beam.combiners.Top.Of(PAIRS, key=lambda pair: (pair[2][1:], pair[0]))
    )
    captions = images | "captions of pairs" >> beam.FlatMap(_captions_of, chosen)
    return (
        images.pipeline
        | "pairs to show" >> beam.Create([None])
        | "with captions" >> beam.Map(_with_captions, chosen, beam.pvalue.AsDict(captions))
    )


def _captions_of(packed: bytes, pairs: list[Pair]) -> Iterator[tuple[int, list[str]]]:
    facts = unpack(packed)
    if any(facts.line in (dropped[0], earlier[0]) for dropped, earlier, _ in pairs):
        yield facts.line, facts.texts[:3]


def _with_captions(_: None, pairs: list[Pair], captions: dict[int, list[str]]) -> list[Any]:
    return [
        (*((mark[1:], captions[mark[0]]) for mark in marks), in_words(apart))
        for *marks, apart in pairs
    ]


def rejected_counts(rejected: beam.PCollection) -> beam.PCollection:
    """Returns (reason, number of rejected entries)."""
    return (
        rejected
        | "reasons" >> beam.Map(lambda entry: entry[1]).with_output_types(str)
        | "count reasons" >> beam.combiners.Count.PerElement()
    )


def first_rejected(rejected: beam.PCollection) -> beam.PCollection:
    """Returns (reason, JSON object of rejected.jsonl) of the first entry with each reason."""
    return (
        rejected
        | "by reason" >> beam.Map(lambda entry: (entry[1], (entry[0], entry[2])))
        | "first of a reason" >> beam.CombinePerKey(min)
        | "its object" >> beam.MapTuple(lambda reason, first: (reason, first[1]))
    )


def as_statistics(
    counted: Iterable[tuple[Counter, int]], rejected: dict[str, int]
) -> dict[str, Any]:
    """The statistics of `dataset.json`; "noisy" is left out if it is unknown."""
    by_name: dict[str, dict[str, int]] = {}
    for (name, split_or_bin), count in sorted(counted):
        by_name.setdefault(name, {})[split_or_bin] = count
    split_counters = ("images", "captions", "noisy", "image_bytes")
    histograms = ("longer_side", "shorter_side", "aspect", "caption_characters")
    return {
        **{
            name: sum(count for part, count in by_name[name].items() if part != CLEAN)
            for name in ("images", "captions")
        },
        "captions_by_kind": by_name["captions_by_kind"],
        "stored_anew": by_name["stored_anew"][""],
        "thumbnails": by_name["thumbnails"][""],
        "second_pictures": by_name["second_pictures"][""],
        "rejected": dict(sorted(rejected.items())),
        "splits": {
            part: {
                name: by_name[name][part]
                for name in split_counters
                if part in by_name.get(name, {})
            }
            for part in by_name["images"]
        },
        "histograms": {
            name: dict(sorted(by_name[name].items(), key=_place_of_bin))
            for name in (*histograms, "captions_per_image")
        },
    }


def _place_of_bin(item: tuple[str, int]) -> float:
    """Sort key of a bin: 64 for "64 to 127", 0.5 for "1:2"."""
    first, _, second = item[0].split(" ")[0].partition(":")
    return int(first) / int(second or 1)
