"""Embeds every example of a data set once, shard by shard, on all devices.

Each process reads and writes its own shards, while all devices embed together. A shard is complete
when its summary exists, which is written last. Incomplete shards are made again from their first
example, so that a killed and resumed pass gives the same bytes.
"""

import abc
import collections
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from aced.cache import calibration, description, entries, precision
from aced.cache.description import COMPLETE, PLAN, Description, Plan, Shard
from aced.cache.libraries import LibraryModel
from aced.cache.reader import Cache
from aced.config import ConfigError
from aced.data.batch_spec import View
from aced.data.complete import Complete, OwnView, complete_batches
from aced.data.records import Source
from aced.data.sources import DataConfig
from aced.files import ownership
from aced.metrics import progress
from aced.metrics.writer import Budget
from aced.models.two_tower import TwoTower
from aced.parallel import distributed
from aced.parallel import mesh as meshes
from aced.parallel.preemption import Preemption
from aced.parallel.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Summary:
    """Statistics of a complete shard, kept until all are complete."""

    shard: Shard
    errors: dict[str, Any]  # the sums of `precision.Errors`


def begin(plan: Plan, folder: pathlib.Path) -> list[int]:
    """Begins or resumes the cache `plan` in `folder`; returns the shards left to make.

    All processes call this.

    Raises:
        CacheError: `folder` has another cache, or a complete one that lacks a part.
        ConfigError: `folder` has other files.
    """
    distributed.check_shared(folder)
    incomplete = np.ones(plan.shards, np.int32)
    if jax.process_index() == 0:
        incomplete = _begin(plan, folder)
    return np.flatnonzero(distributed.from_first(incomplete)).tolist()


def _begin(plan: Plan, folder: pathlib.Path) -> Int[np.ndarray, " shards"]:
    folder.mkdir(parents=True, exist_ok=True)
    existing = None
    if (folder / COMPLETE).exists():
        existing = description.read_complete(folder).plan
    elif (folder / PLAN).exists():
        existing = description.read(folder / PLAN, Plan)
    if existing is not None and (lines := description.differences(existing, plan)):
        listed = "\n".join(f"  {line}" for line in lines)
        raise description.CacheError(
            f"{folder} holds another cache:\n{listed}\nSet them back to resume that one, or choose "
            "another folder for a new one."
        )
    if existing is None:
        ours = (f"{PLAN}.part", ownership.FILE)
        others = sorted(path.name for path in folder.iterdir() if path.name not in ours)
        if others:
            raise ConfigError(f"{folder} is not empty ({others[0]}); choose a new folder.")
        description.write(folder / PLAN, plan)
    for path in folder.iterdir():  # partial files of a killed process
        if path.suffix == ".part" and (entries.is_ours(path.name) or path.stem in (PLAN, COMPLETE)):
            path.unlink()
    if (folder / COMPLETE).exists():
        Cache(folder)  # raises an error for a shard that is missing or was cut off since
        _tidy(plan, folder)
        return np.zeros(plan.shards, np.int32)
    incomplete = np.ones(plan.shards, np.int32)
    for shard in range(plan.shards):
        path = plan.path(folder, shard)
        if (file := path.with_suffix(".json")).exists():
            size = description.read(file, Summary).shard.bytes
            incomplete[shard] = not path.is_file() or path.stat().st_size != size
    return incomplete


