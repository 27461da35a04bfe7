"""Copies of an earlier image, at another size or quality, are left out.

An image is left out if any earlier image of the input (its line, or index) is a copy of it, whether
that one is left out or not: their perceptual hashes differ in at most T bits, and then their shapes
are equal but for whole pixels and their miniatures differ little. So the rule asks of pairs alone,
not of the order of the work.

Comparing all with all is not needed, by the pigeonhole principle: if the 64 bits are cut into T + 1
bands, two hashes that differ in at most T bits are equal in at least one band (M. Norouzi et al.,
"Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012, proposition 1, with its radius
per band of 0). Each band is a key, and those who share one are compared. That is exact, and for N
random hashes (T + 1) N^2 / 2^(64 / (T + 1)) / 2 pairs: with T = 3 and N = 10^8, 3 * 10^11. Images
that look the same to the last bit are one entry in this: a million blank pictures of one size cost
as much as one. Most copies are found in the first pair that is verified; n different pictures with
one hash, such as plain colours, take n^2 / 2.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from jaxtyping import Bool, Int64, Shaped

from aced.prepare import miniatures
from aced.prepare.blocks import REJECTED
from aced.prepare.captions import RejectedError, Rejects, merge
from aced.prepare.config import PrepareConfig
from aced.prepare.facts import Facts, pack, unpack

DROPPED, PAIRS = "dropped", "pairs"
_CELLS = 1 << 21  # of the comparison that are in memory at a time: 50 MiB
# All that is compared of an image.
SIGHT = np.dtype(
    [
        ("look", np.uint64),
        ("miniature", np.uint8, miniatures.SIZE),
        ("width", np.int64),
        ("height", np.int64),
    ]
)

# Line, key, block, offset, size: what is said of an image that others look like.
Mark = tuple[int, str, int, int, int]
# How far two images are apart: bits of their hashes, mean and largest distance of their colours.
Apart = tuple[int, float, float]
Earlier = tuple[Mark, Apart]  # an earlier image that is the same
Pair = tuple[Mark, Mark, Apart]  # an image that is left out, and the earlier one


def drop_near_duplicates(
    config: PrepareConfig, images: beam.PCollection[bytes]
) -> tuple[beam.PCollection[bytes], beam.PCollection, beam.PCollection]:
    """Returns the packed facts of the images that are left, what is left out, and each `Pair`."""
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
    """(line, `Earlier`) of each image that is the copy of an earlier one.

    It is the earliest that looks the same to the last bit, or if there is none, the earliest of
    all copies.
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
    """The earliest image that each is a copy of, among those that share a band."""
    images = sorted(grouped[1], key=lambda image: image[1])
    sights = np.frombuffer(b"".join(sight for sight, _ in images), SIGHT)
    found = earliest(sights, limit)
    copies = np.flatnonzero(found >= 0)
    for i, *apart in zip(copies, *distances(sights[copies], sights[found[copies]]), strict=True):
        bits, mean, largest = apart
        yield images[i][1][0], (images[found[i]][1], (int(bits), float(mean), float(largest)))


def earliest(sights: Shaped[np.ndarray, " n"], limit: int) -> Int64[np.ndarray, " n"]:
    """For each of these `SIGHT`s, the first before it that it is a copy of; -1: there is none."""
    found, looks = np.full(len(sights), -1), sights["look"]
    rows = max(1, _CELLS // max(1, len(sights)))
    for start in range(0, len(sights), rows):
        end = min(start + rows, len(sights))
        before = np.arange(end)[None, :] < np.arange(start, end)[:, None]
        close = before & (np.bitwise_count(looks[start:end, None] ^ looks[None, :end]) <= limit)
        row, others = np.nonzero(close)  # the others of a row stand together, the earliest first
        waiting, turn = np.unique(row, return_index=True)
        last = np.append(turn[1:], len(row))
        waiting += start
        while len(waiting):
            same = _are_copies(sights[waiting], sights[others[turn]])
            found[waiting[same]] = others[turn[same]]
            goes_on = ~same & (turn + 1 < last)
            waiting, turn, last = waiting[goes_on], turn[goes_on] + 1, last[goes_on]
    return found


def distances(
    some: Shaped[np.ndarray, " n"], others: Shaped[np.ndarray, " n"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far n pairs of `SIGHT`s are apart: bits, mean and largest distance of colours."""
    bits = np.bitwise_count(some["look"] ^ others["look"])
    return bits, *miniatures.differences(some["miniature"], others["miniature"])


def are_shaped_alike(
    some: Shaped[np.ndarray, " n"], others: Shaped[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether the sides of each of n pairs of `SIGHT`s are as long, but for their scale.

    A side that is scaled is off by less than a pixel.
    """
    (w, h), (w2, h2) = ((of["width"], of["height"]) for of in (some, others))
    return np.abs(w * h2 - h * w2) <= w + h + w2 + h2


def _are_copies(
    some: Shaped[np.ndarray, " n"], others: Shaped[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether two images whose hashes are alike are the same one."""
    colours = miniatures.are_copies(some["miniature"], others["miniature"])
    return are_shaped_alike(some, others) & colours


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
    for entry in rejects.take():
        yield beam.pvalue.TaggedOutput(REJECTED, entry)
    yield beam.pvalue.TaggedOutput(PAIRS, (_mark(facts), other, apart))
    yield beam.pvalue.TaggedOutput(DROPPED, (line, packed))


def in_words(apart: Apart) -> str:
    """How far two images are apart."""
    bits, mean, largest = apart
    return f"{bits} bits and {mean:.4f} (at most {largest:.4f}) of colour"


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
