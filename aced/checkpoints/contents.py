"""The contents of a checkpoint: arrays by name, whether they fit, and damaged files."""

import collections
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from aced.checkpoints import checksums
from aced.errors import UserError
from aced.parallel.rules import name_of

STATE = "state"  # the name of a run's state in its checkpoints
_SHOWN = 8  # differences listed in an error message
DAMAGED_FOLDER = "checkpoints_damaged"  # in the workdir; never read or removed
_SMALL_BYTES = 1 << 20  # larger files hold arrays
_NOTE = "README.txt"
_NOTED = (
    "Checkpoints whose files have changed since they were written. The run continues without them. "
    "They are neither read nor removed; remove them when you no longer need them.\n"
)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written, is missing, or does not fit the expected state."""


class DamagedError(CheckpointError):
    """A checkpoint's files have changed since they were written."""


def contents(path: epath.Path) -> dict[str, Any]:
    """The saved state's names, shapes and types, as nested dicts and lists.

    Raises:
        DamagedError: the metadata files are missing or not readable.
    """
    try:
        metadata = ocp.checkpointables_metadata(path).metadata
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"Checkpoint {path} is damaged: its _CHECKPOINT_METADATA is not readable: {error}"
        ) from error
    if not metadata.get(STATE):  # Orbax has logged what it could not read
        listed = sorted(file.name for file in path.iterdir())
        raise DamagedError(
            f"Checkpoint {path} is damaged: the description of its '{STATE}' is missing or not "
            f"readable (_METADATA, manifest.ocdbt or _sharding in {path / STATE}); in {path} there "
            f"are {listed}."
        )
    return metadata[STATE]


def check_fits(abstract: PyTree, found: PyTree, path: epath.Path, *, check_types: bool) -> None:
    """Raises a CheckpointError if a checkpoint does not have the arrays of `abstract`."""
    want, have = _described(abstract, check_types), _described(found, check_types)
    names = list(collections.ChainMap(want, have))
    wrong = [name for name in sorted(names) if want.get(name) != have.get(name)]
    if wrong:
        lines = [
            f"  {name}: expected {want.get(name, 'nothing')}, found {have.get(name, 'nothing')}"
            for name in wrong[:_SHOWN]
        ]
        if len(wrong) > _SHOWN:
            lines.append(f"  and {len(wrong) - _SHOWN} more")
        raise CheckpointError(
            f"Checkpoint {path} does not fit: {len(wrong)} of {len(names)} arrays differ.\n"
            + "\n".join(lines)
            + "\nUse the model and optimizer settings that it was saved with, or another workdir."
        )


def _described(tree: PyTree, with_types: bool) -> dict[str, str]:
    """Shapes (and types) by name, without empty containers and Nones, as in metadata."""
    out = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # keys are stored as their data
        shape = ",".join(map(str, leaf.shape))
        out[name_of(path)] = f"{np.dtype(leaf.dtype).name if with_types else ''}[{shape}]"
    return out


def check_whole(
    path: epath.Path, files: slice = slice(None), most_bytes: int | None = None
) -> None:
    """Compares a checkpoint's files with their checksums, if it has any; see `checksums.damage`.

    Raises:
        DamagedError: a file is missing or has changed; the message names it.
        CheckpointError: a file cannot be read, perhaps temporarily.
    """
    try:
        damage = checksums.damage(path, files, most_bytes)
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {path} cannot be read ({error}). Start the same command again once its "
            "disk or store answers. If a file is lost for good, remove this checkpoint, and the "
            "run resumes from an older one."
        ) from error
    if damage:
        raise DamagedError(f"Checkpoint {path} is damaged: {damage}.")


@contextlib.contextmanager
def named_damage(path: epath.Path) -> Iterator[None]:
    """Converts Orbax's errors on a checkpoint without checksums, in a single process.

    A checkpoint with checksums was compared before, so an error has another cause.

    Raises:
        DamagedError: in place of Orbax's error.
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
    """Checks the small files, which Orbax reads even of checkpoints that are not loaded.

    Raises:
        DamagedError: as `check_whole` and `check_described`.
    """
    check_whole(path, most_bytes=_SMALL_BYTES)
    check_described(path)


def check_described(path: epath.Path) -> None:
    """Checks that Orbax can read a checkpoint's metadata; checksums are not compared.

    Raises:
        DamagedError: the metadata are not readable, so Orbax would not open the folder.
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
        OSError: the move failed. Stores may raise other errors.
    """
    folder = path.parent.parent / DAMAGED_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _NOTE).write_text(_NOTED)  # in a store, a folder exists only if it has a file
    target, number = folder / path.name, 1
    while target.exists():  # the same step was damaged before
        number += 1
        target = folder / f"{path.name}.{number}"
    path.rename(target)
