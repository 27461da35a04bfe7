"""Batches of chosen examples with all of their captions and views, for embedding caches."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from aced.data.batch_spec import View
from aced.data.images.augment import stored
from aced.data.images.filters import FilterConfig
from aced.data.images.pictures import WHOLE, Cut, Look, Transform
from aced.data.images.transforms import ResizeConfig
from aced.data.pipeline import Batches
from aced.data.reader import Example, InputCounters, Reader
from aced.data.records import Source
from aced.data.sources import DataConfig
from aced.data.tokenizers import get_tokenizer


@dataclasses.dataclass(frozen=True)
class Complete:
    """A batch of n examples; rows without an example are zeros."""

    ids: Int[np.ndarray, " n"]  # -1 where no example was requested
    # The stored augmentations of each picture, or the whole picture; floats of an `OwnView`.
    image: UInt8[np.ndarray, "n k h w 3"] | Float[np.ndarray, "n k 3 h w"]
    texts: tuple[Int[np.ndarray, "_ *l"], ...]  # the captions of each example, any number
    reasons: tuple[str | None, ...]  # why a requested example is missing


@dataclasses.dataclass(frozen=True)
class OwnView:
    """The view of a model with a transform and a tokenizer of its own."""

    transform: Transform  # of the full picture
    tokenize: Callable[[Sequence[str]], Int[np.ndarray, "n *l"]]

    @property
    def look(self) -> Look:
        """The full picture, transformed."""
        return Look(WHOLE, ResizeConfig(), transform=self.transform)

    def blank(self) -> Float[np.ndarray, "3 r s"]:
        """The input of a row without an example."""
        return np.zeros_like(self.transform(np.zeros((64, 64, 3), np.uint8)))


def complete_batches(
    source: Source,
    view: View | OwnView,
    index_of: Callable[[int], int],
    *,
    count: int,
    batch_size: int,
    towers: Sequence[str],
    config: DataConfig,
) -> Batches:
    """Returns the examples `index_of(0)`, ..., `index_of(count - 1)`, in batches (`Complete`).

    Args:
        source: the examples.
        view: resolution and tokenizer of the model, or its own transform and tokenizer.
        index_of: the example of a row, or -1 for none.
        count: number of rows; a multiple of `batch_size`.
        batch_size: n.
        towers: "image", "text" or both. Without "image" nothing is decoded and `image` has no
            pixels; without "text" there are no captions. With "text", an example without captions
            counts as unreadable.
        config: threads, limits, decoding and stored augmentations; filters and weights of captions
            are ignored.
    """
    # Another run may use an example that this run's filters drop.
    config = dataclasses.replace(config, filters=FilterConfig(), caption_weights={})
    looks = [view.look] if "image" in towers else []
    reader = Reader(source, config, InputCounters(), looks)
    if isinstance(view, OwnView):
        tokenize, no_texts = view.tokenize, view.tokenize([""])[:0]
        blank = view.blank() if looks else np.zeros((3, 0, 0), np.float32)
    else:
        tokenize = get_tokenizer(view.tokenizer)
        no_texts, side = tokenize(()), view.resolution if looks else 0
        blank = np.zeros((side, side, 3), np.uint8)
    blanks = np.stack([blank] * max(1, config.augmentations if looks else 0))

    def cuts(index: int) -> list[Cut]:
        view = functools.partial(stored, config=config.augment, index=index)
        return [functools.partial(view, number=i) for i in range(config.augmentations)]

    def row(k: int) -> dict[str, Any]:
        index = index_of(k)
        example = reader.read(index, "text" in towers, cuts) if index >= 0 else None
        if isinstance(example, Example):
            image = np.stack(example.images) if looks else blanks
            texts = tokenize(example.texts) if "text" in towers else no_texts
            return {"id": index, "image": image, "texts": texts, "reason": None}
        return {"id": index, "image": blanks, "texts": no_texts, "reason": example}

    def stack(rows: Sequence[dict[str, Any]]) -> Complete:
        return Complete(
            ids=np.array([row["id"] for row in rows], np.int64),
            image=np.stack([row["image"] for row in rows]),
            texts=tuple(row["texts"] for row in rows),
            reasons=tuple(row["reason"] for row in rows),
        )

    return Batches(row, range(count), batch_size, stack, config)
