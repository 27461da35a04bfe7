"""Reads embeddings by example id, a whole batch at a time."""

import os
import pathlib
import threading

import numpy as np
from jaxtyping import Float, Int, UInt8

from aced.cache import entries, precision
from aced.cache.description import (
    AGAIN,
    COMPLETE,
    TOWERS,
    CacheError,
    Description,
    read_complete,
)


class Cache:
    """The embeddings of all examples of a data set by one model; thread-safe.

    Attributes:
        description: the content of `cache.json`.
        missing: the reason for each example without embeddings, by id.
        towers: "image", "text" or both: the towers with embeddings.
    """

    def __init__(self, folder: str | os.PathLike, description: Description | None = None):
        """Opens a cache; its shards are opened when they are first read.

        Args:
            folder: of the cache.
            description: the content of its `cache.json`; None: read from the file.

        Raises:
            CacheError: the cache is incomplete, or a file is missing or truncated.
        """
        self.description = description or read_complete(folder)
        self.missing = self.description.missing
        self.towers = TOWERS[self.description.plan.towers]
        self._folder, self._plan = pathlib.Path(folder), self.description.plan
        for number, shard in enumerate(self.description.shards):
            path = self._plan.path(self._folder, number)
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                problem = f"has {size} bytes instead of {shard.bytes} (in {COMPLETE})"
                if size is None:
                    problem = "is missing"
                raise CacheError(f"Shard {path} {problem}; {AGAIN}.")
        self._readers: dict[int, entries.EntryReader] = {}
        self._lock = threading.Lock()

    def read(
        self,
        ids: Int[np.ndarray, " n"],
        captions: Int[np.ndarray, " n"],
        augmentations: Int[np.ndarray, " n"] | None = None,
    ) -> dict[str, Float[np.ndarray, "n d"]]:
        """Returns `zimg` and `ztxt` [n d], or one of them.

        Args:
            ids: ids of examples that are not `missing`, in any order; repeated ids are allowed.
            captions: the index of each example's caption among the non-blank ones.
            augmentations: the number of each example's stored augmentation. None: the first one, or
                the whole picture if there are none.

        Raises:
            CacheError: a file is damaged, or an example lacks the caption or the augmentation.
        """
        numbers = ids // self._plan.shard_size
        entries_by_row: list[np.ndarray | None] = [None] * len(ids)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            shard_entries = self._entries(int(number), ids[places].tolist())
            for place, rows in zip(places, shard_entries, strict=True):
                entries_by_row[place] = rows
        out = {}
        pictures = self._plan.pictures
        if self._plan.has("image"):
            views = np.zeros_like(ids) if augmentations is None else augmentations
            if views.max(initial=0) >= pictures:
                raise CacheError(
                    f"{self._folder} has {self._plan.augmentations} stored augmentations of each "
                    f"picture, but number {views.max()} is read; see data.augmentations."
                )
            out["zimg"] = self._decode(_chosen(entries_by_row, views), ids, "image")
        if self._plan.has("text"):
            out["ztxt"] = self._decode(_chosen(entries_by_row, pictures + captions), ids, "text")
        return out

    def _entries(self, number: int, ids: list[int]) -> list[np.ndarray]:
        path = self._plan.path(self._folder, number)
        try:
            with self._lock:  # opens each file once; reads are thread-safe
                if number not in self._readers:
                    within = self._plan.range(number)
                    self._readers[number] = entries.EntryReader(
                        path, within.start, len(within), self._plan.row_bytes
                    )
            return self._readers[number].read(ids)
        except ValueError as error:
            raise CacheError(f"{path} is damaged: {error}; {AGAIN}.") from error

    def _decode(self, rows: list[np.ndarray], ids: np.ndarray, tower: str) -> np.ndarray:
        for i, row in zip(ids.tolist(), rows, strict=True):
            if not len(row):
                reason = self.missing.get(i, "it has fewer captions in the cache than in the data")
                raise CacheError(
                    f"{self._folder} has no embedding of the {tower} of example {i}: {reason}."
                )
        return precision.decode(np.concatenate(rows), self._plan.precision)


def _chosen(
    entries_by_row: list[np.ndarray], places: Int[np.ndarray, " n"]
) -> list[UInt8[np.ndarray, "_ bytes"]]:
    """One row of each entry, or none if it has no such row."""
    pairs = zip(entries_by_row, places.tolist(), strict=True)
    return [rows[place : place + 1] for rows, place in pairs]
