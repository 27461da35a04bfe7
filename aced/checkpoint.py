"""Checkpoints: a whole run in one atomic folder, written in the background.

A checkpoint is complete or it is not there: it is written under a temporary name and renamed when
every process is done. Orbax does the work; what is added here is which checkpoints to keep, what
happens when a save fails, and errors that name the parameter.

Of several processes each writes its own part, and a save has failed when one of them failed. The
others learn of it when they have waited for `timeout_minutes`; then all agree, and go on as one.
"""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from aced import distributed
from aced.checkpoint_contents import STATE, CheckpointError, check_fits, contents
from aced.config import ConfigError
from aced.data import storage

FOLDER = "checkpoints"  # inside the workdir
_SHARED_BYTES = 1 << 20

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept."""

    every_steps: int = 1000  # and at the end of the run
    keep_last: int = 2  # the newest so many
    keep_best: int = 0  # the best so many by `best_metric`, besides
    best_metric: str | None = None  # a name in the metrics handed to `save`
    best_mode: Literal["max", "min"] = "max"
    keep_every_steps: int | None = None  # at multiples of this, too, and these are kept for ever
    compress: bool = False  # zstd: a tenth smaller, several times slower on weights
    max_failed_saves: int = 3  # in a row; then the run stops. At the end of the run, one is enough
    timeout_minutes: float = 20.0  # a save that takes longer has failed

    def __post_init__(self):
        for key in ("every_steps", "keep_last", "max_failed_saves"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} must be at least 1, got {getattr(self, key)}.")
        if self.timeout_minutes <= 0:
            raise ConfigError(f"timeout_minutes must be above 0, got {self.timeout_minutes}.")
        if self.keep_every_steps is not None and self.keep_every_steps < 1:
            raise ConfigError(
                f"keep_every_steps must be at least 1, got {self.keep_every_steps}; "
                "None keeps none for ever."
            )
        if self.keep_best and not self.best_metric:
            raise ConfigError("keep_best needs best_metric, the name of the metric to go by.")

    def is_due(self, step: int) -> bool:
        """Whether one is written at `step`, were it not the last."""
        periods = self.every_steps, self.keep_every_steps
        return any(step % period == 0 for period in periods if period)


class Checkpointer:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`.

    Every process of the run makes the same calls in the same order. Use as a context manager, or
    call `close` at the end. A block that raises in one of several processes leaves the others
    alone: then only the save that is going on is waited for.

    Attributes:
        failed_saves: saves that failed so far.
    """

    def __init__(self, workdir: epath.PathLike, config: CheckpointConfig | None = None):
        self._config = config or CheckpointConfig()
        self._folder = _folder(workdir)
        self._pending: int | None = None  # step that is being written
        self._failed_in_a_row = 0
        self.failed_saves = 0
        self._open()

    def _open(self) -> None:
        context = ocp.Context()
        context.array.saving.use_compression = self._config.compress
        # Devices that hold the same array share the writing of it, but each piece is cut by a
        # program of its own: not worth it for small arrays.
        context.array.saving.min_slice_bytes_for_replica_parallel = _SHARED_BYTES
        context.asynchronous.timeout_secs = math.ceil(60 * self._config.timeout_minutes)
        self._orbax = ocp.training.Checkpointer(
            self._folder,
            context=context,
            preservation_policy=_Preserve(self._config),
            cleanup_tmp_directories=True,  # what a killed process left half-written
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, one in the making included, oldest first."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def restore_or(self, abstract: PyTree, default: T = None) -> tuple[PyTree, int] | T:
        """Returns the newest checkpoint's state and step, or `default` if there is none.

        Args:
            abstract: the state's `ShapeDtypeStruct`s with shardings, which need not be the ones
                that it was saved with.
            default: what to return when this run has no checkpoint yet.

        Raises:
            CheckpointError: the checkpoint has other parameters, shapes or types; nothing was
                loaded.
        """
        newest = self._orbax.latest
        if not distributed.same(-1 if newest is None else newest.step):
            raise CheckpointError(
                f"The processes do not see the same checkpoints in {self._folder} (this one: "
                f"{self.steps()}). If it is on a network file system, wait a minute for its caches "
                "and start the same command again."
            )
        if newest is None:
            return default
        path = self._folder / str(newest.step)
        check_fits(abstract, contents(path), path, check_types=True)
        state = self._orbax.load_checkpointables(newest.step, {STATE: abstract})[STATE]
        return state, newest.step

    def save(
        self,
        step: int,
        state: PyTree,
        metrics: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> bool:
        """Starts writing `state` in the background if a checkpoint is due at `step`.

        The state may be donated as soon as this returns. A save that is still going on is waited
        for first. When a save fails, be it this one or the one before, the reason is logged, what
        it wrote is removed, and the run goes on with the older checkpoints.

        Args:
            step: updates done.
            state: pytree of arrays, typed keys and Nones.
            metrics: numbers that `keep_best` and `load_params(which="best")` go by; those that
                are not finite are left out.
            force: save although none is due at `step`.

        Returns:
            Whether a save was started. A step that is already there is not saved again.

        Raises:
            CheckpointError: `max_failed_saves` saves failed in a row, or this process, of several,
                could not begin one.
        """
        due = force or self._config.is_due(step)
        if not due and not (jax.process_count() == 1 and self._is_done()):
            return False
        self._settle()
        if not due or step in self.steps():
            return False
        finite = {k: float(v) for k, v in (metrics or {}).items() if math.isfinite(float(v))}
        about = {
            "metrics": finite,
            "best": {"metric": self._config.best_metric, "mode": self._config.best_mode},
        }
        self._pending = step
        try:
            self._orbax.save_checkpointables_async(
                step,
                {STATE: state},
                metrics=finite or None,
                custom_metadata=about,
                force=True,  # whether it is due was decided above
            )
        except (TypeError, ValueError):
            raise  # the state itself cannot be saved: trying again would not help
        except Exception as error:
            if jax.process_count() > 1:  # the others are in the middle of it, and will not agree
                raise CheckpointError(f"Checkpoint {step} could not be begun: {error}") from error
            self._give_up(error)
            return False
        return True

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            CheckpointError: it is not; the last save failed.
        """
        self._settle()
        if self._failed_in_a_row:
            raise CheckpointError(
                f"The last checkpoint of this run could not be written to {self._folder}; "
                f"checkpoints that are there: {self.steps() or 'none'}. Make room (the log says "
                "what went wrong) and start the same command again: it goes on from the newest."
            )

    def close(self) -> None:
        """Waits for the last save and closes.

        Raises:
            CheckpointError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.close()
            return
        try:
            if jax.process_count() == 1:
                self.close()
            else:
                self._orbax.wait()  # what goes on in the background needs no agreement
        except Exception as failed:
            logging.error("%s", failed)  # the error that is on its way out matters more

    def _is_done(self) -> bool:
        return self._pending is not None and not self._orbax.is_saving_in_progress()

    def _settle(self) -> None:
        """Waits for the save that is going on and accounts for how it ended."""
        if self._pending is None:
            return
        error = None
        try:
            self._orbax.wait()
        except Exception as failed:
            error = failed
        if distributed.anywhere(error is not None):
            self._give_up(error or OSError("another process could not write its part, see its log"))
        else:
            self._pending = None
            self._failed_in_a_row = 0

    def _give_up(self, error: Exception) -> None:
        step, self._pending = self._pending, None
        self.failed_saves += 1
        self._failed_in_a_row += 1
        # A new manager removes the remains, which may be what fills the disk. The old one still
        # lists the step that failed and has forgotten the one that it was to replace.
        self._orbax.close()
        self._open()
        message = (
            f"Checkpoint {self._folder / str(step)} could not be written "
            f"({_free_space(self._folder)}; failure {self._failed_in_a_row} in a row): {error}"
        )
        logging.error("%s", message)
        if self._failed_in_a_row >= self._config.max_failed_saves:
            raise CheckpointError(
                f"{message} Checkpoints that are there: {self.steps() or 'none'}. Make room and "
                "start the same command again: it goes on from the newest."
            ) from error


@dataclasses.dataclass(frozen=True)
class _Preserve:
    """Which checkpoints to keep; asked when a new one is started, applied when it is complete."""

    config: CheckpointConfig

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        config = self.config
        keep = {checkpoint.step for checkpoint in checkpoints[-config.keep_last :]}
        if config.keep_every_steps:
            keep |= {c.step for c in checkpoints if c.step % config.keep_every_steps == 0}
        if config.keep_best:
            metrics = {c.step: c.metrics or {} for c in checkpoints}
            keep |= set(_ranked(metrics, config.best_metric, config.best_mode)[: config.keep_best])
        return [checkpoint.step in keep for checkpoint in checkpoints]


def _ranked(metrics: Mapping[int, Mapping[str, float]], name: str, mode: str) -> list[int]:
    """Steps that have the metric, best first; of equals, the later one first."""
    sign = 1.0 if mode == "max" else -1.0
    having = [(sign * values[name], step) for step, values in metrics.items() if name in values]
    return [step for _, step in sorted(having, reverse=True)]


def load_params(
    workdir: epath.PathLike,
    abstract: PyTree | None = None,
    *,
    which: Literal["last", "best"] | int = "last",
    key: Literal["params", "ema"] = "params",
    part: str | None = None,
    best_metric: str | None = None,
    best_mode: Literal["max", "min"] | None = None,
) -> PyTree:
    """Returns the parameters of another run, without the rest of its state.

    Args:
        workdir: that run's workdir.
        abstract: `ShapeDtypeStruct`s with shardings to load as; types are converted. None: host
            arrays, shapes and types as they were saved.
        which: the newest checkpoint, the best of those that are left, or a step.
        key: the parameters or their moving average.
        part: only what stands under this name in them, such as "model"; None: all of them.
        best_metric: what "best" goes by; None: as that run's own settings had it.
        best_mode: whether more or less is better; None: ditto.

    Raises:
        CheckpointError: there is no such checkpoint, it holds no `key`, or its parameters have
            other names or shapes.
    """
    folder = _folder(workdir)
    steps = _complete_steps(folder)
    if not steps:
        raise CheckpointError(
            f"There is no complete checkpoint in {folder}. Is {workdir} the workdir of a run that "
            "has reached its first checkpoint?"
        )
    if which == "best":
        step = _best_step(folder, steps, best_metric, best_mode)
    else:
        step = steps[-1] if which == "last" else which
    if step not in steps:
        raise CheckpointError(f"{folder} has no checkpoint {which!r}, only {steps}.")
    path = folder / str(step)
    found = contents(path)
    names = (key,) if part is None else (key, part)
    for name in names:
        if not found.get(name):
            known = sorted(k for k, v in found.items() if v is not None)
            raise CheckpointError(f"{path} holds no '{'/'.join(names)}', only {known}.")
        found = found[name]
    if abstract is None:
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), found)
    check_fits(abstract, found, path, check_types=False)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        wanted = {key: abstract if part is None else {part: abstract}}
        loaded = ocp.load(path, wanted, checkpointable_name=STATE)[key]
    return loaded if part is None else loaded[part]


