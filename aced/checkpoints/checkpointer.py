"""Checkpoints: a whole run in one atomic folder, written in the background.

A checkpoint is complete or it is not there: it is written under a temporary name and renamed when
every process is done. Orbax does the work; what is added here is which checkpoints to keep, what
happens when a save fails, and errors that name the parameter.

Of several processes each writes its own part, and a save has failed when one of them failed. The
others learn of it when they have waited for `timeout_minutes`; then all agree, and go on as one.

Disks and copies lose bits. A checkpoint holds checksums of its files, which are compared before it
is loaded. A run whose newest one is damaged moves it aside and goes on from the newest whole one.
"""

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
from aced.checkpoints.contents import STATE, CheckpointError, DamagedError, check_fits, contents
from aced.checkpoints.damage import (
    DAMAGED_FOLDER,
    check_described,
    check_small,
    check_whole,
    move_aside,
    named_damage,
)
from aced.checkpoints.policy import CheckpointConfig, Preserve, ranked
from aced.parallel import distributed

FOLDER = "checkpoints"  # inside the workdir
_SHARED_BYTES = 1 << 20

T = TypeVar("T")


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
        self._about: dict[str, Any] = {}  # what is kept with it
        self._failed_in_a_row = 0
        self.failed_saves = 0
        self._opened: ocp.training.Checkpointer | None = None

    @property
    def _orbax(self) -> ocp.training.Checkpointer:
        """The manager. It is opened when damaged checkpoints, which it cannot bear, are moved."""
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> ocp.training.Checkpointer:
        context = ocp.Context()
        context.array.saving.use_compression = self._config.compress
        # Devices that hold the same array share the writing of it, but each piece is cut by a
        # program of its own: not worth it for small arrays.
        context.array.saving.min_slice_bytes_for_replica_parallel = _SHARED_BYTES
        context.asynchronous.timeout_secs = math.ceil(60 * self._config.timeout_minutes)
        # A function and no method: Orbax copies its settings, all that they hold included.
        context.asynchronous.post_finalization_callback = lambda: self._write_checksums()
        return ocp.training.Checkpointer(
            self._folder,
            context=context,
            preservation_policy=Preserve(self._config),
            cleanup_tmp_directories=True,  # what a killed process left half-written
        )

    def _write_checksums(self) -> None:
        """Called on process 0, in the background, when all files are there but for the last name.

        A store cannot rename folders, so that there they have their name from the start.
        """
        unnamed = self._folder / f"{self._pending}.orbax-checkpoint-tmp"
        named = self._folder / str(self._pending)
        checksums.write(unnamed if unnamed.exists() else named, self._about)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, one in the making included, oldest first."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def restore_or(self, abstract: PyTree, default: T = None) -> tuple[PyTree, int] | T:
        """Returns the newest whole checkpoint's state and step, or `default` if there is none.

        Newer ones that are damaged are moved to `<workdir>/checkpoints_damaged`, which the log
        says. Where all are damaged none is moved: the run would begin anew without a word.

        Args:
            abstract: the state's `ShapeDtypeStruct`s with shardings, which need not be the ones
                that it was saved with.
            default: what to return when this run has no checkpoint yet.

        Raises:
            CheckpointError: the checkpoint has other parameters, shapes or types, or all are
                damaged; nothing was loaded.
        """
        steps = _complete_steps(self._folder)
        if not distributed.same(steps[-1] if steps else -1):
            raise CheckpointError(
                f"The processes do not see the same checkpoints in {self._folder} (this one: "
                f"{steps}). If it is on a network file system, wait a minute for its caches "
                "and start the same command again."
            )
        damaged: dict[int, DamagedError] = {}
        found = None
        for step in reversed(steps):
            try:
                if found is None:
                    found = self._load(step, abstract), step
                else:
                    self._agree(check_small, self._folder / str(step))
            except DamagedError as error:
                logging.error("%s", error)
                damaged[step] = error
        if damaged and found is None:
            listed = "\n".join(f"  {error}" for error in damaged.values())
            raise CheckpointError(
                f"No checkpoint in {self._folder} is whole:\n{listed}\nBring one back from a copy; "
                "to begin the run anew, remove that folder or choose another workdir."
            )
        if damaged:
            self._set_aside(damaged, found[1])
        return default if found is None else found

    def _load(self, step: int, abstract: PyTree) -> PyTree:
        path = self._folder / str(step)
        share = slice(jax.process_index(), None, jax.process_count())
        self._agree(functools.partial(check_whole, files=share), path)
        self._agree(check_described, path)
        with named_damage(path):
            check_fits(abstract, contents(path), path, check_types=True)
            return ocp.load(path, abstract, checkpointable_name=STATE)

    def _agree(self, check: Callable[[epath.Path], None], path: epath.Path) -> None:
        """Raises a DamagedError on all processes where `check` raises one on some of them."""
        damage = None
        try:
            check(path)
        except DamagedError as error:
            damage = error
        if distributed.anywhere(damage is not None):
            raise damage or DamagedError(
                f"Checkpoint {path} is damaged: another process says how in its log."
            )

    def _set_aside(self, damaged: Iterable[int], whole: int) -> None:
        """Moves damaged checkpoints to where Orbax neither lists them nor removes them."""
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
                f"them by hand and start the same command again: it goes on from step {whole}."
            ) from failed
        logging.error(
            "The run goes on from its newest whole checkpoint, step %d. The damaged ones, steps "
            "%s, were moved to %s beside it; remove them when you need them no more.",
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
            self._close_orbax()

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
                if self._pending is not None:
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
        self._reopen()
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

    def _reopen(self) -> None:
        """A new manager, which lists what is there now, for the old one."""
        self._close_orbax()
        try:
            self._opened = self._open()
        except OSError as error:  # the old one, closed, fails the next save, which is counted
            logging.error("%s could not be read again: %s", self._folder, error)

    def _close_orbax(self) -> None:
        """Closes the manager. How its saves ended is known: errors that it still holds are old."""
        try:
            if self._opened is not None:
                self._opened.close()
        except Exception as error:
            logging.info("Once more, of a save that failed: %s", error)


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
        CheckpointError: there is no such checkpoint, it is damaged, it holds no `key`, or its
            parameters have other names or shapes.
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
    try:
        return _loaded(folder / str(step), abstract, key, part)
    except DamagedError as error:
        others = [other for other in steps if other != step]
        raise CheckpointError(
            f"{error} Start the run of {workdir} again, which moves it aside and goes on from the "
            f"newest whole one (there are also {others or 'no others'}), or bring it back from a "
            "copy."
        ) from error


def _loaded(path: epath.Path, abstract: PyTree | None, key: str, part: str | None) -> PyTree:
    """`load_params` of one checkpoint.

    Raises:
        DamagedError: its files are not what was written.
        CheckpointError: as `load_params`.
    """
    check_whole(path)
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
    with context, named_damage(path):
        wanted = {key: abstract if part is None else {part: abstract}}
        loaded = ocp.load(path, wanted, checkpointable_name=STATE)[key]
    return loaded if part is None else loaded[part]


def _folder(workdir: epath.PathLike) -> epath.Path:
    """The folder of a run's checkpoints; absolute, since Orbax takes no other."""
    path = epath.Path(workdir) / FOLDER
    return path if "://" in str(path) else path.expanduser().absolute()


def _complete_steps(folder: epath.Path) -> list[int]:
    """Oldest first. Folders in the making have other names, or in a store no mark of the end."""
    if not folder.exists():
        return []
    paths = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    if "://" in str(folder):
        paths = [path for path in paths if (path / "commit_success.txt").exists()]
    return sorted(int(path.name) for path in paths)


def _best_step(folder: epath.Path, steps: list[int], name: str | None, mode: str | None) -> int:
    about = {step: _about(folder / str(step)) for step in steps}
    configured = about[steps[-1]]["best"]
    name = name or configured["metric"]
    if name is None:
        raise CheckpointError(
            f"The run of {folder} names no best_metric; say which metric 'best' goes by."
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
    """What was kept with a checkpoint: its metrics, and what the run meant by the best."""
    check_whole(path, most_bytes=0)
    about = ocp.checkpointables_metadata(path).custom_metadata
    if not about:
        raise DamagedError(
            f"Checkpoint {path} is damaged: its metrics, in _CHECKPOINT_METADATA, are missing or "
            "not readable. Ask for a step or the last one instead of the best, or bring the file "
            "back from a copy."
        )
    return about


def _free_space(folder: epath.Path) -> str:
    if "://" in str(folder):
        return "free space unknown"
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free"
    except OSError as error:
        return f"free space unknown, {error}"
