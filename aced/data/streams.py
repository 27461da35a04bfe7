"""Data sets that a run reads side by side, each with its own order, epochs and length."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from aced.config import ConfigError
from aced.data.batch_spec import EMBEDDINGS, View, image_arrays, text_arrays
from aced.data.concepts import MOST
from aced.data.picks import PicksAhead
from aced.data.pipeline import Batch, Batches
from aced.data.reader import OPTIONAL_FIELDS, known_fields
from aced.data.records import Source
from aced.data.sources import DataConfig

Shape = tuple[tuple[int, ...], Any]


@dataclasses.dataclass(frozen=True)
class Stream:
    """A data set that a method reads; its arrays are those of `pipeline.train_batches`."""

    data: DataConfig
    rows: int  # examples per step, over all processes
    views: Mapping[str, View]  # by key prefix; if empty, only embeddings are read
    caches: Mapping[str, Any]  # by key prefix, the resolved `FrozenConfig`s of cached embeddings
    towers: tuple[str, ...] = ("image", "text")  # towers that the caches must have
    needs: tuple[str, ...] = ()  # optional fields that every example must have
    ahead: int = 0  # super-batches by which it is ahead of the step
    concepts: str = ""  # file with a list of the concepts that are found in captions; empty: none
    # B, if the rows are the picks from super-batches of B. None: the rows are whole super-batches
    picked_from: int | None = None

    def shapes(self) -> dict[str, Shape]:
        """Shape and type of a row of each array, without optional fields of the source."""
        shapes: dict[str, Shape] = {"id": ((), jnp.int32)}
        shapes |= {
            name: (OPTIONAL_FIELDS[name].shape, OPTIONAL_FIELDS[name].dtype) for name in self.needs
        }
        for look, names in image_arrays(self.views).items():
            pixels = (look.resolution, look.resolution, 3), jnp.uint8
            shapes |= dict.fromkeys(names, pixels)
        for tokenizer, names in text_arrays(self.views).items():
            shapes |= dict.fromkeys(names, ((tokenizer.length,), jnp.int32))
        if any(view.answers for view in self.views.values()):
            shapes["given"] = (), jnp.int32
        if self.concepts:
            shapes["concepts"] = (MOST,), jnp.int32
        for prefix, item in self.caches.items():
            for tower in self.towers:
                shapes[f"{prefix}{EMBEDDINGS[tower]}"] = (item.width,), jnp.float32
        return shapes

    def check(self, source: Source) -> None:
        """Raises a ConfigError if the data lack a field that is needed."""
        missing = sorted(set(self.needs) - set(known_fields(source, self.data)))
        if missing:
            raise ConfigError(
                f"The method reads the {missing[0]!r} of every example, but the first example of "
                f"{source.name} has none; prepare the data with --label_column, or choose other "
                "data."
            )


class SideBySide(Iterator[Batch], contextlib.AbstractContextManager):
    """Joins the batches of several streams; every key gets the prefix of its stream.

    Attributes:
        picks: what a stream of picks waits for; the end of the block closes it.
    """

    def __init__(self, streams: Mapping[str, Batches], picks: PicksAhead):
        self._streams, self.picks = streams, picks

    def __next__(self) -> dict[str, np.ndarray]:
        return {
            f"{prefix}{name}": rows
            for prefix, batches in self._streams.items()
            for name, rows in next(batches).items()
        }

    def __exit__(self, *error: object) -> None:
        self.picks.close()
        for batches in self._streams.values():
            batches.close()
