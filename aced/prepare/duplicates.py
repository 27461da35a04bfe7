"""Drops duplicates and near-duplicates of earlier images.

Images with equal stored bytes become one, the first in the input, with the captions of all. In
examples with two pictures both must be equal. With `separate` no examples are merged.

An image is a near-duplicate if any earlier image of the input, dropped or not, is a copy at another
size or quality: their perceptual hashes differ in at most T bits, their shapes are equal up to
whole pixels, and their miniatures differ little. The rule depends on pairs only, not on the order
of the work.

By the pigeonhole principle not all pairs must be compared: if the 64 bits are cut into T + 1 bands,
two hashes that differ in at most T bits are equal in at least one band (M. Norouzi et al., "Fast
Search in Hamming Space with Multi-Index Hashing", CVPR 2012, proposition 1, with a radius of 0 per
band). Each band is a key, and images that share one are compared. The result is exact, and takes
(T + 1) N^2 / 2^(64 / (T + 1)) / 2 comparisons for N random hashes; 3 * 10^11 for T = 3, N = 10^8.
Images with equal hash, miniature and size are one entry: a million blank pictures cost as much as
one. Most copies are found in the first pair that is verified; n different pictures with one hash,
such as plain colours, take n^2 / 2.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from jaxtyping import Bool, Int64, Shaped

from aced.prepare import miniatures
from aced.prepare.blocks import REJECTED, Facts, pack, tagged, unpack
from aced.prepare.captions import RejectedError, Rejects, merge
from aced.prepare.config import PrepareConfig

DROPPED, PAIRS = "dropped", "pairs"
_CELLS = 1 << 21  # cells of the comparison in memory at a time: 50 MiB
SIGHT = np.dtype(  # what two images are compared by
    [
        ("look", np.uint64),
        ("miniature", np.uint8, miniatures.SIZE),
        ("width", np.int64),
        ("height", np.int64),
    ]
)

Mark = tuple[int, str, str, int, int]  # line, key, block, offset, size of an image
# Distance of two images: bits of their hashes, mean and largest distance of their colours.
Apart = tuple[int, float, float]
Earlier = tuple[Mark, Apart]  # an earlier copy
Pair = tuple[Mark, Mark, Apart]  # a dropped image and the earlier copy


def drop_duplicates(
    config: PrepareConfig, examined: beam.PCollection[bytes]
) -> tuple[beam.PCollection[bytes], beam.PCollection]:
    """Returns the packed facts of the images that are kept, and the rejected entries."""
    merged = (
        examined
        | "key by content" >> beam.Map(_by_content, config).with_output_types(tuple[bytes, bytes])
        | "group by content" >> beam.GroupByKey()
        | "merge equal ones"
        >> beam.FlatMap(_merge_equal, config)
        .with_output_types(bytes)
        .with_outputs(REJECTED, main="kept")
    )
    return merged.kept, merged[REJECTED]


def _by_content(packed: bytes, config: PrepareConfig) -> tuple[bytes, bytes]:
    facts = unpack(packed)
    # The sizes separate the two pictures.
    key = f"{facts.size} {facts.second_size} {facts.line if config.separate else ''} "
    return key.encode() + facts.sha256, packed


def _merge_equal(grouped: tuple[bytes, Iterable[bytes]], config: PrepareConfig) -> Iterator[Any]:
    _, group = grouped
    first, *others = sorted(map(unpack, group), key=lambda facts: facts.line)
    rejects = Rejects(config.place)
    for other in others:
        error = RejectedError("duplicate_image", f"the same picture as {first.key}")
        rejects.add(error, image=other.key, line=other.line)
        merge(first, other, rejects)
    yield pack(first)
    yield from tagged(rejects)


def drop_near_duplicates(
    config: PrepareConfig, images: beam.PCollection[bytes]
) -> tuple[beam.PCollection[bytes], beam.PCollection, beam.PCollection]:
    """Returns the packed facts of the kept images, the rejected entries, and each `Pair`."""
    earlier = _earlier(images, config.near_duplicates)
    divided = (
        (images | "key by line" >> beam.Map(_by_line).with_output_types(tuple[int, bytes]), earlier)
        | "join with earlier ones" >> beam.CoGroupByKey()
        | "divide"
        >> beam.FlatMap(_divide, config)
        .with_output_types(tuple[int, bytes])
        .with_outputs(REJECTED, DROPPED, PAIRS, main="kept")
    )
    rejected = divided[REJECTED]
    if not config.near_duplicate_captions:
        return divided.kept | "facts" >> beam.Values(), rejected, divided[PAIRS]
    # Each worker holds one entry per dropped image.
    pointers = earlier | "pointers" >> beam.MapTuple(lambda line, copy: (line, copy[0][0]))
    moved = divided[DROPPED] | "to the first" >> beam.Map(
        lambda image, earlier: (_first(image[0], earlier), image[1]), beam.pvalue.AsDict(pointers)
    ).with_output_types(tuple[int, bytes])
    merged = (
        (divided.kept, moved)
        | "join with captions" >> beam.CoGroupByKey()
        | "merge captions"
        >> beam.FlatMap(_merge_captions, config)
        .with_output_types(bytes)
        .with_outputs(REJECTED, main="kept")
    )
    rejected = (rejected, merged[REJECTED]) | "all near-duplicates" >> beam.Flatten()
    return merged.kept, rejected, divided[PAIRS]


def _earlier(images: beam.PCollection[bytes], limit: int) -> beam.PCollection:
    """(line, `Earlier`) of each image that is a copy of an earlier one: the earliest image with an
    equal `SIGHT`, or else the earliest copy.
    """
    seen = (
        images
        | "key by sight" >> beam.Map(_by_sight)
        | "group by sight" >> beam.GroupByKey()
        | "equal sights" >> beam.FlatMapTuple(_equal).with_outputs("equal", main="first")
    )
    close = (
        seen.first
        | "bands" >> beam.FlatMap(_bands, limit)
        | "group by band" >> beam.GroupByKey()
        | "compare" >> beam.FlatMap(_compare, limit)
        | "earliest" >> beam.CombinePerKey(min)
    )
    return (seen.equal, close) | "equal and close" >> beam.Flatten()


def _by_line(packed: bytes) -> tuple[int, bytes]:
    return unpack(packed).line, packed


def _mark(facts: Facts) -> Mark:
    return facts.line, facts.key, facts.block, facts.offset, facts.size


def _by_sight(packed: bytes) -> tuple[bytes, Mark]:
    facts = unpack(packed)
    size = np.array([facts.width, facts.height], np.int64)
    return facts.look + facts.miniature + size.tobytes(), _mark(facts)


def _equal(sight: bytes, marks: Iterable[Mark]) -> Iterator[Any]:
    first, *others = sorted(marks)
    yield sight, first
    for mark in others:
        yield beam.pvalue.TaggedOutput("equal", (mark[0], (first, (0, 0.0, 0.0))))


def _bands(image: tuple[bytes, Mark], limit: int) -> Iterator[tuple[bytes, tuple[bytes, Mark]]]:
    sight, _ = image
    bits = np.unpackbits(np.frombuffer(sight, np.uint8, SIGHT["look"].itemsize))
    for number, band in enumerate(np.array_split(bits, limit + 1)):
        yield bytes([number]) + np.packbits(band).tobytes(), image


def _compare(
    grouped: tuple[bytes, Iterable[tuple[bytes, Mark]]], limit: int
) -> Iterator[tuple[int, Earlier]]:
    """(line, earliest copy) of the images that share a band."""
    images = sorted(grouped[1], key=lambda image: image[1])
    sights = np.frombuffer(b"".join(sight for sight, _ in images), SIGHT)
    firsts = earliest(sights, limit)
    copies = np.flatnonzero(firsts >= 0)
    for i, *apart in zip(copies, *distances(sights[copies], sights[firsts[copies]]), strict=True):
        bits, mean, largest = apart
        yield images[i][1][0], (images[firsts[i]][1], (int(bits), float(mean), float(largest)))


def earliest(sights: Shaped[np.ndarray, " n"], limit: int) -> Int64[np.ndarray, " n"]:
    """The index of the first copy before each of n `SIGHT`s, or -1."""
    firsts, looks = np.full(len(sights), -1), sights["look"]
    rows = max(1, _CELLS // max(1, len(sights)))
    for start in range(0, len(sights), rows):
        end = min(start + rows, len(sights))
        before = np.arange(end)[None, :] < np.arange(start, end)[:, None]
        close = before & (np.bitwise_count(looks[start:end, None] ^ looks[None, :end]) <= limit)
        row, candidates = np.nonzero(close)  # sorted by row, then by candidate
        waiting, turn = np.unique(row, return_index=True)
        end_of_row = np.append(turn[1:], len(row))
        waiting += start
        while len(waiting):  # compares one candidate of each row at a time
            first, second = sights[waiting], sights[candidates[turn]]
            same = are_shaped_alike(first, second)
            same &= miniatures.are_copies(first["miniature"], second["miniature"])
            firsts[waiting[same]] = candidates[turn[same]]
            remaining = ~same & (turn + 1 < end_of_row)
            waiting, turn = waiting[remaining], turn[remaining] + 1
            end_of_row = end_of_row[remaining]
    return firsts


def distances(
    some: Shaped[np.ndarray, " n"], others: Shaped[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bits, mean and largest distance of colours between n pairs of `SIGHT`s."""
    bits = np.bitwise_count(some["look"] ^ others["look"])
    return bits, *miniatures.differences(some["miniature"], others["miniature"])


