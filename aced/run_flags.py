"""The flags of commands that work on a run: --config with its settings, --workdir, --distributed.

JAX and modules that need it are imported in functions, so that help and errors in flags are fast.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from aced import command, command_line, nearest, recipes
from aced.config import expand, flatten
from aced.errors import UserError

flags.disclaim_key_flags()  # those defined here are the command's, whose --help lists them

_CONFIG = re.compile(r"--?(config|flagfile)(=|$)")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)(=None$)?.*", re.DOTALL)
_ADDED = (
    "Evaluations, members of a mixture, teachers and runs before this one are added in a config "
    "file: see configs/mine.py in docs/guides/runs.md."
)
_WEIGHTS = (
    "The weights are set together: --config.data.caption_weights=\"{'given': 1, 'synthetic': 3}\"."
)
# How entries are added to groups of settings that have none at first.
_MAPPINGS = dict.fromkeys(
    ("evals", "mixture", "teachers", "suites", "before", "before_caches"), _ADDED
) | {"caption_weights": _WEIGHTS}


def define() -> None:
    """Defines the flags of the running command."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The recipe, a file of configs/, with arguments after a colon: configs/acid_b16.py:tiny, "
        "configs/smoke.py:method=iid,steps=100. The argument help prints what it costs, and its "
        "arguments. Or config.json of a run, for the same settings again. Any setting can be "
        "changed: --config.method.selection.gain=10; config.json in the workdir lists them all.",
    )
    flags.FLAGS["config"].parser = recipes.Parser()
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run, local or gs://. Starting again with the same folder goes on where the "
        "run stopped. Default: runs/<name of the config file>; with config.json of a run, "
        "<its folder>-again for a new run, and its folder for commands that read a run.",
    )
    flags.DEFINE_boolean(
        "distributed",
        None,
        "Start this command on every machine and work as one. The processes find each other on "
        "Cloud TPU VMs, in GKE, under SLURM and Open MPI; elsewhere set ACED_COORDINATOR=host:port "
        "of process 0, ACED_NUM_PROCESSES and ACED_PROCESS_ID. The workdir is one that all see. A "
        "process that is silent for ACED_HEARTBEAT_SECONDS (100) counts as dead and ends the run.",
    )


@contextlib.contextmanager
def running(place: str) -> Iterator[None]:
    """Runs a command with these flags; see `command.running_together`."""
    with command.running_together(place, flags.FLAGS.distributed):
        yield


def workdir(*, starts: bool = False) -> str:
    """The workdir of the flags; expands ~, which bash does not in `--workdir=~/run`.

    Args:
        starts: whether the command starts a run, which must not be the one whose config.json it
            takes its settings from, unless --workdir names that.
    """
    if flags.FLAGS.workdir:
        return expand(flags.FLAGS.workdir)
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    if recipes.is_record(file):
        folder = os.path.dirname(file) or os.curdir
        return expand(f"{folder.rstrip('/')}-again" if starts else folder)
    return os.path.join("runs", _run_name(file))


def _run_name(file: str) -> str:
    """The name of the run of a recipe, with its arguments."""
    path, _, argument = file.partition(":")
    name = os.path.splitext(os.path.basename(path))[0]
    return re.sub(r"[^\w.-]+", "_", f"{name}_{argument}").strip("_")


def parse(argv: list[str]) -> list[str]:
    """Parses the flags of a command that called `define`; see `command_line.run`.

    Raises:
        UserError: a flag, recipe, argument or setting is unknown; the message has the nearest ones.
        flags.Error: a value is not of the type of its flag.
    """
    command_line.check_names(argv)
    if not any(_CONFIG.match(argument) for argument in argv):
        raise UserError("--config is missing: give a recipe.\n" + recipes.summaries())
    overrides = [match for argument in argv if (match := _OVERRIDE.fullmatch(argument))]
    nones = {match[0]: match[1] for match in overrides if match[2]}
    try:
        rest = flags.FLAGS([argument for argument in argv if argument not in nones])
        for path in nones.values():
            _set_to_none(flags.FLAGS.config, path)
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        config = flags.FLAGS["config"].parser.config
        unknown = [match[1] for match in overrides if not _has(config, match[1])]
        raise UserError(_unknown(unknown[0], config) if unknown else str(error)) from error
    return rest


def _set_to_none(config: ml_collections.ConfigDict, path: str) -> None:
    """Sets a setting to None, which ml_collections cannot: flags have the type of the value."""
    *folders, name = path.split(".")
    for folder in folders:
        config = config[folder]
    if name not in config:
        raise KeyError(name)
    config[name] = None


def _has(config: ml_collections.ConfigDict, path: str) -> bool:
    """Whether `config` has a setting or group of settings with this path."""
    found: Any = config
    for name in path.split("."):
        if not isinstance(found, ml_collections.ConfigDict) or name not in found:
            return False
        found = found[name]
    return True


def _unknown(path: str, config: ml_collections.ConfigDict) -> str:
    """The message about a setting that does not exist."""
    found = nearest.settings(path, flatten(config.to_dict()))
    message = nearest.did_you_mean([f"--config.{one}" for one in found])
    parts = path.split(".")
    known = next(n for n in range(len(parts)) if not _has(config, ".".join(parts[: n + 1])))
    added = _MAPPINGS.get(parts[known - 1], "") if known else ""
    return f"There is no setting {path}{message} {added}".rstrip()
