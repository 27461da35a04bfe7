"""Checkpoints whose files are not what was written: how that is found, and where they go."""

import contextlib
import json
from collections.abc import Iterator

import jax
from etils import epath

from aced.checkpoints import checksums
from aced.checkpoints.contents import CheckpointError, DamagedError, contents

DAMAGED_FOLDER = "checkpoints_damaged"  # in the workdir; nothing there is read or removed
_SMALL_BYTES = 1 << 20  # what has more are arrays
_NOTE = "README.txt"
_NOTED = (
    "Checkpoints whose files were not what had been written: the run goes on without them. Nothing "
    "reads or removes them; remove them when you need them no more.\n"
)


def check_whole(
    path: epath.Path, files: slice = slice(None), most_bytes: int | None = None
) -> None:
    """Compares a checkpoint's files with their checksums, where it has any.

    Args:
        path: of the checkpoint.
        files: which ones to read, of all in the order of their names. The metrics that are kept
            with it are compared in any case.
        most_bytes: files that were written with more are not read; None: all are.

    Raises:
        DamagedError: a file is missing or other than it was written; the message names it.
        CheckpointError: a file cannot be read, which may pass.
    """
    try:
        found = checksums.damage(path, files, most_bytes)
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {path} cannot be read ({error}). Start the same command again once its "
            "disk or store answers; if a file is lost for good, remove that one, and an older "
            "checkpoint is taken."
        ) from error
    if found:
        raise DamagedError(f"Checkpoint {path} is damaged: {found}.")


@contextlib.contextmanager
def named_damage(path: epath.Path) -> Iterator[None]:
    """Names the checkpoint without checksums that Orbax cannot read, for one process alone.

    One with checksums has been compared: what is wrong then is not in its files.

    Raises:
        DamagedError: instead of what Orbax raised.
    """
    try:
        yield
    except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        if checksums.exist(path) or jax.process_count() > 1:
            raise
        raise DamagedError(f"Checkpoint {path} is damaged: {error}") from error


def check_small(path: epath.Path) -> None:
    """Looks at what Orbax reads of a checkpoint that is not to be loaded.

    Raises:
        As `check_whole` and `check_described`.
    """
    check_whole(path, most_bytes=_SMALL_BYTES)
    check_described(path)


def check_described(path: epath.Path) -> None:
    """Checks that Orbax can read the description of a checkpoint; checksums are not compared.

    Raises:
        DamagedError: it is not readable, and Orbax would not open the folder.
    """
    contents(path)
    metrics = path / "metrics" / "metrics"
    try:
        if metrics.exists():
            json.loads(metrics.read_bytes())
    except ValueError as error:
        raise DamagedError(f"Checkpoint {path} is damaged: {metrics}: {error}") from error


def move_aside(path: epath.Path) -> None:
    """Moves a checkpoint to `DAMAGED_FOLDER`, where Orbax neither lists nor removes it.

    Raises:
        OSError: it cannot be moved. Stores raise errors of their own, too.
    """
    folder = path.parent.parent / DAMAGED_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NOTE).write_text(_NOTED)  # in a store a folder is there when a file of it is
    target, number = folder / path.name, 1
    while target.exists():  # the same step was damaged before
        number += 1
        target = folder / f"{path.name}.{number}"
    path.rename(target)
