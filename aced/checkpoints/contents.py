"""What a checkpoint holds, by name, shape and type, and whether that is what is expected."""

import collections
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from aced.errors import UserError

STATE = "state"  # the name of a run's state in its checkpoints
_SHOWN = 8  # differences listed in an error message


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written, is not there, or does not fit what is to be loaded."""


class DamagedError(CheckpointError):
    """A checkpoint's files are not what was written."""


def contents(path: epath.Path) -> dict[str, Any]:
    """The saved state's names, shapes and types, as nested dicts and lists.

    Raises:
        DamagedError: the files that say so are missing or not readable.
    """
    try:
        found = ocp.checkpointables_metadata(path).metadata
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"Checkpoint {path} is damaged: its _CHECKPOINT_METADATA is not readable: {error}"
        ) from error
    if not found.get(STATE):  # Orbax has logged what it could not read
        listed = sorted(file.name for file in path.iterdir())
        raise DamagedError(
            f"Checkpoint {path} is damaged: the description of its '{STATE}' is missing or not "
            f"readable (_METADATA, manifest.ocdbt or _sharding in {path / STATE}); in {path} there "
            f"are {listed}."
        )
    return found[STATE]


def check_fits(abstract: PyTree, found: PyTree, path: epath.Path, *, check_types: bool) -> None:
    """Raises a CheckpointError that lists what differs between a checkpoint and what is wanted."""
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
    """Shapes (and types) by name. Empty containers and Nones have no name, as in metadata."""
    out = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # keys are stored as their data
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = ",".join(map(str, leaf.shape))
        out[name] = f"{np.dtype(leaf.dtype).name if with_types else ''}[{shape}]"
    return out