def steps_of_wave(examples: int, shard_size: int, rows: int) -> int:
    """Steps in which every reader embeds one shard, `rows` examples at a time.

    Args:
        examples: of the data set.
        shard_size: examples of a shard; the last one may have fewer.
        rows: examples that a reader embeds per step.
    """
    return -(-min(examples, shard_size) // rows)


class Maker(abc.ABC):
    """Embeds the examples of shards, batch by batch, and writes them."""

    def __init__(
        self,
        plan: Plan,
        folder: pathlib.Path,
        source: Source,
        data: DataConfig,
        view: View | OwnView,
        mesh: Mesh,
        batch_size: int,
    ):
        """Prepares to make the shards of `plan` in `folder`, after `begin`.

        Args:
            plan: the settings of the cache.
            folder: of the cache.
            source: the examples.
            data: how they are read.
            view: how the model reads an example.
            mesh: the devices.
            batch_size: examples per step over all devices.
        """
        self._plan, self._folder = plan, folder
        self._source, self._data, self._view = source, data, view
        self._mesh, self._batch_size = mesh, batch_size
        self._rows = len(meshes.local_rows(mesh, batch_size))
        self._readers = meshes.readers(mesh)

    def run(
        self,
        shards: list[int],
        watchdog: Watchdog,
        line: Callable[[int], progress.Progress] = progress.Progress,
    ) -> int | None:
        """Makes `shards`, which must be the same on all processes.

        Args:
            shards: the numbers of the shards that are not complete.
            watchdog: restarted after every step.
            line: opens the progress line, given the number of steps.

        Returns:
            The exit code if a stop was requested while the last shard was made.

        Raises:
            CacheError: an embedding is not finite.
            SystemExit: with `preemption.EXIT_CODE` after SIGTERM, `INTERRUPTED` after Ctrl-C.
        """
        count = self._readers.count
        waves = [shards[i : i + count] for i in range(0, len(shards), count)]
        # All processes take as many steps per wave as the slowest reader needs.
        steps = steps_of_wave(self._plan.examples, self._plan.shard_size, self._rows)
        steps = distributed.largest(steps)
        index_of = functools.partial(self._index, waves, steps)
        total = steps * len(waves)
        batches = complete_batches(
            self._source,
            self._view,
            index_of,
            count=total * self._rows,
            batch_size=self._rows,
            towers=description.TOWERS[self._plan.towers],
            config=self._data,
        )
        done = self._plan.examples - sum(len(self._plan.range(shard)) for shard in shards)
        known = f"{done:,} of {self._plan.examples:,}"
        logging.info("%s: %s examples are done.", self._folder, known)
        meter = progress.Meter(Budget(self._batch_size, 0, 0))
        shard: _OpenShard | None = None
        with Preemption() as preemption, line(total) as shown, batches:
            for step, (batch, embedded) in enumerate(self._embedded(batches), 1):
                wave = waves[(step - 1) // steps]
                if (step - 1) % steps == 0:
                    shard = self._open(wave)
                if shard is not None:
                    shard.add(batch, *embedded)
                if step % steps == 0 and shard is not None:
                    shard.close()
                watchdog.alive()
                shown.show(step, meter.measure(step))
                if preemption.reached(step):
                    if step == total:
                        return preemption.exit_code
                    if shard is not None and step % steps:
                        shard.discard()
                    logging.warning("The pass is stopped; start the same command again.")
                    sys.exit(preemption.exit_code)
        return None

    def _index(self, waves: list[list[int]], steps: int, place: int) -> int:
        """The example that this process reads at row `place` of the pass; -1: none."""
        wave, row = divmod(place, steps * self._rows)
        shards = waves[wave]
        if self._readers.index >= len(shards):
            return -1
        examples = self._plan.range(shards[self._readers.index])
        return examples[row] if row < len(examples) else -1

    def _open(self, wave: list[int]) -> "_OpenShard | None":
        """The shard of this wave that this process writes; None if it writes none."""
        if not self._readers.is_first or self._readers.index >= len(wave):
            return None
        return _OpenShard(self._plan, self._folder, wave[self._readers.index])

    def _embedded(self, batches: Iterator[Complete]) -> Iterator[tuple[Complete, tuple]]:
        """Every batch with its embeddings; the devices already compute the next batch."""
        running: collections.deque[tuple[Complete, Any]] = collections.deque()
        for batch in batches:
            running.append((batch, self._start(batch)))
            if len(running) > 1:
                yield self._finish(*running.popleft())
        while running:
            yield self._finish(*running.popleft())

    @abc.abstractmethod
    def _start(self, batch: Complete) -> Any:
        """Begins to embed a batch."""

    @abc.abstractmethod
    def _finish(self, batch: Complete, running: Any) -> tuple[Complete, tuple]:
        """Waits for `_start`; returns zimg [n k d] and the ztxt [_ d] of each example, or Nones."""


class ModelMaker(Maker):
    """Embeds with a model of ours, on all devices together."""

    def __init__(
        self,
        plan: Plan,
        folder: pathlib.Path,
        source: Source,
        data: DataConfig,
        params: PyTree,
        mesh: Mesh,
        batch_size: int,
    ):
        """As `Maker`, with the parameters of the model, which are on `mesh`."""
        super().__init__(plan, folder, source, data, View.of(plan.model), mesh, batch_size)
        self._params = params
        self._part = batch_size // meshes.example_shards(mesh)  # examples per device
        tower = TwoTower(plan.model)
        self._embed = {
            name: jax.jit(
                functools.partial(_apply, tower, f"encode_{name}"),
                out_shardings=meshes.by_example(mesh),
            )
            for name in description.TOWERS[plan.towers]
        }

    def _start(self, batch: Complete) -> dict[str, list[jax.Array]]:
        """Sends a batch to the devices, in rounds of as many pictures and texts as examples."""
        inputs: dict[str, list[np.ndarray]] = {"image": list(batch.image.swapaxes(0, 1))}
        if "text" in self._embed:
            parts = [np.concatenate(part) for part in self._parts(batch)]
            most = max(len(part) for part in parts)
            rounds = max(1, distributed.largest(-(-most // self._part)))
            texts = np.zeros((len(parts), rounds * self._part, parts[0].shape[1]), np.int32)
            for into, part in zip(texts, parts, strict=True):
                into[: len(part)] = part
            by_round = texts.reshape(len(parts), rounds, self._part, -1).swapaxes(0, 1)
            inputs["text"] = list(by_round.reshape(rounds, self._rows, -1))
        return {
            name: [
                embed(self._params, meshes.global_batch({name: x}, self._mesh)[name])
                for x in inputs[name]
            ]
            for name, embed in self._embed.items()
        }

    def _finish(
        self, batch: Complete, running: dict[str, list[jax.Array]]
    ) -> tuple[Complete, tuple]:
        zimg, ztxt = None, None
        if "image" in running:
            zimg = np.stack([meshes.local_batch(x) for x in running["image"]], axis=1)
        if "text" in running:
            rounds = np.stack([meshes.local_batch(x) for x in running["text"]])
            parts = rounds.reshape(len(rounds), -1, self._part, rounds.shape[-1]).swapaxes(0, 1)
            ztxt = []
            for part, texts in zip(parts, self._parts(batch), strict=True):
                rows = part.reshape(-1, part.shape[-1])
                ends = np.cumsum([len(ids) for ids in texts])
                ztxt += np.split(rows[: ends[-1]], ends[:-1])
        return batch, (zimg, ztxt)

    def _parts(self, batch: Complete) -> list[tuple[np.ndarray, ...]]:
        """The captions of the examples of each device."""
        starts = range(0, self._rows, self._part)
        return [batch.texts[start : start + self._part] for start in starts]


class LibraryMaker(Maker):
    """Embeds with another library's model, which every process runs on its own examples."""

    def __init__(
        self,
        plan: Plan,
        folder: pathlib.Path,
        source: Source,
        data: DataConfig,
        model: LibraryModel,
        mesh: Mesh,
        batch_size: int,
    ):
        """As `Maker`, with a loaded model."""
        view = OwnView(model.pixels, model.tokens)
        super().__init__(plan, folder, source, data, view, mesh, batch_size)
        self._model = model

    def _start(self, batch: Complete) -> tuple:
        zimg, ztxt, towers = None, None, description.TOWERS[self._plan.towers]
        if "image" in towers:
            views = batch.image.swapaxes(0, 1)
            zimg = np.stack([self._model.embed("image", view) for view in views], axis=1)
        if "text" in towers:
            ids = np.concatenate(batch.texts)
            rounds = range(0, len(ids), self._rows)
            rows = [self._model.embed("text", ids[i : i + self._rows]) for i in rounds]
            rows.append(np.zeros((0, self._plan.width), np.float32))
            ends = np.cumsum([len(texts) for texts in batch.texts])
            ztxt = np.split(np.concatenate(rows), ends[:-1])
        return zimg, ztxt

    def _finish(self, batch: Complete, running: tuple) -> tuple[Complete, tuple]:
        return batch, running


class _OpenShard:
    """A shard that is being written."""

    def __init__(self, plan: Plan, folder: pathlib.Path, shard: int):
        self._plan, self._path = plan, plan.path(folder, shard)
        rows = plan.pictures + plan.has("text")
        self._writer = entries.EntryWriter(self._path, rows * plan.row_bytes)
        self._errors = precision.Errors()
        self._missing: dict[str, str] = {}
        self._captions = 0

    def add(
        self,
        batch: Complete,
        zimg: Float[np.ndarray, "n k d"] | None,
        ztxt: list[Float[np.ndarray, "_ d"]] | None,
    ) -> None:
        """Writes the entries of a batch."""
        for i, index in enumerate(batch.ids.tolist()):
            if index < 0:
                continue
            towers = [] if zimg is None else [zimg[i]]
            towers += [] if ztxt is None else [ztxt[i]]
            if batch.reasons[i] is not None:
                self._missing[str(index)] = batch.reasons[i]
                towers = []
            rows = np.concatenate([*towers, np.zeros((0, self._plan.width), np.float32)])
            if not np.isfinite(rows).all():
                raise description.CacheError(
                    f"The model's embedding of example {index} is not finite. Check its checkpoint."
                )
            self._captions += 0 if ztxt is None or not towers else len(ztxt[i])
            self._writer.write(index, precision.encode(rows, self._plan.precision))
        usable = [i for i in range(len(batch.ids)) if batch.ids[i] >= 0 and not batch.reasons[i]]
        if usable and ztxt is not None:
            texts = np.concatenate([ztxt[i] for i in usable])
            owners = np.repeat(usable, [len(ztxt[i]) for i in usable])
            self._errors.add(*([] if zimg is None else [zimg[owners, 0]]), texts)
        elif usable:
            self._errors.add(zimg[usable, 0])
        if usable and zimg is not None:
            self._errors.add(zimg[usable, 1:].reshape(-1, self._plan.width))

    def close(self) -> None:
        """Completes the shard and writes its summary."""
        about = self._writer.close()
        shard = Shard(captions=self._captions, missing=self._missing, **about)
        description.write(self._path.with_suffix(".json"), Summary(shard, self._errors.sums))

    def discard(self) -> None:
        """Removes the incomplete shard."""
        self._writer.discard()


def _apply(tower: TwoTower, method: str, params: PyTree, x: jax.Array) -> jax.Array:
    return tower.apply({"params": params}, x, method=method)


def end(plan: Plan, folder: pathlib.Path) -> Description:
    """Completes a cache after all shards are made; all processes call this."""
    distributed.same(0)  # waits for all processes
    if jax.process_index() == 0 and not (folder / COMPLETE).exists():
        _end(plan, folder)
    distributed.same(1)
    return description.read_complete(folder)


def _end(plan: Plan, folder: pathlib.Path) -> None:
    summaries = [
        description.read(plan.path(folder, shard).with_suffix(".json"), Summary)
        for shard in range(plan.shards)
    ]
    errors = precision.Errors()
    for summary in summaries:
        errors.merge(precision.Errors(summary.errors))
    shards = tuple(summary.shard for summary in summaries)
    complete = Description(plan, shards, None, errors.summary())
    if plan.towers == "both":
        with progress.announced("Fitting a scale and a bias to the embeddings"):
            fitted = _fitted(plan, Cache(folder, complete))
        complete = dataclasses.replace(complete, fitted=fitted)
    description.write(folder / COMPLETE, complete)
    _tidy(plan, folder)


def _fitted(plan: Plan, cache: Cache) -> calibration.Calibration | None:
    """Scale and bias fitted to examples spread evenly over the data set."""
    count = min(plan.examples, plan.calibration_pairs)
    ids = np.arange(count) * plan.examples // count
    ids = ids[[i not in cache.missing for i in ids.tolist()]]
    if not len(ids):
        return None
    embeddings = cache.read(ids, np.zeros_like(ids))
    return calibration.fit(embeddings["zimg"], embeddings["ztxt"], plan.calibration_batch_size)


def _tidy(plan: Plan, folder: pathlib.Path) -> None:
    """Removes the files that only an incomplete cache needs."""
    for shard in range(plan.shards):
        plan.path(folder, shard).with_suffix(".json").unlink(missing_ok=True)
    (folder / PLAN).unlink(missing_ok=True)