def check_place(workdir: str) -> None:
    """Refuses a workdir that checkpoints cannot be written to, before a run finds out.

    Raises:
        ConfigError: it is in a store other than gs://, where Orbax does not write, or in gs://
            and the package for that is missing.
    """
    scheme, found, _ = workdir.partition("://")
    if found and scheme != "gs":
        raise ConfigError(
            f"The workdir {workdir} is in a store that checkpoints cannot be written to; those "
            "are on file systems and gs://. Mount it, and give the path."
        )
    storage.check_scheme(workdir)


def _folder(workdir: epath.PathLike) -> epath.Path:
    """The folder of a run's checkpoints; absolute, since Orbax takes no other."""
    path = epath.Path(workdir) / FOLDER
    return path if "://" in str(path) else path.expanduser().absolute()


def _complete_steps(folder: epath.Path) -> list[int]:
    """Oldest first. Folders in the making have other names."""
    if not folder.exists():
        return []
    paths = [path for path in folder.iterdir() if path.name.isdigit()]
    return sorted(int(path.name) for path in paths if ocp.is_orbax_checkpoint(path))


def _best_step(folder: epath.Path, steps: list[int], name: str | None, mode: str | None) -> int:
    about = {
        step: ocp.checkpointables_metadata(folder / str(step)).custom_metadata for step in steps
    }
    configured = about[steps[-1]]["best"]
    name = name or configured["metric"]
    if name is None:
        raise CheckpointError(
            f"The run of {folder} names no best_metric; say which metric 'best' goes by."
        )
    metrics = {step: about[step]["metrics"] for step in steps}
    ranked = _ranked(metrics, name, mode or configured["mode"])
    if not ranked:
        known = sorted({key for values in metrics.values() for key in values})
        raise CheckpointError(
            f"No checkpoint in {folder} was saved with the metric '{name}'; there are: "
            f"{', '.join(known) or 'none'}."
        )
    return ranked[0]


def _free_space(folder: epath.Path) -> str:
    if "://" in str(folder):
        return "free space unknown"
    return f"{shutil.disk_usage(folder).free:,} bytes free"
