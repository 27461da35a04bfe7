"""The watchdog ends a process that hangs, and leaves one alone that does not."""

import subprocess
import sys
import time

import pytest

from aced.checkpoints.checkpointer import CheckpointConfig
from aced.config import ConfigError
from aced.train.config import TrainConfig
from tests import many_processes

PROGRAM = """
import ctypes, time
from aced.parallel.watchdog import Watchdog

libc = ctypes.PyDLL(None)  # calls through it keep the interpreter's lock

def hang_in_native_code():
    libc.sleep(60)

seconds = 2.0
with Watchdog(seconds / 60) as watchdog:
    time.sleep(1.5 * seconds)  # compilation
    for _ in range(12):
        watchdog.alive()
        time.sleep(0.25)
    print("alive", flush=True)
    {last}
print("done", flush=True)
time.sleep(1.2 * seconds)  # nothing rings when the block is left
"""


def run(last):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(last=last)],
        cwd=many_processes.ROOT, env=many_processes.environment(1), capture_output=True, text=True,
        timeout=55, check=False,
    )  # fmt: skip
    return done, time.monotonic() - start


def test_watchdog_ends_a_process_that_hangs_in_native_code():
    done, seconds = run("hang_in_native_code()")
    assert done.returncode == 1
    assert done.stdout == "alive\n"
    assert "Timeout (0:00:0" in done.stderr
    assert "in hang_in_native_code" in done.stderr
    assert seconds < 50


def test_alive_resets_the_watchdog():
    done, _ = run("pass")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\ndone\n"
    assert done.stderr == ""


def test_timeout_must_exceed_that_of_a_save():
    with pytest.raises(ConfigError, match=r"watchdog_minutes = 20.0 must be 0 .* or above"):
        TrainConfig(watchdog_minutes=20.0)
    assert TrainConfig(watchdog_minutes=0.0).watchdog_minutes == 0.0
    quick = CheckpointConfig(timeout_minutes=1.0)
    assert TrainConfig(watchdog_minutes=1.1, checkpoint=quick).watchdog_minutes == 1.1
