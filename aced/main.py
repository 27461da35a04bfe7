"""Trains and evaluates any method: `python -m aced.main --config=configs/smoke.py`.

JAX and modules that need it are imported in functions, so that `--help` and errors in flags are
fast.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from aced import command
from aced.config import ConfigError, expand
from aced.files import ownership

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe, a file of configs/, with arguments behind a colon if it takes any: "
    "configs/acid_b16.py:tiny, configs/smoke.py:method=iid,steps=100. Its header says what it "
    "costs. Any setting can be changed: --config.method.selection.gain=10; config.json in the "
    "workdir lists them all.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, local or gs://. Starting again with the same folder goes on where the run "
    "stopped. Default: runs/<name of the config file>.",
)
_DISTRIBUTED = flags.DEFINE_boolean(
    "distributed",
    None,
    "Start this command on every machine and train as one run. The processes find each other on "
    "Cloud TPU VMs, in GKE, under SLURM and Open MPI; elsewhere set ACED_COORDINATOR=host:port of "
    "process 0, ACED_NUM_PROCESSES and ACED_PROCESS_ID. The workdir is one that all see. A process "
    "that is silent for ACED_HEARTBEAT_SECONDS (100) counts as dead and ends the run.",
)

_NONE = re.compile(r"--?config\.([\w.]+)=None")


def main(argv: list[str]) -> None:
    """Flags -> config -> loop.run."""
    import jax

    from aced.report.command import write_pictures
    from aced.train import loop, summary
    from aced.train.config import parse

    folder = workdir()
    with running(argv, f"--workdir={folder}"):
        logging.info("workdir: %s", folder)
        loop.run(_CONFIG.value, folder, force=flags.FLAGS.force)
        if jax.process_index() == 0:
            print(summary.table(folder))
            if parse(_CONFIG.value).method.selects:
                print(f"What was chosen, in pictures: {write_pictures(folder)}")
            print(f"The run is in {folder}. Curves: python -m aced.report {folder}")


@contextlib.contextmanager
def running(argv: list[str], place: str) -> Iterator[None]:
    """Runs a command with these flags; see `command.running_together`."""
    refuse_arguments(argv)
    with command.running_together(place, _DISTRIBUTED.value):
        yield


def refuse_arguments(argv: list[str]) -> None:
    """Raises a UsageError for positional arguments."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments {argv[1:]}; settings are --config.key=value.")


def workdir() -> str:
    """The workdir of the flags; expands ~, which bash does not in `--workdir=~/run`."""
    return expand(_WORKDIR.value or os.path.join("runs", run_name()))


def run_name() -> str:
    """The name of the run, derived from the flag `config`."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = os.path.splitext(os.path.basename(file))[0]
    return re.sub(r"[^\w.-]+", "_", f"{name}_{argument}").strip("_")


def _no_setting(message: str) -> str:
    """Rewrites ml_collections' message about a setting that does not exist."""
    name, _, hint = message.replace("\\n", "\n").replace("\\'", "'").strip("\"'").partition("\n")
    name = name.strip("\"'")
    return f"There is no {name!r} in the config. " + (
        hint
        or "Evaluations, members of a mixture and teachers are added in a config file: see "
        "configs/mine.py in docs/guides/runs.md."
    )


def _set_to_none(config: ml_collections.ConfigDict, path: str) -> None:
    """Sets a setting to None, which ml_collections cannot: flags have the type of the value."""
    *folders, name = path.split(".")
    for folder in folders:
        config = config[folder]
    if name not in config:
        raise KeyError(name)
    config[name] = None


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with one-line errors."""
    # A command is a module, or the __main__.py of a package.
    name = os.path.splitext(argv[0].removesuffix("/__main__.py"))[0].rpartition("/")[2]
    try:
        nones = {arg: match[1] for arg in argv if (match := _NONE.fullmatch(arg))}
        rest = flags.FLAGS([arg for arg in argv if arg not in nones])
        file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        if not os.path.isfile(file):
            raise ConfigError(
                f"There is no config file {file} in {os.getcwd()}. Start from the root of the "
                "repository, where configs/ is."
            )
        _CONFIG.value.is_locked  # noqa: B018 - raises errors of the file
        for path in nones.values():
            _set_to_none(_CONFIG.value, path)
        return rest
    except ModuleNotFoundError as error:
        message = f"{error}. Start from the root of the repository, where configs/ is."
    except (KeyError, AttributeError) as error:
        message = _no_setting(str(error))
    except (flags.Error, TypeError, ConfigError, OSError) as error:
        # Errors in a config file arrive with their traceback; the last line is the message.
        message = str(error).strip().splitlines()[-1].replace("\\n", ": ").replace("\\'", "'")
        message = re.sub(r"^(Configuration is not .* load|aced\.[\w.]+): ", "", message)
        if "--config must have a value" in message:
            message = "--config is missing: give a recipe, such as --config=configs/smoke.py."
    sys.exit(f"\n{message}\nSee python -m aced.{name} --help.")


if __name__ == "__main__":
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=parse_flags)
