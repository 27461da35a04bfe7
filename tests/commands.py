"""`python -m aced.NAME` inside the test's process: a start of Python costs seconds.

Each command is also run in a process of its own somewhere in the tests.
"""

import contextlib
import importlib.util
import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import grain  # noqa: F401  defines its flags, once per process: before any snapshot
import jaxtyping._decorator
from absl import app, flags
from absl.testing import flagsaver

# The wrapper that checks shapes in tests stands between a module and the flags that it defines.
flags._helpers.disclaim_module_ids.add(id(jaxtyping._decorator))
app.define_help_flags()  # before any snapshot: absl defines them once per process


def call(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with these arguments; the result is that of `subprocess.run`."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _own_flags(),
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", [f"aced/{command}.py", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(action="ignore"),  # as in a process of its own
    ):
        try:
            _start(command)
            code: int | str | None = 0
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):  # the interpreter prints it and exits with 1
        err.write(code + "\n")
        code = 1
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())


def _start(command: str) -> None:
    # As a file, and no module: without checks of shapes, which take the classes of a second
    # __main__ for those of the first one.
    module = importlib.util.find_spec(f"aced.{command}")
    if module.submodule_search_locations:
        module = importlib.util.find_spec(f"aced.{command}.__main__")
    runpy.run_path(module.origin, run_name="__main__")


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
    """Restores the defined flags and their values after a command."""
    values = flags.FLAGS
    registers = (
        values._flags(),
        values.flags_by_module_dict(),
        values.flags_by_module_id_dict(),
        values.key_flags_by_module_dict(),
    )
    before = [_copy(register) for register in registers]
    try:
        with flagsaver.flagsaver():
            yield
    finally:
        for register, kept in zip(registers, before, strict=True):
            register.clear()
            register.update(kept)


def _copy(register: dict) -> dict:
    return {k: list(v) if isinstance(v, list) else v for k, v in register.items()}
