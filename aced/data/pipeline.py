"""Sources to batches: shuffled, decoded, tokenized and stacked by reader threads.

Row i of global super-batch t is a function of (seed, t, i) alone. So any step can be the first one,
there is no iterator state to save, and the rows do not depend on the number of processes.
"""

import collections
import dataclasses
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import logging
from jaxtyping import Int

from aced.config import ConfigError
from aced.data.records import RecordError, Source
from aced.data.sources import DataConfig, check_size
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.data.transforms import DecodeError, ResizeConfig, decode, resize

Batch = dict[str, np.ndarray]
Row = dict[str, np.ndarray | np.generic]  # one example of a batch


class InputError(RuntimeError):
    """The data set cannot be read any further; the message says where and what to do."""


@dataclasses.dataclass(frozen=True)
class View:
    """What one model sees of an example."""

    resolution: int  # pixels a side
    tokenizer: TokenizerConfig
    resize: ResizeConfig = dataclasses.field(default_factory=ResizeConfig)

    @classmethod
    def of(cls, model: Any) -> "View":
        """The view of a `TwoTowerConfig`."""
        return cls(model.image.resolution, model.tokenizer, model.resize)


class InputCounters:
    """Counts what was skipped, from any thread.

    Readers run ahead of training, so records of the next few steps may be counted already.

    Attributes:
        skipped: records skipped so far, again in every epoch.
        recent: the last 1,000 of them: (source's name, id, reason).
    """

    def __init__(self, on_skip: Callable[[str, int, str], None] | None = None):
        """Calls `on_skip(source, id, reason)` for every skipped record, one call at a time."""
        self.skipped = 0
        self.recent: collections.deque[tuple[str, int, str]] = collections.deque(maxlen=1000)
        self._on_skip = on_skip
        self._lock = threading.Lock()

    def skip(self, source: str, index: int, reason: str) -> None:
        """Counts record `index` of `source`, which was left out because of `reason`."""
        with self._lock:
            self.skipped += 1
            self.recent.append((source, index, reason))
            if self._on_skip is not None:
                self._on_skip(source, index, reason)


class Batches(Iterator[Batch]):
    """An iterator of batches whose threads stop with `close()` or at the end of a `with` block."""

    def __init__(
        self, rows: grain.MapDataset, batch_size: int, stack: Callable, config: DataConfig
    ):
        threads = config.num_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        batches = rows.to_iter_dataset(options).batch(batch_size, batch_fn=stack)
        if threads and config.prefetch:
            batches = grain.experimental.ThreadPrefetchIterDataset(
                batches, prefetch_buffer_size=config.prefetch
            )
        self._iterator = [iter(batches)]
        # Also when nobody calls `close`: grain's iterators fail loudly at the interpreter's end.
        self._finalize = weakref.finalize(self, _close, self._iterator)

    def __next__(self) -> Batch:
        if not self._iterator:
            raise InputError("These batches are closed; make new ones that start at this step.")
        return next(self._iterator[0])

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads. Grain's would go on reading until the process ends."""
        self._finalize()


def _close(iterator: list[grain.DatasetIterator]) -> None:
    iterator.pop().close()


