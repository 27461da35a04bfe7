"""Commands in forks of a process that has imported everything and computed nothing.

Importing takes seconds, a small command less. JAX starts threads with its first computation, which
a fork does not have, so that whatever computes or reads checkpoints does so in a fork of its own.
"""

import atexit
import contextlib
import importlib
import logging
import os
import pathlib
import pickle
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

TIMEOUT = 600.0  # seconds, after which a command counts as hanging; a busy machine is no hang
HANGS = "hangs"
_ROOT = pathlib.Path(__file__).parents[2]
# What the commands import, without the modules that define flags as they are imported.
_PRELOADED = (
    "aced.train.loop aced.report.command aced.train.caches aced.convert.command aced.suite "
    "aced.prepare.command aced.select_text.command aced.parallel.distributed aced.data.records "
    "aced.checkpoints.checkpointer aced.data.sources.parquet aced.data.sources.tars "
    "aced.prepare.graph aced.prepare.runner aced.prepare.page aced.flag_settings "
    "aced.select_text.images aced.train.summary PIL.Image"
)


class Done(NamedTuple):
    """How a command ended."""

    code: int | str  # what `subprocess` gives, or HANGS
    text: str  # all that it printed
    message: str  # what it exited with, in words

    @property
    def is_crash(self) -> bool:
        """Whether it showed where in the code something happened, was killed or hung."""
        marks = ("Traceback (most recent call last)", "Exception in thread", "Exception ignored in")
        is_killed = self.code == HANGS or (isinstance(self.code, int) and self.code < 0)
        return is_killed or any(mark in self.text for mark in marks)


def preload() -> None:
    """Imports what the commands need, and lets forks of this process be made."""
    logging.disable(logging.WARNING)  # Beam misses packages that are not used here
    for module in _PRELOADED.split():
        importlib.import_module(module)
    logging.disable(logging.NOTSET)
    warnings.filterwarnings("ignore", message=".*fork.*")  # nothing has been computed here


class Started:
    """A command that runs in a fork; `wait` gives how it ended."""

    def __init__(self, work: Callable[[], Any], log: pathlib.Path):
        self._log, self._result = log, log.with_suffix(".result")
        log.parent.mkdir(parents=True, exist_ok=True)
        self._result.unlink(missing_ok=True)
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if not self.process:
            _child(work, log, self._result)

    def kill(self) -> None:
        """SIGKILL, to all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)

    def wait(self, timeout: float = TIMEOUT) -> Done:
        """Waits for its end; after `timeout` seconds it is killed."""
        end, code = self.began + timeout, None
        while code is None:
            process, status = os.waitpid(self.process, os.WNOHANG)
            if process:
                code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                self.kill()
                os.waitpid(self.process, 0)
                code = HANGS
            else:
                time.sleep(0.005)
        self.kill()  # whatever it started
        return Done(code, self._log.read_text("utf-8", "replace"), str(self.result() or ""))

    def result(self) -> Any:
        """What the work gave, or the words it exited with; None: nothing."""
        try:
            return pickle.loads(self._result.read_bytes())
        except (FileNotFoundError, EOFError):
            return None


def start(arguments: Sequence[str], log: pathlib.Path) -> Started:
    """Starts `python -m aced.NAME ARGUMENTS`, with what it prints in `log`."""

    def work() -> None:
        sys.modules.pop(f"aced.{arguments[0]}", None)  # it is to be __main__
        sys.argv = [f"aced/{arguments[0]}.py", *arguments[1:]]
        runpy.run_module(f"aced.{arguments[0]}", run_name="__main__", alter_sys=True)

    return Started(work, log)


def call(arguments: Sequence[str], log: pathlib.Path) -> Done:
    """`start`, and how it ended."""
    return start(arguments, log).wait()


def in_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function(*arguments)` returns, by a fork.

    Raises:
        RuntimeError: it raised; the message has its traceback.
    """
    # Not beside the arguments, where the disk may be full. Forks would remove a TemporaryDirectory.
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        started = Started(lambda: function(*arguments), folder / "log")
        done = started.wait()
        if done.code != 0:
            raise RuntimeError(f"{function.__name__} ended with {done.code}:\n{done.text[-3000:]}")
        return started.result()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _child(work: Callable[[], Any], log: pathlib.Path, result: pathlib.Path) -> None:
    """The whole life of a fork, to its end, as that of a process of its own."""
    code: Any = 1
    try:
        os.setpgid(0, 0)
        os.chdir(_ROOT)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            found, code = work(), 0
        except SystemExit as error:
            found, code = None, error.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            found, code = code, 1
        result.write_bytes(pickle.dumps(found))
        threading._shutdown()  # what the interpreter does at its end
        atexit._run_exitfuncs()
    except BaseException:
        code = code or 1
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
