"""Runs of several processes on this machine, all ended with the test."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

ROOT = pathlib.Path(__file__).parents[1]
HEARTBEAT_SECONDS = 10
# How a process may end, beside `distributed.LOST_PEER`, when another one has died: by JAX's own
# heartbeat, or by the error of a message between the two.
LOST_THE_OTHER = (-signal.SIGABRT, 1)
# Compiles quickly rather than well. TPU's compiler reads none of these.
FAST_COMPILER = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_prefer_vector_width=128"
)
# What users compile with, for a test that needs float32's last digit.
USERS_COMPILER = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_prefer_vector_width": 256,
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(devices: int, **changes: str | int) -> dict[str, str]:
    """The environment of this process, with `devices` CPU devices and no trace of a cluster.

    Programs for several devices are not taken from the compilation cache: XLA aborts where two of
    them run one after the other, as a step and an evaluation do, since the devices wait for each
    other in different ones.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACED_", "SLURM_", "OMPI_"))}
    kept["XLA_FLAGS"] = FAST_COMPILER  # instead of the devices of this process
    kept |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    kept["JAX_ENABLE_COMPILATION_CACHE"] = str(int(devices == 1))
    kept["PYTHONPATH"] = str(ROOT)
    return kept | {name: str(value) for name, value in changes.items()}


class Started:
    """Processes that run the same command; what they print is in files."""

    def __init__(self, processes: Sequence[subprocess.Popen], logs: Sequence[pathlib.Path]):
        self.processes, self._logs = processes, logs

    def output(self, index: int) -> str:
        return self._logs[index].read_text()

    def exit_codes(self, timeout: float = 300) -> list[int]:
        """Waits for all; -9 is one that had to be killed after `timeout` seconds."""
        end = time.monotonic() + timeout
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
        self.kill()
        return [process.wait() for process in self.processes]

    def wait_for(self, condition: Callable[[], bool], timeout: float = 300) -> None:
        """Waits until `condition` holds; fails, with all output, when a process ends before."""
        end = time.monotonic() + timeout
        while not condition():
            ended = [i for i, process in enumerate(self.processes) if process.poll() is not None]
            if ended or time.monotonic() > end:
                outputs = "\n".join(self.output(i) for i in range(len(self.processes)))
                raise AssertionError(f"Waited in vain; processes that ended: {ended}\n{outputs}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kills what is left, with all children."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def start(
    count: int, devices: int, command: Sequence[str], logs: pathlib.Path, **changes: str | int
) -> Iterator[Started]:
    """Starts `python <command>` in `count` processes of `devices` CPU devices each.

    With more than one process they find each other by the variables of `aced.parallel.distributed`.
    """
    port, name = free_port(), time.monotonic_ns()
    logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{name}-{i}.log" for i in range(count)]
    processes = []
    for i, file in enumerate(files):
        cluster = {
            "ACED_COORDINATOR": f"127.0.0.1:{port}",
            "ACED_NUM_PROCESSES": count,
            "ACED_PROCESS_ID": i,
            "ACED_HEARTBEAT_SECONDS": HEARTBEAT_SECONDS,
            # One compiles for all. If each did, or found it in a cache, one could be at the first
            # collective 30 s before another, and gloo waits no longer.
            "JAX_SHARE_BINARY_BETWEEN_HOSTS": 1,
            "JAX_ENABLE_COMPILATION_CACHE": 0,
        }
        variables = environment(devices, **(cluster if count > 1 else {}), **changes)
        with file.open("w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    cwd=ROOT,
                    env=variables,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a group of its own, to be killed as one
                )
            )
    started = Started(processes, files)
    try:
        yield started
    finally:
        started.kill()
        for process in processes:
            process.wait()
