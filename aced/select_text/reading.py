"""A process's sentences in blocks, read ahead, with the position that each block leads to."""

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
        """Before the first sentence."""
        return cls(np.zeros(parts, np.int64), np.zeros(parts, bool), Counts())

    def copy(self) -> "Reading":
        """One that does not change when this one does."""
        return Reading(self.positions.copy(), self.done.copy(), self.counts.copy())


@dataclasses.dataclass(frozen=True)
class Sentences:
    """Distinct sentences of one process, and how far it has read with them."""

    texts: list[str]
    hashes: UInt64[np.ndarray, " n"]
    reading: Reading
    work: int  # about how many bytes of the corpus the process has read since its start


def share_of(reading: Reading, index: int, count: int) -> list[int]:
    """The parts that process `index` of `count` has to read: of those left, every count-th."""
    return np.flatnonzero(~reading.done)[index::count].tolist()


def blocks(
    corpus: Corpus, numbers: Sequence[int], reading: Reading, size: int
) -> Iterator[Sentences]:
    """The sentences of some parts, `size` at a time; what is repeated within a block is left out.

    Args:
        corpus: what is read.
        numbers: of the parts.
        reading: from where on; it is not changed.
        size: sentences of a block; the last one has fewer, maybe none.
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
    """The same blocks; the next one is read while this one is worked on."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block
