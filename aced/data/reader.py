"""Reads, filters and decodes records, and counts failures."""

import collections
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from aced.data import answers
from aced.data import order as orders
from aced.data.captions import GIVEN
from aced.data.images.decode import DecodeError, picture_size
from aced.data.images.filters import FilterConfig
from aced.data.images.pictures import Cuts, Look, Viewer
from aced.data.records import RecordError, Source
from aced.data.sources import DataConfig, check_size
from aced.data.tokenizers import Tokenizer
from aced.errors import UserError

Row = dict[str, np.ndarray | np.generic]  # one example of a batch

# Fields that a source may add to a batch, with their values for records without them. Selection's
# metrics read `is_noisy`, and `source`, the number of the member of a mixture; evaluations read
# `group`, such as the number of a region.
OPTIONAL_FIELDS = {
    "label": np.array(-1, np.int32),
    "is_noisy": np.array(False),
    "source": np.array(-1, np.int32),
    "group": np.array(-1, np.int32),
    "answer_ids": np.full(answers.MOST, -1, np.int32),  # see answers.py
    "answer_scores": np.zeros(answers.MOST, np.float32),
}

_REMEMBERED = 100_000  # unusable records that are not tried again as replacements
# Draws, or one pass, before a warning about unusable records or about kinds that no caption has.
_JUDGED_AFTER = 256


class InputError(UserError, RuntimeError):
    """The data set cannot be read any further; the message names the place and the next step."""


class InputCounters:
    """Counts skipped records; thread-safe.

    A record counts when it is drawn, so once per epoch, and not when it is tried as a replacement.
    Readers run ahead of training, so the counts may include records of the next few steps.

    Attributes:
        skipped: unusable records so far, counted in every epoch.
        by_source: the same by the name of the source, or of the member of a mixture.
        filtered: records that the filters dropped, by reason.
        recent: the last 1,000 skipped records: (source's name, id, reason).
    """

    def __init__(self, on_skip: Callable[[str, int, str], None] | None = None):
        """`on_skip(source, id, reason)` is called for every skipped record, under a lock."""
        self.skipped = 0
        self.by_source: collections.Counter[str] = collections.Counter()
        self.filtered: collections.Counter[str] = collections.Counter()
        self.recent: collections.deque[tuple[str, int, str]] = collections.deque(maxlen=1000)
        self._on_skip = on_skip
        self._lock = threading.Lock()

    def skip(self, source: str, index: int, reason: str) -> None:
        """Counts record `index` of `source`, skipped because of `reason`."""
        with self._lock:
            self.skipped += 1
            self.by_source[source] += 1
            self.recent.append((source, index, reason))
            if self._on_skip is not None:
                self._on_skip(source, index, reason)

    def filter(self, reason: str) -> None:
        """Counts a record that the filters drop."""
        with self._lock:
            self.filtered[reason] += 1


class Example(NamedTuple):
    """A record that was read and decoded."""

    index: int
    images: Sequence[np.ndarray]  # uint8 [r r 3], one per look of the reader, for each cut
    texts: tuple[str, ...]  # captions that are not blank
    record: Mapping[str, Any]
    captions: tuple[int, ...] = ()  # indices in `texts` of the captions that can be used
    kinds: tuple[str, ...] = ()  # of `texts`
    # If answers are read: those that fit into the model's text, for each of `captions`
    answers: tuple[tuple[str, ...], ...] = ()

    def fields(self, known: Sequence[str]) -> Row:
        """`id` and the optional fields `known`."""
        row: Row = {"id": np.int32(self.index)}
        for name in known:
            absent = OPTIONAL_FIELDS[name]
            row[name] = np.asarray(self.record.get(name, absent), absent.dtype)
        return row


class Filtered(str):
    """The filter that dropped an example."""


class _Part:
    """Counts usable and unusable draws of a data set or a member of a mixture."""

    def __init__(self, name: str, start: int, end: int):
        self.name, self.start, self.end = name, start, end
        self._drawn, self._skipped, self._filtered = 0, 0, collections.Counter[str]()
        self._is_reported = False
        self._lock = threading.Lock()

    def drew(self, index: int, result: "Example | Filtered | str") -> None:
        """Counts a draw; warns once if more than half of the draws are unusable."""
        with self._lock:
            self._drawn += 1
            if isinstance(result, Example):
                return
            if isinstance(result, Filtered):
                self._filtered[result] += 1
            else:
                self._skipped += 1
            unusable = self._skipped + self._filtered.total()
            enough = self._drawn >= min(_JUDGED_AFTER, self.end - self.start)
            # By two standard deviations, since the share fluctuates.
            most = 2 * unusable > self._drawn + 2 * self._drawn**0.5
            if self._is_reported or not enough or not most:
                return
            self._is_reported = True
            causes = []
            if self._filtered:
                causes.append(
                    f"data.filters leave out {self._filtered.total()} ({_listed(self._filtered)}); "
                    "loosen them if this is not intended"
                )
            if self._skipped:
                last = "" if isinstance(result, Filtered) else f" (number {index}: {result})"
                causes.append(
                    f"{self._skipped} are unreadable, without a caption or missing in a cache"
                    f"{last}; they are listed in skipped.jsonl of the run, prepare the data again"
                )
            drawn = self._drawn
        logging.warning(
            "More than half of %s cannot be used, %d of the first %d records drawn: %s. Usable "
            "records are drawn in their place, each more than twice per epoch.",
            self.name,
            unusable,
            drawn,
            "; ".join(causes),
        )


