"""The same run in several processes: equal numbers, other devices, signals, deaths.

All runs are the command, as a user starts it, on the CPU devices of this machine. One run is left
alone, in one process; the others must come to its picks and losses.
"""

import contextlib
import re
import signal
import time

import jax
import pytest

from aced.checkpoints import checkpointer
from aced.metrics import history
from aced.parallel import distributed
from aced.train import loop
from tests import many_processes, small_run


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("reference"))
    loop.run(small_run.get_config(), folder, jax.devices()[:1])
    return folder


@pytest.fixture
def start(reference, tmp_path):
    """Starts the run in `tmp_path / "run"`, with these numbers of processes and devices."""

    def start(processes, devices, *settings, arguments=""):
        recipe = f"tests/small_run.py:reference={reference}{arguments}"
        command = ["-m", "aced.main", f"--config={recipe}"]
        command += [f"--workdir={tmp_path / 'run'}", *settings]
        command += ["--distributed"] * (processes > 1)
        return many_processes.start(processes, devices, command, tmp_path / "logs")

    return start


@pytest.fixture(scope="module")
def undisturbed(reference, tmp_path_factory):
    """The workdir of the run that is left alone, on 8 devices in 1 process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = ["-m", "aced.main", f"--config=tests/small_run.py:reference={reference}"]
    command.append(f"--workdir={folder / 'run'}")
    with many_processes.start(1, 8, command, folder / "logs") as started:
        assert started.exit_codes() == [0], started.output(0)
    return folder / "run"


def assert_same_run(workdir, expected):
    assert history.read_picks(workdir) == history.read_picks(expected)
    assert len(history.read_picks(workdir)) == small_run.STEPS
    got, want = history.read(workdir), history.read(expected)
    for a, b in zip(got, want, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["selection/noisy_share"] == b["selection/noisy_share"]
        assert a["wall/records_skipped"] == 0
    evaluated = [line["step"] for line in got if "retrieval/mean_r1" in line]
    assert evaluated == [small_run.STEPS // 2, small_run.STEPS]
    for name, value in want[-1].items():
        if name.startswith(("retrieval/", "classes/")):
            # Of 64 pairs; two that are equally near may change places.
            assert got[-1][name] == pytest.approx(value, abs=0.04), name


def saved(workdir):
    """Steps of the checkpoints that are there."""
    folder = workdir / checkpointer.FOLDER
    with contextlib.suppress(FileNotFoundError):
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    return []


def wait_for_a_checkpoint(started, workdir):
    """Waits until the run has got further than it was."""
    before = max(saved(workdir), default=0)
    started.wait_for(lambda: max(saved(workdir), default=0) > before)


@pytest.mark.slow
def test_four_processes_of_two_devices(start, undisturbed, tmp_path):
    with start(4, 2) as started:
        assert started.exit_codes() == [0] * 4, started.output(0)
    assert_same_run(tmp_path / "run", undisturbed)
    tables = [bool(re.search("run +method +trained", started.output(i))) for i in range(4)]
    assert tables == [True, False, False, False]  # the first one alone prints it


@pytest.mark.slow
def test_two_processes_of_four_moved_and_killed(start, undisturbed, tmp_path):
    workdir = tmp_path / "run"

    # 2 x 4 devices. One process gets SIGTERM: both save the same step, and end with code 42.
    with start(2, 4) as started:
        wait_for_a_checkpoint(started, workdir)
        started.processes[1].send_signal(signal.SIGTERM)
        assert started.exit_codes() == [42, 42], started.output(0) + started.output(1)
    steps = {int(re.search("Step ([0-9]+) is saved", started.output(i))[1]) for i in range(2)}
    assert steps == {saved(workdir)[-1]}
    assert max(steps) < small_run.STEPS

    # It goes on with 1 x 4 devices, on another mesh; SIGTERM again.
    with start(1, 4, "--config.mesh.fsdp=2") as started:
        wait_for_a_checkpoint(started, workdir)
        started.processes[0].send_signal(signal.SIGTERM)
        assert started.exit_codes() == [42], started.output(0)
    assert f"resumes after step {max(steps)} of" in started.output(0)

    # Back on 2 x 4. One process dies, and the other one with it.
    with start(2, 4) as started:
        wait_for_a_checkpoint(started, workdir)
        started.processes[1].kill()
        begin = time.monotonic()
        codes = started.exit_codes(100)
    assert time.monotonic() - begin < 4 * many_processes.HEARTBEAT_SECONDS
    assert codes[0] in (distributed.LOST_PEER, *many_processes.LOST_THE_OTHER), started.output(0)

    # It goes on from the last checkpoint, to the end.
    with start(2, 4) as started:
        assert started.exit_codes() == [0, 0], started.output(0)
    assert_same_run(workdir, undisturbed)


@pytest.mark.slow
def test_two_processes_that_score_ahead_killed(start, reference, tmp_path):
    """The picks on their way are in the checkpoint: each process reads its part of them again."""
    ahead, workdir = ",score_ahead=2", tmp_path / "run"
    command = ["-m", "aced.main", f"--config=tests/small_run.py:reference={reference}{ahead}"]
    command.append(f"--workdir={tmp_path / 'alone'}")
    alone = many_processes.start(1, 1, command, tmp_path / "logs")
    with alone as started:
        assert started.exit_codes() == [0], started.output(0)
    with start(2, 4, arguments=ahead) as started:
        wait_for_a_checkpoint(started, workdir)
        for process in started.processes:
            process.kill()
        started.exit_codes(100)
    assert max(saved(workdir)) < small_run.STEPS
    with start(2, 4, arguments=ahead) as started:
        assert started.exit_codes() == [0, 0], started.output(0)
    assert "resumes after step" in started.output(0)
    assert_same_run(workdir, tmp_path / "alone")
