"""Blocks of sentences of a process, read ahead, with the position after each block."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt64

from aced.select_text.corpus import Corpus, Counts
from aced.select_text.sentences import hashes


@dataclasses.dataclass
class Reading:
    """How far the corpus has been read."""

    positions: Int[np.ndarray, " parts"]
    done: Bool[np.ndarray, " parts"]
    counts: Counts  # by this process, in all its starts

    @classmethod
    def start(cls, parts: int) -> "Reading":
        """The position before the first sentence."""
        return cls(np.zeros(parts, np.int64), np.zeros(parts, bool), Counts())

    def copy(self) -> "Reading":
        """A deep copy."""
        return Reading(self.positions.copy(), self.done.copy(), self.counts.copy())


@dataclasses.dataclass(frozen=True)
class Sentences:
    """A block of distinct sentences, and the position after it."""

    texts: list[str]
    hashes: UInt64[np.ndarray, " n"]
    reading: Reading
    work: int  # about how many bytes of the corpus the process has read since its start


def share_of(reading: Reading, index: int, count: int) -> list[int]:
    """The parts that process `index` of `count` reads: every count-th of the unread ones."""
    return np.flatnonzero(~reading.done)[index::count].tolist()


def blocks(
    corpus: Corpus, numbers: Sequence[int], reading: Reading, size: int
) -> Iterator[Sentences]:
    """The sentences of the parts `numbers` in blocks of `size`, without repetition within a block.

    They start at `reading`, which is not changed. The last block has fewer sentences, or none.
    """
    reading, texts, before, done = reading.copy(), {}, 0, 0

    def block() -> Sentences:
        listed = list(texts)
        return Sentences(listed, hashes(listed), reading.copy(), before + done)

    for number in numbers:
        done = 0
        for sentence in corpus.read(number, int(reading.positions[number]), reading.counts):
            texts[sentence.text] = None
            reading.positions[number], done = sentence.position, sentence.done
            if len(texts) == size:
                yield block()
                texts.clear()
        reading.done[number] = True
        before, done = before + corpus.parts[number].size, 0
    yield block()


def one_ahead(blocks: Iterator[Sentences]) -> Iterator[Sentences]:
    """The same blocks, reading the next one in a thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block