_NO_CAPTION = (
    "data.caption_weights has the kinds {missing}, but none of the first {records} records of "
    "{source} has such a caption; the kinds there are {found}. Correct the names, unless they are "
    "rare."
)
_NO_THUMBNAIL = (
    "data.thumbnails = True has no effect so far: none of the first {records} records of {source} "
    "has a small copy with enough pixels for a model. Store them with `python -m aced.prepare "
    "--thumbnails=SIDE`, with SIDE at least the resolution of a model, or set it to False."
)


class _Sought:
    """Finds what settings name and no record has, such as a kind with a typing error."""

    def __init__(self, source: Source, names: Iterable[str], message: str):
        self._name, self._enough = source.name, min(_JUDGED_AFTER, len(source))
        self._missing, self._message = set(names), message
        self._found: dict[str, None] = {}  # in the order in which they were found
        self._records = 0
        self._lock = threading.Lock()

    def found(self, names: Iterable[str]) -> None:
        """Counts a record; after enough of them, warns once if names are still missing."""
        if not self._missing:  # nothing is left to find: no thread waits for another
            return
        with self._lock:
            self._records += 1
            self._found.update(dict.fromkeys(names))
            self._missing.difference_update(self._found)
            if not self._missing or self._records < self._enough:
                return
            missing, self._missing = sorted(self._missing), set()
            records, found = self._records, list(self._found)
        logging.warning(
            "%s",
            self._message.format(
                missing=", ".join(missing),
                records=records,
                source=self._name,
                found=", ".join(found),
            ),
        )


