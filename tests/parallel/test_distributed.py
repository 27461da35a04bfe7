"""How processes find each other, the messages if they do not, and how they end together.

Whole runs in several processes are in test_many_processes.py.
"""

import contextlib
import glob
import http.server
import os
import re
import signal
import threading
import time

import jax
import pytest

from aced.config import ConfigError
from aced.files import ownership
from aced.parallel import distributed
from tests import many_processes

CLUSTER = re.compile(r"ACED_|SLURM_|OMPI_|TPU_|GCE_|JAX_PLATFORMS")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No trace of a cluster."""
    for name in filter(CLUSTER.match, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr(glob, "glob", lambda pattern: [])


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"COORDINATOR": "a:1"}, "ACED_NUM_PROCESSES and ACED_PROCESS_ID is not set. To start"),
        ({"PROCESS_ID": "0", "NUM_PROCESSES": "2"}, "ACED_COORDINATOR is not set"),
        (
            {"COORDINATOR": "host", "PROCESS_ID": "0", "NUM_PROCESSES": "2"},
            "ACED_COORDINATOR must be host:port, got 'host'",
        ),
        (
            {"COORDINATOR": "host:1", "PROCESS_ID": "2", "NUM_PROCESSES": "2"},
            "ACED_PROCESS_ID = 2 must be in 0 ... ACED_NUM_PROCESSES - 1 = 1",
        ),
        (
            {"COORDINATOR": "host:1", "PROCESS_ID": "one", "NUM_PROCESSES": "2"},
            "ACED_PROCESS_ID must be a whole number, got 'one'",
        ),
    ],
)
def test_variables_that_do_not_fit(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(f"ACED_{name}", value)
    with pytest.raises(ConfigError, match=re.escape(message)):
        distributed.initialize()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"ACED_NUM_PROCESSES": "2"}, "ACED_NUM_PROCESSES is set"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, "a SLURM step with several tasks"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "an Open MPI job"),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, "a TPU slice with several workers"),
        ({"TPU_PROCESS_BOUNDS": "2,2,1"}, "a TPU slice"),
    ],
)
def test_one_of_several_processes_does_not_run_alone(monkeypatch, variables, reason):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{reason}.*add --distributed.*--nodistributed"):
        distributed.refuse_to_run_alone()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "4"},  # in a batch script, outside of any step
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_PROCESS_BOUNDS": "1,1,1"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "JAX_PLATFORMS": "cpu"},
    ],
)
def test_single_process_may_run(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.refuse_to_run_alone()


@pytest.mark.parametrize(("workers", "refused"), [("10.0.0.1", False), ("h-0,h-1", True)])
def test_workers_of_a_tpu_vm(monkeypatch, workers, refused):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            good = self.path.endswith("/instance/attributes/worker-network-endpoints")
            good = good and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write(workers.encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setattr(glob, "glob", lambda pattern: ["/dev/accel0"] * ("accel" in pattern))
        try:
            if refused:
                with pytest.raises(ConfigError, match="a TPU slice with several workers"):
                    distributed.refuse_to_run_alone()
            else:
                distributed.refuse_to_run_alone()
        finally:
            server.shutdown()


def test_no_metadata_server_means_one_worker(monkeypatch):
    monkeypatch.setattr(glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{many_processes.free_port()}")
    distributed.refuse_to_run_alone()


def test_agreement_functions_in_a_single_process(tmp_path):
    assert distributed.total(3) == 3
    assert distributed.same(7)
    assert [distributed.anywhere(x) for x in (True, False)] == [True, False]
    distributed.check_shared(tmp_path)
    with pytest.raises(KeyError), distributed.ending_together():
        raise KeyError


@pytest.mark.parametrize(
    ("status", "code"),
    [("RESOURCE_EXHAUSTED: out of memory", 1), ("INTERNAL: connection closed by peer", 134)],
)
def test_only_a_lost_peer_has_the_restart_exit_code(monkeypatch, status, code):
    """What would fail again at once must not be restarted for a night."""
    ends = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "_GRACE_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", ends.append)
    with contextlib.suppress(jax.errors.JaxRuntimeError), distributed.ending_together():
        raise jax.errors.JaxRuntimeError(status)
    assert ends == [code]


def start(program, folder, count=2, **variables):
    return many_processes.start(count, 1, ["-c", program], folder, **variables)


def test_missing_cluster_error_names_the_variables(tmp_path):
    program = "from aced.parallel import distributed; distributed.initialize()"
    with start(program, tmp_path, count=1) as started:
        assert started.exit_codes() == [1]
    text = started.output(0)
    assert "ConfigError: --distributed found no cluster here" in text
    assert "set ACED_COORDINATOR=host:port of the first one, ACED_NUM_PROCESSES=n and" in text


def test_missing_processes_time_out(tmp_path):
    program = together("")
    port = many_processes.free_port()
    variables = {"ACED_COORDINATOR": f"127.0.0.1:{port}", "ACED_NUM_PROCESSES": 2}
    variables |= {"ACED_START_SECONDS": 2, "ACED_PROCESS_ID": 1}
    with start(program, tmp_path, count=1, **variables) as started:
        assert started.exit_codes(60) == [-signal.SIGABRT]
    text = started.output(0)
    assert f"all processes (this one: 1 of 2, coordinator 127.0.0.1:{port}); if they do" in text


# Both join, then process 1 does something that process 0 does not take part in.
TOGETHER = """
import os, signal, sys, time
from absl import logging
logging.set_verbosity("info")
from aced.parallel import distributed
from aced.parallel.preemption import EXIT_CODE, Preemption
import jax

