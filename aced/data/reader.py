"""Records to examples: read, filtered and decoded, and counted where that fails."""

import collections
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aced.data.decode import DecodeError
from aced.data.filters import FilterConfig
from aced.data.pictures import Cut, Look, Viewer
from aced.data.records import RecordError, Source
from aced.data.sources import DataConfig, check_size

Row = dict[str, np.ndarray | np.generic]  # one example of a batch

# What a source may add to a batch, each with what stands there for an absent one. Selection's
# metrics read `is_noisy`, and `source`, the number of the member of a mixture.
OPTIONAL_FIELDS = {"label": np.int32(-1), "is_noisy": np.bool_(False), "source": np.int32(-1)}


class InputError(RuntimeError):
    """The data set cannot be read any further; the message says where and what to do."""


class InputCounters:
    """Counts what was skipped, from any thread.

    Readers run ahead of training, so records of the next few steps may be counted already.

    Attributes:
        skipped: records that could not be used so far, again in every epoch.
        by_source: the same by the source's name, which is that of the member in a mixture.
        filtered: records that the filters left out, by reason.
        recent: the last 1,000 skipped ones: (source's name, id, reason).
    """

    def __init__(self, on_skip: Callable[[str, int, str], None] | None = None):
        """Calls `on_skip(source, id, reason)` for every skipped record, one call at a time."""
        self.skipped = 0
        self.by_source: collections.Counter[str] = collections.Counter()
        self.filtered: collections.Counter[str] = collections.Counter()
        self.recent: collections.deque[tuple[str, int, str]] = collections.deque(maxlen=1000)
        self._on_skip = on_skip
        self._lock = threading.Lock()

    def skip(self, source: str, index: int, reason: str) -> None:
        """Counts record `index` of `source`, which was left out because of `reason`."""
        with self._lock:
            self.skipped += 1
            self.by_source[source] += 1
            self.recent.append((source, index, reason))
            if self._on_skip is not None:
                self._on_skip(source, index, reason)

    def filter(self, reason: str) -> None:
        """Counts a record that the filters leave out."""
        with self._lock:
            self.filtered[reason] += 1


class Example(NamedTuple):
    """A record that was read and decoded."""

    index: int
    images: Sequence[np.ndarray]  # uint8 [r r 3], what each of the reader's looks sees
    texts: tuple[str, ...]  # captions that are not blank
    record: Mapping[str, Any]
    captions: tuple[int, ...] = ()  # places in `texts` of those that pass the filters

    def fields(self, known: Sequence[str]) -> Row:
        """`id` and the `known` ones of the optional fields."""
        row: Row = {"id": np.int32(self.index)}
        for name in known:
            absent = OPTIONAL_FIELDS[name]
            row[name] = type(absent)(self.record.get(name, absent))
        return row


class Reader:
    """Reads and decodes records, and counts those that it can't."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        counters: InputCounters,
        looks: Sequence[Look],
        missing: Sequence[Mapping[int, str]] = (),
    ):
        """Reads `source`; examples that are `missing`, by id and why, are taken for unreadable.

        Without `looks`, nothing is decoded.
        """
        check_size(source)
        self._source, self._config, self._counters = source, config, counters
        self._view = Viewer(looks, config.decode, config.max_pixels, config.thumbnails)
        self._missing = missing
        self._spans = [(0, len(source), source.name)]
        if parts := getattr(source, "parts", None):
            self._spans = [(part.start, part.end, part.name) for part in parts]

    def read_from(self, index: int, need_caption: bool = True, cut: Cut | None = None) -> Example:
        """The first usable example at or after `index`, from the start again at the end."""
        start, end, name = self._span(index)
        limit, filters = self._config.max_skipped_in_a_row, self._config.filters
        skipped, left_out = 0, collections.Counter()
        for k in range(end - start):
            last = start + (index - start + k) % (end - start)
            example = self.read(last, need_caption, cut)
            if isinstance(example, Example):
                return example
            if isinstance(example, Filtered):
                left_out[str(example)] += 1
            else:
                skipped, reason = skipped + 1, example
            if skipped == limit or left_out.total() == filters.max_in_a_row:
                break
        if left_out.total() > skipped:
            raise InputError(
                f"data.filters leave out {left_out.total()} examples in a row of {name}, from "
                f"number {index} on ({_listed(left_out)}), and none is left of {k + 1}. Loosen "
                "the filters, or raise data.filters.max_in_a_row."
            )
        raise InputError(
            f"{skipped} records in a row of {name} cannot be used, from number "
            f"{index} on; the last one, number {last}: {reason}. "
            "Check that the data set was copied completely, prepare it again, or raise "
            "data.max_skipped_in_a_row."
        )

    def _span(self, index: int) -> tuple[int, int, str]:
        """First and last + 1 of the examples that may stand in for `index`, and their name."""
        return next(span for span in self._spans if index < span[1])

    def read(
        self, index: int, need_caption: bool, cut: Cut | None = None
    ) -> "Example | Filtered | str":
        """Example `index`, or, counted, the reason why it isn't used.

        `cut` gives the part of its picture that is looked at.
        """
        config = self._config
        try:
            record = self._source[index]
            texts = tuple(text for text in record["texts"] if text.strip())
            captions = config.filters.captions(texts)
            left_out = config.filters.reason(record["image"])
            left_out = left_out or ("caption" if texts and not captions else "")
            if left_out:
                self._counters.filter(left_out)
                return Filtered(left_out)
            images = self._view(record, cut)
            lost = next((known[index] for known in self._missing if index in known), None)
            if lost is None and (texts or not need_caption):
                return Example(index, images, texts, record, captions)
            reason = "it has no caption" if lost is None else f"it is missing in a cache: {lost}"
        except (RecordError, DecodeError) as error:
            reason = str(error)
        self._counters.skip(self._span(index)[2], index, reason)
        return reason


class Filtered(str):
    """Which filter left an example out."""


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def known_fields(source: Source, config: DataConfig) -> tuple[str, ...]:
    """The optional fields of the first readable record: all batches have the same keys.

    A mixture's are those that every member has, and the number of the member.
    """
    config = dataclasses.replace(config, filters=FilterConfig())
    reader = Reader(source, config, InputCounters(), [])
    starts = [part.start for part in getattr(source, "parts", ())] or [0]
    firsts = [reader.read_from(start, need_caption=False).record for start in starts]
    return tuple(name for name in OPTIONAL_FIELDS if all(name in record for record in firsts))