class Reader:
    """Reads and decodes records, and counts those that fail."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        counters: InputCounters,
        looks: Sequence[Look],
        missing: Sequence[Mapping[int, str]] = (),
        answer_tokenizer: Tokenizer | None = None,
    ):
        """Reads `source`; examples in `missing` (id to reason) count as unreadable.

        So do, with `answer_tokenizer`, those without an answer that fits into one of its texts
        after the question. Without `looks` nothing is decoded.
        """
        check_size(source)
        self._source, self._config, self._counters = source, config, counters
        self._view = Viewer(looks, config.decode, config.max_pixels, config.thumbnails)
        self._missing = missing
        kinds = [kind for kind, weight in config.caption_weights.items() if weight]
        self._kinds = _Sought(source, kinds, _NO_CAPTION)
        sides = [x.resolution for x in looks if x.transform is None and x.picture == "image"]
        # Parts of pictures are cut out of the full ones.
        reads_small = config.thumbnails and sides and not config.augmentations
        self._least_side = min(sides, default=0)
        self._small = _Sought(source, ["thumbnail"] if reads_small else [], _NO_THUMBNAIL)
        self._answer_tokenizer = answer_tokenizer
        self._class_names = names = getattr(source, "class_names", None)
        self._targets = answers.Targets(names) if names else None
        self._parts = [
            _Part(part.name, part.start, part.end) for part in getattr(source, "parts", ())
        ] or [_Part(source.name, 0, len(source))]
        self._unusable: dict[int, str] = {}  # reason by index

    def first_usable(
        self, tries: Iterable[int], need_caption: bool = True, cuts: Cuts | None = None
    ) -> Example:
        """The first usable example of `tries`, which all belong to one data set or member.

        `tries` are the drawn example, which is counted if it is unusable, and its replacements, as
        from `order.Order.tries`. `cuts` returns the parts of the picture to use.

        Raises:
            InputError: no example is usable, or none of as many in a row as the settings allow.
        """
        limit, filters = self._config.max_skipped_in_a_row, self._config.filters
        skipped, left_out, reason = 0, collections.Counter[str](), ""
        first = last = part = None
        for index in tries:
            result = self._unusable.get(index) or self._read(index, need_caption, cuts)
            if first is None:
                first, part = index, self._part(index)
                part.drew(index, result)
                self._count(index, result)
            if isinstance(result, Example):
                return result
            if len(self._unusable) < _REMEMBERED:
                self._unusable[index] = result
            if isinstance(result, Filtered):
                left_out[result] += 1
            else:
                skipped, reason, last = skipped + 1, result, index
            if skipped == limit or left_out.total() == filters.max_in_a_row:
                break
        if left_out.total() > skipped:
            raise InputError(
                f"data.filters leave out {left_out.total()} examples in a row of {part.name}, "
                f"number {first} and those drawn in its place ({_listed(left_out)}), so none of "
                f"{left_out.total() + skipped} can be used. Loosen the filters, or raise "
                "data.filters.max_in_a_row."
            )
        raise InputError(
            f"{skipped} records in a row of {part.name} cannot be used, number {first} and those "
            f"drawn in its place; the last one, number {last}: {reason}. "
            "Check that the data set was copied completely, prepare it again, or raise "
            "data.max_skipped_in_a_row."
        )

    def read(
        self, index: int, need_caption: bool, cuts: Cuts | None = None
    ) -> "Example | Filtered | str":
        """Example `index`, or the reason why it is unusable, which is counted.

        `cuts` returns the parts of the picture to use.
        """
        result = self._read(index, need_caption, cuts)
        self._count(index, result)
        return result

    def _part(self, index: int) -> _Part:
        return next(part for part in self._parts if index < part.end)

    def _count(self, index: int, result: "Example | Filtered | str") -> None:
        if isinstance(result, Filtered):
            self._counters.filter(result)
        elif not isinstance(result, Example):
            self._counters.skip(self._part(index).name, index, result)

    def _read(
        self, index: int, need_caption: bool, cuts: Cuts | None
    ) -> "Example | Filtered | str":
        config = self._config
        try:
            record = self._source[index]
            is_blank = [not text.strip() for text in record["texts"]]
            texts = _without(record["texts"], is_blank)
            kinds = _without(record.get("kinds") or (GIVEN,) * len(is_blank), is_blank)
            captions = config.filters.captions(texts)
            left_out = config.filters.reason(record["image"])
            left_out = left_out or ("caption" if texts and not captions else "")
            if left_out:
                return Filtered(left_out)
            images = self._view(record, cuts(index) if cuts else ())
            self._small.found(self._used_small(record))
            if self._targets is not None and "answers" in record:
                record = {**record, **self._targets(record["answers"])}
        except (RecordError, DecodeError) as error:
            return str(error)
        for reasons in self._missing:
            if index in reasons:
                return f"it is missing in a cache: {reasons[index]}"
        if need_caption and not texts:
            return "it has no caption"
        if config.caption_weights:
            self._kinds.found(kinds)
            captions = tuple(i for i in captions if config.caption_weights.get(kinds[i]))
            if need_caption and not captions:
                found = ", ".join(dict.fromkeys(kinds))
                return f"data.caption_weights has no weight for the kinds of its captions: {found}"
        example = Example(index, images, texts, record, captions, kinds)
        return example if self._answer_tokenizer is None else self._with_answers(example)

    def _used_small(self, record: Mapping[str, Any]) -> Iterator[str]:
        """The field with a small copy, if it has enough pixels for a model."""
        small = record.get("thumbnail")
        if small and min(picture_size(small)) >= self._least_side:
            yield "thumbnail"

    def _with_answers(self, example: Example) -> Example | str:
        """`example` with its answers, without captions after which none of them fits."""
        given = answers.answers_of(example.record, self._class_names)
        if not given:
            return "it has no answer, and no label with a name"
        tokenizer, by_caption = self._answer_tokenizer, {}
        for i in example.captions:
            whole = tokenizer.fit([answers.after(example.texts[i], answer) for answer in given])
            if fitting := tuple(itertools.compress(given, whole)):
                by_caption[i] = fitting
        if not by_caption:
            return (
                "its question leaves no room for an answer in the model's text of "
                f"{tokenizer.config.length} ids"
            )
        return example._replace(captions=tuple(by_caption), answers=tuple(by_caption.values()))


def _without(items: Sequence[str], is_left_out: Sequence[bool]) -> tuple[str, ...]:
    return tuple(item for item, out in zip(items, is_left_out, strict=True) if not out)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def known_fields(source: Source, config: DataConfig) -> tuple[str, ...]:
    """The optional fields of the first readable record, since all batches need the same keys.

    For a mixture, the fields that all members have.
    """
    config = dataclasses.replace(config, filters=FilterConfig(), caption_weights={})
    reader = Reader(source, config, InputCounters(), [])
    members = [(part.source, part.start) for part in getattr(source, "parts", ())]
    firsts = []
    for member, start in members or [(source, 0)]:
        tries = orders.of(member, seed=0, shuffle=False, rows=1).tries(0)
        firsts.append(reader.first_usable((start + i for i in tries), need_caption=False).record)
    return tuple(name for name in OPTIONAL_FIELDS if all(name in record for record in firsts))