with distributed.ending_together():
    distributed.initialize()
    first = jax.process_index() == 0
    {body}
"""


def together(body):
    return TOGETHER.format(body=body.replace("\n", "\n    "))


def test_processes_agree_and_exit_alike(tmp_path):
    program = together(
        """
assert distributed.total(10 + jax.process_index()) == 21
assert distributed.anywhere(first) and not distributed.anywhere(False)
assert distributed.same(5) and not distributed.same(jax.process_index())
distributed.check_shared(os.environ["SHARED"])
for run in range(2):  # the second one starts at step 1 again
    with Preemption() as preemption:
        for step in range(1, 500):
            if run == 1 and step == 10 and not first:
                os.kill(os.getpid(), signal.SIGTERM)
            distributed.total(step)  # as the collectives of a step
            if preemption.reached(step):
                print("stops after", run, step)
                sys.exit(EXIT_CODE)
            if run == 0 and step == 40:
                break
            time.sleep(0.01)
"""
    )
    with start(program, tmp_path, SHARED=tmp_path / "new") as started:
        assert started.exit_codes(100) == [42, 42], started.output(0) + started.output(1)
    stops = [re.findall("stops after 1 ([0-9]+)", started.output(i)) for i in range(2)]
    assert stops[0] == stops[1]
    assert len(stops[0]) == 1
    assert list((tmp_path / "new").iterdir()) == []
    assert "Process 1 of 2, 1 local devices, 2 in all." in started.output(1)


def test_unshared_workdir_is_refused(tmp_path):
    program = together(
        """
distributed._SHARED_SECONDS = 1.0
distributed.check_shared(os.path.join(os.environ["SHARED"], str(jax.process_index())))
"""
    )
    with start(program, tmp_path, SHARED=tmp_path) as started:
        codes = started.exit_codes(60)
    assert codes[0] == 1
    assert codes[1] in (1, -signal.SIGABRT)  # it ends, too
    assert "ConfigError: Processes [1] do not see what process 0 writes" in started.output(0)


@pytest.mark.slow
@pytest.mark.parametrize("taken", [True, False])
def test_first_process_owns_the_folder_for_all(tmp_path, taken):
    """The others wait for it longer than a collective would."""
    program = together(
        """
from aced.files import ownership
ownership._DYING_SECONDS = 40.0
path = os.environ["SHARED"]
with distributed.entered_by_first(ownership.owned(path)):
    assert distributed.total(1) == 2
    print("owns", os.path.exists(path), flush=True)
    distributed.total(1)
print("done", flush=True)
"""
    )
    path = str(tmp_path / ownership.FILE)
    with contextlib.ExitStack() as stack:
        if taken:
            stack.enter_context(ownership.owned(path))
        started = stack.enter_context(start(program, tmp_path / "logs", SHARED=path))
        codes = started.exit_codes(100)
        outputs = [started.output(i) for i in range(2)]
        if taken:
            assert codes[0] == 1, outputs
            assert codes[1] in (1, -signal.SIGABRT)
            for output in outputs:
                assert f"in use: process {os.getpid()} on" in output
        else:
            assert codes == [0, 0], outputs
            assert all("owns True" in output and "done" in output for output in outputs)
    assert not os.path.exists(path)


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_error_in_one_process_ends_all(tmp_path, failing):
    program = together(
        f"""
if jax.process_index() == {failing}:
    raise RuntimeError("only here")
time.sleep(300)
"""
    )
    begin = time.monotonic()
    with start(program, tmp_path) as started:
        codes = started.exit_codes(100)
    assert time.monotonic() - begin < 60
    assert codes[failing] == 1
    assert codes[1 - failing] == -signal.SIGABRT
    assert "RuntimeError: only here" in started.output(failing)
    assert f"Process {failing} ends, and so will the others." in started.output(failing)
