"""Images that look like an earlier one are left out: their perceptual hashes differ in few bits.

An image is left out if any earlier image of the input (its line, or index) is within T bits,
whether that one is left out or not. So the rule asks of pairs alone, not of the order of the work.

Comparing all with all is not needed, by the pigeonhole principle: if the 64 bits are cut into T + 1
bands, two hashes that differ in at most T bits are equal in at least one band (M. Norouzi et al.,
"Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012, proposition 1, with its radius
per band of 0). Each band is a key, and those who share one are compared. That is exact, and for N
random hashes (T + 1) N^2 / 2^(64 / (T + 1)) / 2 pairs: with T = 3 and N = 10^8, 3 * 10^11. Equal
hashes are one entry in this: a million blank pictures cost as much as one.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from jaxtyping import Int64, UInt64

from aced.prepare.blocks import REJECTED
from aced.prepare.captions import RejectedError, Rejects, merge
from aced.prepare.config import PrepareConfig
from aced.prepare.facts import Facts, pack, unpack

DROPPED, PAIRS = "dropped", "pairs"
_CELLS = 1 << 22  # of the comparison that are in memory at a time: 32 MiB

# Line, key, block, offset, size: what is said of an image that others look like.
Mark = tuple[int, str, int, int, int]
Earlier = tuple[Mark, int]  # an earlier image, and in how many bits the hashes differ


def drop_near_duplicates(
    config: PrepareConfig, images: beam.PCollection[bytes]
) -> tuple[beam.PCollection[bytes], beam.PCollection, beam.PCollection]:
    """Returns the packed facts of the images that are left, what is left out, and samples of it.

    A sample is (mark of the image left out, mark of the earlier one, bits).
    """
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
    # One entry for each image left out is held by each worker.
    pointers = earlier | "pointers" >> beam.MapTuple(lambda line, found: (line, found[0][0]))
    moved = divided[DROPPED] | "to the first" >> beam.Map(
        lambda image, earlier: (_first(image[0], earlier), image[1]), beam.pvalue.AsDict(pointers)
    ).with_output_types(tuple[int, bytes])
    merged = (
        (divided.kept, moved)
        | "join with captions" >> beam.CoGroupByKey()
        | "merge captions"
        >> beam.FlatMap(_merge, config).with_output_types(bytes).with_outputs(REJECTED, main="kept")
    )
    rejected = (rejected, merged[REJECTED]) | "all near-duplicates" >> beam.Flatten()
    return merged.kept, rejected, divided[PAIRS]


def _earlier(images: beam.PCollection[bytes], limit: int) -> beam.PCollection:
    """(line, `Earlier`) of each image that has an earlier one within `limit` bits.

    It is the earliest with the same hash, or if there is none, the earliest of all.
    """
    looks = (
        images
        | "key by look" >> beam.Map(_by_look)
        | "group by look" >> beam.GroupByKey()
        | "equal looks" >> beam.FlatMapTuple(_equal).with_outputs("equal", main="first")
    )
    close = (
        looks.first
        | "bands" >> beam.FlatMap(_bands, limit)
        | "group by band" >> beam.GroupByKey()
        | "compare" >> beam.FlatMap(_compare, limit)
        | "earliest" >> beam.CombinePerKey(min)
    )
    return (looks.equal, close) | "equal and close" >> beam.Flatten()


def _by_line(packed: bytes) -> tuple[int, bytes]:
    return unpack(packed).line, packed


def _mark(facts: Facts) -> Mark:
    return facts.line, facts.key, facts.block, facts.offset, facts.size


def _by_look(packed: bytes) -> tuple[bytes, Mark]:
    facts = unpack(packed)
    return facts.look, _mark(facts)


def _equal(look: bytes, marks: Iterable[Mark]) -> Iterator[Any]:
    first, *others = sorted(marks)
    yield look, first
    for mark in others:
        yield beam.pvalue.TaggedOutput("equal", (mark[0], (first, 0)))


def _bands(image: tuple[bytes, Mark], limit: int) -> Iterator[tuple[bytes, tuple[bytes, Mark]]]:
    look, _ = image
    bits = np.unpackbits(np.frombuffer(look, np.uint8))
    for number, band in enumerate(np.array_split(bits, limit + 1)):
        yield bytes([number]) + np.packbits(band).tobytes(), image


def _compare(
    grouped: tuple[bytes, Iterable[tuple[bytes, Mark]]], limit: int
) -> Iterator[tuple[int, Earlier]]:
    """The earliest image within `limit` bits of each, among those that share a band."""
    images = sorted(grouped[1], key=lambda image: image[1])
    looks = np.frombuffer(b"".join(look for look, _ in images), np.uint64)
    found, bits = earliest(looks, limit)
    for i in np.flatnonzero(found >= 0):
        yield images[i][1][0], (images[found[i]][1], int(bits[i]))


def earliest(
    looks: UInt64[np.ndarray, " n"], limit: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """For each of the hashes, the first before it within `limit` bits (-1: none), and the bits."""
    found, bits = np.full(len(looks), -1), np.zeros(len(looks), np.int64)
    rows = max(1, _CELLS // max(1, len(looks)))
    for start in range(0, len(looks), rows):
        end = min(start + rows, len(looks))
        distance = np.bitwise_count(looks[start:end, None] ^ looks[None, :end])
        before = np.arange(end)[None, :] < np.arange(start, end)[:, None]
        close = (distance <= limit) & before
        first = close.argmax(1)
        some = close.any(1)
        found[start:end][some] = first[some]
        bits[start:end] = np.where(some, distance[np.arange(end - start), first], 0)
    return found, bits


def _divide(
    joined: tuple[int, tuple[Iterable[bytes], Iterable[Earlier]]], config: PrepareConfig
) -> Iterator[Any]:
    line, (images, earlier) = joined
    (packed,), earlier = images, list(earlier)
    if not earlier:
        yield line, packed
        return
    ((other, bits),) = earlier
    facts = unpack(packed)
    rejects = Rejects(config.place)
    error = RejectedError("near_duplicate", f"{bits} bits from {other[1]}")
    rejects.add(error, image=facts.key, line=line)
    for entry in rejects.take():
        yield beam.pvalue.TaggedOutput(REJECTED, entry)
    yield beam.pvalue.TaggedOutput(PAIRS, (_mark(facts), other, bits))
    yield beam.pvalue.TaggedOutput(DROPPED, (line, packed))


def _first(line: int, earlier: dict[int, int]) -> int:
    """The image at the end of the chain of earlier ones, which is kept."""
    while line in earlier:
        line = earlier[line]
    return line


def _merge(
    joined: tuple[int, tuple[Iterable[bytes], Iterable[bytes]]], config: PrepareConfig
) -> Iterator[Any]:
    _, ((packed,), others) = joined
    first, rejects = unpack(packed), Rejects(config.place)
    for other in sorted(map(unpack, others), key=lambda facts: facts.line):
        merge(first, other, rejects)
    yield pack(first)
    for entry in rejects.take():
        yield beam.pvalue.TaggedOutput(REJECTED, entry)