def train_batches(
    source: Source,
    config: DataConfig,
    views: Mapping[str, View],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Int[np.ndarray, " n"] | None = None,
    counters: InputCounters | None = None,
) -> Batches:
    """Returns this process's part of super-batches `start_step`, `start_step + 1`, ... without end.

    Every batch is a dict of arrays with n rows: `image` uint8 [n h w 3], `text`
    int32 [n l], `id` int32 [n], `<prefix>image` and `<prefix>text` of the views that differ from
    the learner's, and, where the source has them, `label` int32 [n] and `is_noisy` bool [n].

    The place of a record that cannot be read or has no caption is taken by the one that follows it
    in the data set, and so on.

    Args:
        source: the examples.
        config: shuffling, threads and limits.
        views: by key prefix, what each model sees; "" is the learner.
        batch_size: B, rows of a global super-batch. If it is larger than the data set, a
            super-batch holds examples more than once, which is warned about.
        seed: of the order and the choice of captions; in [0, 2^32).
        start_step: the first super-batch.
        rows: the rows of every super-batch that this process reads. None: all B.
        counters: counts skipped records.

    Raises:
        ConfigError: the data set is empty, a vocabulary file is missing, or there is no view "".
        InputError: from `next`: `config.max_skipped_in_a_row` records in a row are unreadable.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"The seed of the input must be in [0, 2^32), got {seed}.")
    counters = counters or InputCounters()
    rows = np.arange(batch_size) if rows is None else rows
    reader = _Reader(source, config, counters)
    known = _known_fields(source, config)
    render = _Render(views)
    if batch_size > len(source):
        logging.warning(
            "A super-batch of %d rows is larger than the data set %s of %d examples: it holds "
            "examples more than once.",
            *(batch_size, source.name, len(source)),
        )
    order = grain.MapDataset.range(len(source)).seed(seed)
    order = (order.shuffle() if config.shuffle else order).repeat()
    order[0]  # grain sets up its bookkeeping at the first access, which must not be concurrent

    def row(k: int) -> Row:
        step, i = divmod(k, len(rows))
        draw = step * batch_size + int(rows[i])
        example = reader.read_from(int(order[draw]))
        texts = example.texts
        several = config.caption == "random" and len(texts) > 1
        text = texts[_random(seed, draw) % len(texts)] if several else texts[0]
        return render(example.image, text) | example.fields(known)

    examples = grain.MapDataset.range(start_step * len(rows), sys.maxsize).map(row)
    return Batches(examples, len(rows), render.stack, config)


def eval_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    max_examples: int | None = None,
    captions: int = 1,
    rows: Int[np.ndarray, " n"] | None = None,
    config: DataConfig | None = None,
    counters: InputCounters | None = None,
) -> Batches:
    """Returns every example once, in order: this process's part of each global batch.

    All processes get the same number of batches. A batch has n rows:
    `image` uint8 [n h w 3]; `text` int32 [n l], the first caption; `texts` int32 [n k l], the first
    k captions, and `texts_mask` bool [n k], whether there are so many; `id` int32 [n]; `mask` bool
    [n], False where the data set is at its end or a record cannot be read (such a row is zeros,
    `id` and `label` -1); `label` and `is_noisy` [n] where the source has them.

    Args:
        source: the examples.
        view: resolution and tokenizer of the model.
        batch_size: rows of a global batch.
        max_examples: stop after so many examples. None: all.
        captions: k, the most captions of one picture that are wanted.
        rows: the rows of every global batch that this process reads. None: all of them.
        config: threads and limits. None: the defaults.
        counters: counts records that cannot be read.

    Raises:
        ConfigError: the data set is empty.
    """
    config = config or DataConfig()
    rows = np.arange(batch_size) if rows is None else rows
    reader = _Reader(source, config, counters or InputCounters())
    known = _known_fields(source, config)
    tokenizer = get_tokenizer(view.tokenizer)
    count = len(source) if max_examples is None else min(len(source), max_examples)

    def row(k: int) -> Row:
        batch, i = divmod(k, len(rows))
        index = batch * batch_size + int(rows[i])
        example = reader.read(index, need_caption=False) if index < count else "the end"
        usable = isinstance(example, _Example)
        texts = np.zeros((captions, view.tokenizer.length), np.int32)
        mask = np.zeros(captions, bool)
        image = np.zeros((view.resolution, view.resolution, 3), np.uint8)
        if usable:
            image = resize(example.image, view.resolution, view.resize)
            kept = example.texts[:captions]
            texts[: len(kept)], mask[: len(kept)] = tokenizer(kept), True
        fields = (example if usable else _Example(-1, image, (), {})).fields(known)
        row = {"image": image, "text": texts[0], "texts": texts, "texts_mask": mask}
        return row | {"mask": np.bool_(usable)} | fields

    examples = grain.MapDataset.range(-(-count // batch_size) * len(rows)).map(row)
    return Batches(examples, len(rows), _stack, config)


@dataclasses.dataclass(frozen=True)
class _Example:
    """A record that was read and decoded."""

    index: int
    image: np.ndarray  # uint8 [h w 3], any size
    texts: tuple[str, ...]  # captions that are not blank
    record: Mapping[str, Any]

    def fields(self, known: Sequence[str]) -> Row:
        """`id` and the `known` ones of the optional fields."""
        optional = {
            "label": np.int32(self.record.get("label", -1)),
            "is_noisy": np.bool_(self.record.get("is_noisy", False)),
        }
        return {"id": np.int32(self.index)} | {name: optional[name] for name in known}


class _Reader:
    """Reads and decodes records, and counts those that it can't."""

    def __init__(self, source: Source, config: DataConfig, counters: InputCounters):
        check_size(source)
        self._source, self._config, self._counters = source, config, counters

    def read_from(self, index: int, need_caption: bool = True) -> _Example:
        """The first usable example at or after `index`, from the start again at the end."""
        count, limit = len(self._source), self._config.max_skipped_in_a_row
        for k in range(limit):
            example = self.read((index + k) % count, need_caption)
            if isinstance(example, _Example):
                return example
        raise InputError(
            f"{limit} records in a row of {self._source.name} cannot be used, from number "
            f"{index % count} on; the last one, number {(index + limit - 1) % count}: {example}. "
            "Check that the data set was copied completely, prepare it again, or raise "
            "data.max_skipped_in_a_row."
        )

    def read(self, index: int, need_caption: bool) -> "_Example | str":
        """Example `index`, or, counted, the reason why it can't be used."""
        try:
            record = self._source[index]
            image = record["image"]
            if isinstance(image, bytes):
                image = decode(image, self._config.max_pixels)
            texts = tuple(text for text in record["texts"] if text.strip())
            if texts or not need_caption:
                return _Example(index, image, texts, record)
            reason = "it has no caption"
        except (RecordError, DecodeError) as error:
            reason = str(error)
        self._counters.skip(self._source.name, index, reason)
        return reason