def are_shaped_alike(
    some: Shaped[np.ndarray, " n"], others: Shaped[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether each of n pairs of `SIGHT`s has one aspect ratio, up to a pixel of either side."""
    (w, h), (w2, h2) = ((sights["width"], sights["height"]) for sights in (some, others))
    return np.abs(w * h2 - h * w2) <= w + h + w2 + h2


def _divide(
    joined: tuple[int, tuple[Iterable[bytes], Iterable[Earlier]]], config: PrepareConfig
) -> Iterator[Any]:
    line, (images, earlier) = joined
    (packed,), earlier = images, list(earlier)
    if not earlier:
        yield line, packed
        return
    ((other, apart),) = earlier
    facts = unpack(packed)
    rejects = Rejects(config.place)
    error = RejectedError("near_duplicate", f"{in_words(apart)} from {other[1]}")
    rejects.add(error, image=facts.key, line=line)
    yield from tagged(rejects)
    yield beam.pvalue.TaggedOutput(PAIRS, (_mark(facts), other, apart))
    yield beam.pvalue.TaggedOutput(DROPPED, (line, packed))


def in_words(apart: Apart) -> str:
    """The distance of two images as text."""
    bits, mean, largest = apart
    return f"{bits} bits and {mean:.4f} (at most {largest:.4f}) of colour"


def _first(line: int, earlier: dict[int, int]) -> int:
    """The kept image at the end of the chain of earlier copies."""
    while line in earlier:
        line = earlier[line]
    return line


def _merge_captions(
    joined: tuple[int, tuple[Iterable[bytes], Iterable[bytes]]], config: PrepareConfig
) -> Iterator[Any]:
    _, ((packed,), others) = joined
    first, rejects = unpack(packed), Rejects(config.place)
    for other in sorted(map(unpack, others), key=lambda facts: facts.line):
        merge(first, other, rejects)
    yield pack(first)
    yield from tagged(rejects)
