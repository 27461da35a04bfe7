"""starts.jsonl: when, where and with which code a run was started and resumed.

None of this is a setting: a run may be resumed on other devices and with another commit.
"""

import contextlib
import datetime
import importlib.metadata
import pathlib
import platform
import socket
import subprocess
from typing import Any

import jax
from absl import logging
from etils import epath

from aced.data.records import Source
from aced.metrics import jsonl
from aced.train.program import Program

FILE = "starts.jsonl"
_PACKAGES = ("aced", "jax", "jaxlib", "flax", "optax", "grain")


def write(folder: epath.Path, program: Program, source: Source, step: int) -> None:
    """Appends a line, on process 0. A failed write is only logged.

    Args:
        folder: the workdir.
        program: of the run.
        source: of the training data.
        step: completed steps.
    """
    if jax.process_index() != 0:
        return
    devices = program.mesh.devices.flat
    line = {
        "step": step,
        "total_steps": program.total_steps,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": devices[0].device_kind,
        "devices": program.mesh.size,
        "processes": jax.process_count(),
        "host": socket.gethostname(),
        "data": source.name,
        "examples": len(source),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": _versions(),
    }
    try:
        jsonl.Lines(folder / FILE).write([line])
    except Exception as error:  # of the disk or the store; the run is worth more
        logging.error("%s cannot be written: %s", folder / FILE, error)


def read(folder: epath.Path) -> list[dict[str, Any]]:
    """The lines of a run, in order; runs of earlier versions have none."""
    return jsonl.read(folder / FILE, ("time", "total_steps"))


def commit() -> str:
    """The commit of the package's repository, with "+" after it if files differ from it.

    Empty if the package is not in its repository or git is not installed.
    """
    here = pathlib.Path(__file__).parent
    try:
        if _git(here, "rev-parse", "--show-prefix") != "aced/train/":
            return ""  # the package is installed inside another repository
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        return commit + "+" * bool(_git(here, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    """The versions of packages; a checkout may be used without being installed."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
