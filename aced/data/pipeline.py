"""The input pipeline: examples are shuffled, decoded, tokenized and stacked by reader threads.

Row i of global super-batch t is determined by (seed, t, i). So training can start at any step,
there is no iterator state to save, and the rows do not depend on the number of processes.
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import Float, Int

from aced.config import ConfigError
from aced.data import order as orders
from aced.data.answers import after
from aced.data.batch_spec import View, image_arrays, text_arrays
from aced.data.captions import pick
from aced.data.concepts import concept_list
from aced.data.draws import ANSWER, AUGMENTATION, CAPTION, CROP, Draws
from aced.data.images.augment import AugmentConfig, augment, check_single, stored
from aced.data.images.pictures import Cut, Cuts, Look
from aced.data.picks import PicksAhead
from aced.data.reader import Example, InputCounters, InputError, Reader, Row, known_fields
from aced.data.records import Source
from aced.data.sources import DataConfig
from aced.data.tokenizers import get_tokenizer

Batch = dict[str, np.ndarray]

_AT_ONCE = 8  # most rows that a thread makes per hand-over


@runtime_checkable
class StoredEmbeddings(Protocol):
    """Embeddings that come with the examples; `aced.cache.Cache` is one."""

    missing: Mapping[int, str]  # the examples without embeddings, by id, and why
    towers: Sequence[str]  # "image", "text" or both

    def read(
        self,
        ids: Int[np.ndarray, " n"],
        captions: Int[np.ndarray, " n"],
        augmentations: Int[np.ndarray, " n"],
    ) -> dict[str, Float[np.ndarray, "n d"]]:
        """Returns `zimg` and `ztxt` [n d], or one of them, of these captions of these examples.

        `augmentations` are the numbers of the stored augmentations; 0 without any.
        """
        ...


class Batches(Iterator[Any], contextlib.AbstractContextManager):
    """An iterator over batches of `batch_size` rows, joined by `stack`.

    Threads stop with `close()` or at the end of a `with` block.
    """

    def __init__(
        self,
        row: Callable[[int], Any],
        numbers: range,
        batch_size: int,
        stack: Callable[[Sequence[Any]], Any],
        config: DataConfig,
    ):
        """Computes `row(k)` for each k of `numbers`, whose count is a multiple of `batch_size`.

        A thread makes several rows at a time: each hand-over takes the GIL and wakes a thread.
        """
        import grain  # here, so that help and errors in settings are fast

        size = max(size for size in range(1, _AT_ONCE + 1) if batch_size % size == 0)

        def some(i: int) -> list[Any]:
            return [row(k) for k in numbers[i * size : (i + 1) * size]]

        def stack_all(parts: Sequence[list[Any]]) -> Any:
            return stack(list(itertools.chain.from_iterable(parts)))

        threads = config.num_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        parts = grain.MapDataset.range(len(numbers) // size).map(some)
        batches = parts.to_iter_dataset(options).batch(batch_size // size, batch_fn=stack_all)
        if threads and config.prefetch:
            batches = grain.experimental.ThreadPrefetchIterDataset(
                batches, prefetch_buffer_size=config.prefetch
            )
        self._iterator = [iter(batches)]
        # Closes without `close`, too: grain's iterators print errors at the interpreter's exit.
        self._finalize = weakref.finalize(
            self, lambda iterator: iterator.pop().close(), self._iterator
        )

    def __next__(self) -> Any:
        if not self._iterator:
            raise InputError("These batches are closed; make new ones that start at this step.")
        return next(self._iterator[0])

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads, which would otherwise read until the process ends."""
        self._finalize()