def _known_fields(source: Source, config: DataConfig) -> tuple[str, ...]:
    """The optional fields of the first readable record: all batches have the same keys."""
    first = _Reader(source, config, InputCounters()).read_from(0, need_caption=False)
    return tuple(name for name in ("label", "is_noisy") if name in first.record)


class _Render:
    """Makes what each model sees of an example; what several models see alike is made once."""

    def __init__(self, views: Mapping[str, View]):
        if "" not in views:
            raise ConfigError(f'No view is the learner\'s (""); there are: {sorted(views)}.')
        images = {prefix: (view.resolution, view.resize) for prefix, view in views.items()}
        texts = {prefix: view.tokenizer for prefix, view in views.items()}
        self._images = _sharers(images)
        self._texts = [(get_tokenizer(key), prefixes) for key, prefixes in _sharers(texts)]

    def __call__(self, image: np.ndarray, text: str) -> Row:
        row = {}
        for (resolution, mode), prefixes in self._images:
            row[f"{prefixes[0]}image"] = resize(image, resolution, mode)
        for tokenizer, prefixes in self._texts:
            row[f"{prefixes[0]}text"] = tokenizer([text])[0]
        return row

    def stack(self, rows: Sequence[Row]) -> Batch:
        """A batch of `rows`; views that are alike are the same array."""
        batch = _stack(rows)
        for kind, groups in (("image", self._images), ("text", self._texts)):
            for _, (first, *others) in groups:
                batch |= {f"{prefix}{kind}": batch[f"{first}{kind}"] for prefix in others}
        return batch


def _sharers(keys: Mapping[str, Any]) -> list[tuple[Any, list[str]]]:
    """Every key with the prefixes that share it; whoever shares the learner's is left out."""
    groups = {keys[""]: [""]}
    for prefix, key in keys.items():
        if key != keys[""]:
            groups.setdefault(key, []).append(prefix)
    return list(groups.items())


def _stack(rows: Sequence[Row]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _random(seed: int, draw: int) -> int:
    """A random 64-bit integer for place `draw` of the whole run; Philox is fixed by definition."""
    counter = np.array([0, draw, 0, 0], np.uint64)
    return int(np.random.Philox(key=seed, counter=counter).random_raw())
