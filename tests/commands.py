"""`python -m aced.NAME` inside the test's process: a start of Python costs seconds.

Each command is also run in a process of its own somewhere in the tests.
"""

import contextlib
import importlib
import importlib.util
import io
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from unittest import mock

import jaxtyping._decorator
from absl import app, flags
from absl.testing import flagsaver

# Those that import `aced.main` for its flags.
_OF_A_RUN = ("main", "cache", "evaluate", "preflight")
# The wrapper that checks shapes in tests stands between a module and the flags that it defines.
flags._helpers.disclaim_module_ids.add(id(jaxtyping._decorator))
app.define_help_flags()  # before any snapshot: absl defines them once per process


def call(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command with these arguments; the result is that of `subprocess.run`."""
    out, err = io.StringIO(), io.StringIO()
    with (
        _flags_of(command),
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
    if command != "main":
        # As a file, and no module: without checks of shapes, which take the classes of a second
        # __main__ for those of the first one.
        module = importlib.util.find_spec(f"aced.{command}")
        if module.submodule_search_locations:
            module = importlib.util.find_spec(f"aced.{command}.__main__")
        runpy.run_path(module.origin, run_name="__main__")
        return
    # The other commands import this module, which defines its flags where it is imported.
    module = importlib.import_module("aced.main")
    flags.DEFINE_boolean("force", False, module.ownership.FORCE)
    flags.mark_flag_as_required("config")
    app.run(module.main, flags_parser=module.parse_flags)


@contextlib.contextmanager
def _flags_of(command: str) -> Iterator[None]:
    """Lets exactly the command's flags be defined, and restores all flags and values after it."""
    importlib.import_module("aced.main")
    values, by_module = flags.FLAGS._flags(), flags.FLAGS.flags_by_module_dict()
    registers = (values, by_module, flags.FLAGS.key_flags_by_module_dict())
    before = [_copy(register) for register in registers]
    try:
        with flagsaver.flagsaver():
            if command not in _OF_A_RUN:
                for flag in list(by_module["aced.main"]):
                    del values[flag.name]
            yield
    finally:
        for register, kept in zip(registers, before, strict=True):
            register.clear()
            register.update(kept)


def _copy(register: dict) -> dict:
    return {k: list(v) if isinstance(v, list) else v for k, v in register.items()}
