"""Checkpoints of a run's state, written atomically in the background.

A checkpoint is written under a temporary name and renamed when every process is done, so an
existing one is complete. This module builds on Orbax, and adds the retention policy, the handling
of failed saves, and errors that name the parameter.

Each process writes its own part, and a save fails if any process fails. The other processes wait
for it `timeout_minutes`; then all agree on the outcome.

A checkpoint holds checksums of its files, which are compared before loading, since disks and copies
can corrupt data. A run whose newest checkpoint is damaged moves it aside and resumes from the
newest intact one.
"""

import contextlib
import functools
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from aced.checkpoints import checksums
from aced.checkpoints.contents import (
    DAMAGED_FOLDER,
    STATE,
    CheckpointError,
    DamagedError,
    check_described,
    check_fits,
    check_small,
    check_whole,
    contents,
    move_aside,
    named_damage,
)
from aced.checkpoints.policy import CheckpointConfig, Preserve, ranked
from aced.parallel import distributed

FOLDER = "checkpoints"  # inside the workdir
_SHARED_BYTES = 1 << 20

T = TypeVar("T")


class Checkpointer(contextlib.AbstractContextManager):
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`.

    Every process of the run makes the same calls in the same order. Use as a context manager, or
    call `close` at the end. If the block raises in one of several processes, that process only
    waits for its pending save, without agreement with the others.

    Attributes:
        failed_saves: saves that failed so far.
    """

    def __init__(self, workdir: epath.PathLike, config: CheckpointConfig | None = None):
        self._config = config or CheckpointConfig()
        self._folder = _folder(workdir)
        self._pending: int | None = None  # step that is being written
        self._about: dict[str, Any] = {}  # its metadata
        self._failed_in_a_row = 0
        self.failed_saves = 0
        self._opened: ocp.training.Checkpointer | None = None

    @property
    def _orbax(self) -> ocp.training.Checkpointer:
        """The manager. Opened lazily, because it cannot open a folder with damaged checkpoints."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> ocp.training.Checkpointer:
        context = ocp.Context()
        context.array.saving.use_compression = self._config.compress
        # Replicas share the writing of an array, but each piece needs a compiled slice, which is
        # not worth it for small arrays.
        context.array.saving.min_slice_bytes_for_replica_parallel = _SHARED_BYTES
        context.asynchronous.timeout_secs = math.ceil(60 * self._config.timeout_minutes)
        # A lambda and not a bound method, because Orbax deep-copies its settings.
        context.asynchronous.post_finalization_callback = lambda: self._write_checksums()
        return ocp.training.Checkpointer(
            self._folder,
            context=context,
            preservation_policy=Preserve(self._config),
            cleanup_tmp_directories=True,  # remains of killed processes
        )

    def _write_checksums(self) -> None:
        """Writes the checksums on process 0, in the background, before the folder is renamed.

        Stores cannot rename folders, so there the folder has its final name from the start.
        """
        temporary = self._folder / f"{self._pending}.orbax-checkpoint-tmp"
        final = self._folder / str(self._pending)
        checksums.write(temporary if temporary.exists() else final, self._about)

    def steps(self) -> list[int]:
        """Steps of all checkpoints, oldest first, including one being written."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def restore_or(self, abstract: PyTree, default: T = None) -> tuple[PyTree, int] | T:
        """Returns state and step of the newest intact checkpoint, or `default` if there is none.

        Damaged checkpoints are logged and moved to `<workdir>/checkpoints_damaged`. If all are
        damaged, none is moved, so that the run does not silently start from the beginning.

        Args:
            abstract: the state's `ShapeDtypeStruct`s with shardings, which may differ from those
                that it was saved with.
            default: the result if the run has no checkpoint yet.

        Raises:
            CheckpointError: parameters, shapes or types differ, or all checkpoints are damaged;
                nothing was loaded.
        """
        steps = _complete_steps(self._folder)
        if not distributed.same(steps[-1] if steps else -1):
            raise CheckpointError(
                f"The processes do not see the same checkpoints in {self._folder} (this one: "
                f"{steps}). If it is on a network file system, wait a minute for its caches "
                "and start the same command again."
            )
        damaged: dict[int, DamagedError] = {}
        restored = None
        for step in reversed(steps):
            try:
                if restored is None:
                    restored = self._load(step, abstract), step
                else:
                    self._agree(check_small, self._folder / str(step))
            except DamagedError as error:
                logging.error("%s", error)
                damaged[step] = error
        if damaged and restored is None:
            listed = "\n".join(f"  {error}" for error in damaged.values())
            raise CheckpointError(
                f"No checkpoint in {self._folder} is whole:\n{listed}\nRestore one from a copy, or "
                "remove that folder or choose another workdir to start the run again."
            )
        if damaged:
            self._set_aside(damaged, restored[1])
        return default if restored is None else restored

    def _load(self, step: int, abstract: PyTree) -> PyTree:
        path = self._folder / str(step)
        share = slice(jax.process_index(), None, jax.process_count())
        self._agree(functools.partial(check_whole, files=share), path)
        self._agree(check_described, path)
        with named_damage(path):
            check_fits(abstract, contents(path), path, check_types=True)
            return ocp.load(path, abstract, checkpointable_name=STATE)

    def _agree(self, check: Callable[[epath.Path], None], path: epath.Path) -> None:
        """Raises a DamagedError on all processes if `check` raises one on any of them."""
        damage = None
        try:
            check(path)
        except DamagedError as error:
            damage = error
        if distributed.anywhere(damage is not None):
            raise damage or DamagedError(
                f"Checkpoint {path} is damaged: see the log of another process."
            )

    def _set_aside(self, damaged: Iterable[int], whole: int) -> None:
        """Moves damaged checkpoints to another folder, and logs the step that is resumed."""
        failed = None
        if jax.process_index() == 0:
            try:
                for step in damaged:
                    move_aside(self._folder / str(step))
            except Exception as error:  # stores raise errors of their own
                failed = error
        if distributed.anywhere(failed is not None):
            raise CheckpointError(
                f"The damaged checkpoints {sorted(damaged)} could not be moved from {self._folder} "
                f"to {DAMAGED_FOLDER} beside it ({failed or 'see the log of process 0'}). Move "
                f"them by hand and start the same command again: it resumes from step {whole}."
            ) from failed
        logging.error(
            "The run resumes from its newest intact checkpoint, step %d. The damaged ones, steps "
            "%s, were moved to %s beside it; remove them when you no longer need them.",
            whole,
            sorted(damaged),
            self._folder.parent / DAMAGED_FOLDER,
        )
        if self._opened is not None:
            self._reopen()  # the old manager still lists them

    def save(
        self,
        step: int,
        state: PyTree,
        metrics: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> bool:
        """Starts writing `state` in the background if a checkpoint is due at `step`.

        The state may be donated as soon as this returns. A pending save is waited for first. If
        this save or the previous one fails, the reason is logged, partial files are removed, and
        the run continues with the older checkpoints.

        Args:
            step: completed steps.
            state: pytree of arrays, typed keys and Nones.
            metrics: numbers for `keep_best` and `load_params(which="best")`; non-finite ones are
                left out.
            force: save even if no checkpoint is due at `step`.

        Returns:
            Whether a save was started. An existing step is not saved again.

        Raises:
            CheckpointError: `max_failed_saves` saves failed in a row, or one of several processes
                could not start its save.
        """
        due = force or self._config.is_due(step)
        if not due and not (jax.process_count() == 1 and self._is_done()):
            return False
        self._settle()
        if not due or step in self.steps():
            return False
        finite = {k: float(v) for k, v in (metrics or {}).items() if math.isfinite(float(v))}
        self._about = {
            "metrics": finite,
            "best": {"metric": self._config.best_metric, "mode": self._config.best_mode},
        }
        self._pending = step
        try:
            self._orbax.save_checkpointables_async(
                step,
                {STATE: state},
                metrics=finite or None,
                custom_metadata=self._about,
                force=True,  # Orbax has its own rule of when a checkpoint is due
            )
        except (TypeError, ValueError):
            raise  # the state itself cannot be saved, so retrying would not help
        except Exception as error:
            if jax.process_count() > 1:  # the others have started, so no agreement is possible
                raise CheckpointError(f"Checkpoint {step} could not be started: {error}") from error
            self._give_up(error)
            return False
        return True

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            CheckpointError: the last save failed.
        """
        self._settle()
        if self._failed_in_a_row:
            raise CheckpointError(
                f"The last checkpoint of this run could not be written to {self._folder}, for the "
                f"reason in the log; existing checkpoints: {self.steps() or 'none'}. Make room and "
                "start the same command again: it resumes from the newest."
            )

    def close(self) -> None:
        """Waits for the last save and closes.

        Raises:
            CheckpointError: the last save failed.
        """
        try:
            self.wait()
        finally:
            self._close_orbax()

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            self.close()
            return
        try:
            if jax.process_count() == 1:
                self.close()
            elif self._pending is not None:
                self._orbax.wait()  # needs no agreement with other processes
        except Exception as failed:
            logging.error("%s", failed)  # the error of the block is the one to raise

    def _is_done(self) -> bool:
        return self._pending is not None and not self._orbax.is_saving_in_progress()

    def _settle(self) -> None:
        """Waits for the pending save and handles its outcome."""
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
        # A new manager removes partial files, which may fill the disk. The old one still lists the
        # failed step, and no longer lists the one that it was to replace.
        self._reopen()
        message = (
            f"Checkpoint {self._folder / str(step)} could not be written "
            f"({_free_space(self._folder)}; failure {self._failed_in_a_row} in a row): {error}"
        )
        logging.error("%s", message)
        if self._failed_in_a_row >= self._config.max_failed_saves:
            raise CheckpointError(
                f"{message}. Existing checkpoints: {self.steps() or 'none'}. Make room and start "
                "the same command again: it resumes from the newest."
            ) from error

    def _reopen(self) -> None:
        """Replaces the manager by a new one, which reads the folder again."""
        self._close_orbax()
        try:
            self._opened = self._open()
        except OSError as error:  # the closed manager fails the next save, which is counted
            logging.error("%s could not be read again: %s", self._folder, error)

    def _close_orbax(self) -> None:
        """Closes the manager. Errors of its saves were handled before."""
        try:
            if self._opened is not None:
                self._opened.close()
        except Exception as error:
            logging.info("Repeated error of a failed save: %s", error)


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
            arrays with shapes and types as they were saved.
        which: the newest checkpoint, the best one that is left, or a step.
        key: the parameters or their moving average.
        part: load only the subtree of this name, such as "model"; None: all parameters.
        best_metric: metric for "best"; None: from that run's settings.
        best_mode: whether larger or smaller is better; None: from that run's settings.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, lacks `key`, or its parameters have
            other names or shapes.
    """
    folder = _folder(workdir)
    step = chosen_step(workdir, which, best_metric, best_mode)
    try:
        return _loaded(folder / str(step), abstract, key, part)
    except DamagedError as error:
        others = [other for other in _complete_steps(folder) if other != step]
        raise CheckpointError(
            f"{error} Start the run of {workdir} again, which moves this checkpoint aside and "
            f"resumes from the newest intact one (other steps: {others or 'none'}), or restore it "
            "from a copy."
        ) from error


def chosen_step(
    workdir: epath.PathLike,
    which: Literal["last", "best"] | int,
    best_metric: str | None = None,
    best_mode: Literal["max", "min"] | None = None,
) -> int:
    """The step of the checkpoint that `load_params` reads; arguments and errors as there."""
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
    return step


def _loaded(path: epath.Path, abstract: PyTree | None, key: str, part: str | None) -> PyTree:
    """`load_params` of one checkpoint.

    Raises:
        DamagedError: its files have changed since they were written.
        CheckpointError: as `load_params`.
    """
    check_whole(path)
    saved = contents(path)
    names = (key,) if part is None else (key, part)
    for name in names:
        if not saved.get(name):
            known = sorted(k for k, v in saved.items() if v is not None)
            raise CheckpointError(f"{path} holds no '{'/'.join(names)}', only {known}.")
        saved = saved[name]
    if abstract is None:
        abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved)
    check_fits(abstract, saved, path, check_types=False)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context, named_damage(path):
        tree = {key: abstract if part is None else {part: abstract}}
        loaded = ocp.load(path, tree, checkpointable_name=STATE)[key]
    return loaded if part is None else loaded[part]


def newest_step(workdir: epath.PathLike) -> int:
    """The step of a run's newest complete checkpoint; 0: there is none."""
    return max(_complete_steps(_folder(workdir)), default=0)


def _folder(workdir: epath.PathLike) -> epath.Path:
    """The folder of a run's checkpoints, as the absolute path that Orbax needs."""
    path = epath.Path(workdir) / FOLDER
    return path if "://" in str(path) else path.expanduser().absolute()


def _complete_steps(folder: epath.Path) -> list[int]:
    """Steps of complete checkpoints, oldest first."""
    if not folder.exists():
        return []
    paths = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    if "://" in str(folder):  # without renaming, incomplete folders lack the mark
        paths = [path for path in paths if (path / "commit_success.txt").exists()]
    return sorted(int(path.name) for path in paths)


def _best_step(folder: epath.Path, steps: list[int], name: str | None, mode: str | None) -> int:
    about = {step: _about(folder / str(step)) for step in steps}
    configured = about[steps[-1]]["best"]
    name = name or configured["metric"]
    if name is None:
        raise CheckpointError(
            f"The run of {folder} has no best_metric; pass the metric for 'best'."
        )
    metrics = {step: about[step]["metrics"] for step in steps}
    steps = ranked(metrics, name, mode or configured["mode"])
    if not steps:
        known = sorted({key for values in metrics.values() for key in values})
        raise CheckpointError(
            f"No checkpoint in {folder} was saved with the metric '{name}'; there are: "
            f"{', '.join(known) or 'none'}."
        )
    return steps[0]


def _about(path: epath.Path) -> dict[str, Any]:
    """A checkpoint's metadata: its metrics, and the run's definition of the best."""
    check_whole(path, most_bytes=0)
    about = ocp.checkpointables_metadata(path).custom_metadata
    if not about:
        raise DamagedError(
            f"Checkpoint {path} is damaged: its metrics, in _CHECKPOINT_METADATA, are missing or "
            "not readable. Ask for a step or the last one instead of the best, or restore the file "
            "from a copy."
        )
    return about


def _free_space(folder: epath.Path) -> str:
    if "://" in str(folder):
        return "free space unknown"
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError as error:
        return f"free space unknown, {error}"