def train_batches(
    source: Source,
    config: DataConfig,
    views: Mapping[str, View],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    steps: int | None = None,
    rows: Int[np.ndarray, " n"] | None = None,
    counters: InputCounters | None = None,
    caches: Mapping[str, StoredEmbeddings] | None = None,
    missing: Sequence[Mapping[int, str]] = (),
    picks: PicksAhead | None = None,
    concepts: str = "",
) -> Batches:
    """Returns this process's part of super-batches `start_step`, `start_step + 1`, and so on.

    Every batch is a dict of arrays with n rows: `image` uint8 [n h w 3], `text`
    int32 [n l], `id` int32 [n], `<prefix>image` and `<prefix>text` of the views that differ from
    the learner's, `<prefix>zimg` and `<prefix>ztxt` float32 [n d] of the caches, and, where the
    source has them, `label` int32 [n], `is_noisy` bool [n], `source` int32 [n], the number of the
    member of a mixture, and `answer_ids` int32 [n 10] and `answer_scores` float32 [n 10], see
    `answers.Targets`.

    With a list of `concepts`, `concepts` int32 [n 32] are those of the caption, see
    `concepts.ConceptList`. If a view has `answers`, the caption is a question: `text`
    is the question and a random one of its answers that fit after it, and `given` int32 [n] the
    number of the question's words.

    A record that cannot be read, has no caption (or no answer that fits), is dropped by the filters
    or is missing in a cache is replaced by a random one of the data set, or of the same member of a
    mixture, which is determined by the seed and the row.

    Args:
        source: the examples.
        config: shuffling, threads and limits.
        views: views of the models by key prefix; "" is the learner. If empty, nothing is decoded.
        batch_size: B, rows of a global super-batch. If these are more than the data set or the
            member of a mixture has, examples are repeated within it, with a warning.
        seed: seed of the order and the choice of captions; in [0, 2^32).
        start_step: the first super-batch.
        steps: the number of super-batches; what is after them is not read. None: no end.
        rows: the rows of every super-batch that this process reads. None: all B. With `picks`
            those of its picks.
        counters: counts skipped records.
        caches: stored embeddings of the examples by key prefix; those of texts belong to the drawn
            caption.
        missing: further examples that count as missing in a cache, by id, and why; of the caches
            of another reader of the same super-batches.
        picks: of the super-batches; only these rows are read, with the examples that were scored
            or, if one is unusable with these views and caches, with its next replacement. Close
            them first, because the threads wait for them.
        concepts: file with a list of concepts, one in each line. Empty: none are looked for.

    Raises:
        ConfigError: the data set is empty, a vocabulary file is missing, or the view "" is missing.
        InputError: from `next`: `config.max_skipped_in_a_row` records in a row are unreadable, or
            `config.filters.max_in_a_row` are dropped, or no example is usable.
        CacheError: from `next`: embeddings cannot be read.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"The seed of the input must be in [0, 2^32), got {seed}.")
    counters = counters or InputCounters()
    rows = np.arange(batch_size) if rows is None else rows
    caches = caches or {}
    render = _Render(views, concepts)
    missing = [*missing, *(cache.missing for cache in caches.values())]
    answered = any(view.answers for view in views.values())
    tokenizer = get_tokenizer(views[""].tokenizer) if answered else None
    reader = Reader(source, config, counters, render.looks, missing, answer_tokenizer=tokenizer)
    known = known_fields(source, config)
    if picks is None:
        _warn_of_copies(source, batch_size)
    order = orders.of(source, seed=seed, shuffle=config.shuffle, rows=batch_size)

    reads_texts = render.reads_texts or any("text" in cache.towers for cache in caches.values())
    augmentation, cuts = _augmentation(views, config, seed)

    def row(k: int) -> Row:
        step, i = divmod(k, len(rows))
        place, scored = int(rows[i]), None
        if picks is not None:
            place, scored = picks.of(step)[:, place].tolist()
        draw = step * batch_size + place
        tries = order.tries(draw)
        if scored is not None:
            tries = itertools.dropwhile(lambda index: index != scored, tries)
        example = reader.first_usable(tries, reads_texts, cuts and cuts(draw))
        captions, caption = example.captions if reads_texts else (), 0
        if captions:
            caption = captions[0]
            if config.caption == "random" and len(captions) > 1:
                draws, weights = Draws(seed, CAPTION, draw), config.caption_weights
                caption = pick(captions, example.kinds, weights, draws)
        text = example.texts[caption] if captions else ""
        row = example.fields(known) | {"caption": np.int32(caption)}
        row["augmentation"] = np.int32(augmentation(draw))
        if answered:
            fitting = example.answers[captions.index(caption)]
            row |= {"given": render.words(text)}
            text = after(text, Draws(seed, ANSWER, draw).pick(fitting))
        return render(example.images, text) | row

    def stack(rows: Sequence[Row]) -> Batch:
        batch = render.stack(rows)
        captions, augmentations = batch.pop("caption"), batch.pop("augmentation")
        for prefix, cache in caches.items():  # by batch, which is far faster than by row
            embeddings = cache.read(batch["id"], captions, augmentations)
            batch |= {f"{prefix}{name}": z for name, z in embeddings.items()}
        return batch

    end = sys.maxsize if steps is None else (start_step + steps) * len(rows)
    numbers = range(start_step * len(rows), end)
    return Batches(row, numbers, len(rows), stack, config)


def eval_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    max_examples: int | None = None,
    captions: int = 1,
    pictures: int = 1,
    rows: Int[np.ndarray, " n"] | None = None,
    config: DataConfig | None = None,
    counters: InputCounters | None = None,
) -> Batches:
    """Returns every example once, in order: this process's part of each global batch.

    All processes get the same number of batches. A batch has n rows:
    `image` uint8 [n h w 3], and with two pictures `second/image`, of the same shape; `text`
    int32 [n l], the first caption; `texts` int32 [n k l], the first k captions, and `texts_mask`
    bool [n k], whether each exists; `id` int32 [n]; `mask` bool [n], False after the end of the
    data set and for unreadable records (such a row is zeros, `id` and `label` -1); `label` and
    other fields of `train_batches` [n ...] if the source has them.

    Args:
        source: the examples.
        view: resolution and tokenizer of the model.
        batch_size: rows of a global batch.
        max_examples: stop after this many examples. None: all.
        captions: k, the most captions per picture.
        pictures: pictures per record, 1 or 2; with 2, records with one picture are unreadable.
        rows: the rows of every global batch that this process reads. None: all of them.
        config: threads and limits. None: the defaults. Pictures are always decoded exactly and in
            full.
        counters: counts unreadable records.

    Raises:
        ConfigError: the data set is empty.
    """
    config = dataclasses.replace(config or DataConfig(), decode="exact", thumbnails=False)
    rows = np.arange(batch_size) if rows is None else rows
    views = view.of_pictures(pictures)
    names, looks = [f"{prefix}image" for prefix in views], [v.look for v in views.values()]
    reader = Reader(source, config, counters or InputCounters(), looks)
    known = known_fields(source, config)
    tokenizer = get_tokenizer(view.tokenizer)
    count = len(source) if max_examples is None else min(len(source), max_examples)

    def row(k: int) -> Row:
        batch, i = divmod(k, len(rows))
        index = batch * batch_size + int(rows[i])
        example = reader.read(index, need_caption=False) if index < count else "the end"
        usable = isinstance(example, Example)
        texts = np.zeros((captions, view.tokenizer.length), np.int32)
        mask = np.zeros(captions, bool)
        images = [np.zeros((view.resolution, view.resolution, 3), np.uint8)] * pictures
        if usable:
            images = example.images
            kept = [example.texts[i] for i in example.captions[:captions]]
            texts[: len(kept)], mask[: len(kept)] = tokenizer(kept), True
        fields = (example if usable else Example(-1, images, (), {})).fields(known)
        row = {"text": texts[0], "texts": texts, "texts_mask": mask, "mask": np.bool_(usable)}
        return dict(zip(names, images, strict=True)) | row | fields

    numbers = range(-(-count // batch_size) * len(rows))
    return Batches(row, numbers, len(rows), _stack, config)


def _warn_of_copies(source: Source, rows: int) -> None:
    parts = getattr(source, "parts", ())
    total = sum(part.weight for part in parts)
    shares = [(part.source, rows * part.weight / total, part.name) for part in parts]
    for data, share, member in shares or [(source, rows, "")]:
        if share > len(data):
            logging.warning(
                "A super-batch has %d rows of the data set %s of %d examples, so examples are "
                "repeated, and a copy counts as a wrong partner. Lower batch_size, %s.",
                round(share),
                member or data.name,
                len(data),
                f"or data.mixture.{member}.weight" if member else "or selection.filter_ratio",
            )


def _augmentation(
    views: Mapping[str, View], config: DataConfig, seed: int
) -> tuple[Callable[[int], int], Callable[[int], Cuts] | None]:
    """The number of the stored augmentation, and the parts of the pictures to use, by draw.

    The former is 0 without stored augmentations, the latter None without any.
    """

    def first(draw: int) -> int:
        return 0

    changed = [view.augment for view in views.values() if view.augment != AugmentConfig()]
    for own in changed:
        check_single(config.augmentations, own)
    if config.augmentations:
        return _stored(config, seed)
    if not changed:
        return first, None
    if len(views) > 1:
        raise ConfigError(
            "Only a single view may be augmented, because those of other models or of a second "
            "picture would differ. Set augment to its default."
        )

    def cuts(draw: int) -> Cuts:
        def of_example(index: int) -> list[Cut]:
            # From the beginning for each replacement, whether or not the one before was cut.
            return [functools.partial(augment, config=changed[0], rng=Draws(seed, CROP, draw))]

        return of_example

    return first, cuts


def _stored(config: DataConfig, seed: int) -> tuple[Callable[[int], int], Callable[[int], Cuts]]:
    def number(draw: int) -> int:
        return Draws(seed, AUGMENTATION, draw).below(config.augmentations)

    def cuts(draw: int) -> Cuts:
        view = functools.partial(stored, config=config.augment, number=number(draw))
        return lambda index: [functools.partial(view, index=index)]

    return number, cuts


class _Render:
    """Arrays of an example for each model; equal views share an array."""

    def __init__(self, views: Mapping[str, View], concepts: str):
        if views and "" not in views:
            raise ConfigError(f'No view is the learner\'s (""); there are: {sorted(views)}.')
        self._images, texts = image_arrays(views), text_arrays(views)
        self.reads_texts = bool(texts or concepts)
        self._texts = [(get_tokenizer(config), names) for config, names in texts.items()]
        self._concepts = concept_list(concepts) if concepts else None

    @property
    def looks(self) -> list[Look]:
        """The distinct looks, one per picture that `__call__` takes."""
        return list(self._images)

    def __call__(self, images: Sequence[np.ndarray], text: str) -> Row:
        row = {}
        for image, (name, *_) in zip(images, self._images.values(), strict=True):
            row[name] = image
        for tokenizer, (name, *_) in self._texts:
            row[name] = tokenizer([text])[0]
        if self._concepts:
            row["concepts"] = self._concepts(text)
        return row

    def words(self, text: str) -> np.int32:
        """Ids of the learner's text up to its end, which is not counted."""
        tokenizer, _ = self._texts[0]
        ids = tokenizer([text])[0].tolist()
        return np.int32(ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids))

    def stack(self, rows: Sequence[Row]) -> Batch:
        """A batch of `rows`; equal views share an array."""
        batch = _stack(rows)
        for first, *others in (*self._images.values(), *(names for _, names in self._texts)):
            batch |= dict.fromkeys(others, batch[first])
        return batch


def _stack(rows: Sequence[Row]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
