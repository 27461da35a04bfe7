"""launch/tpu_vm.sh against a fake gcloud, and launch/tpu_worker.sh for real behind it."""

import os
import pathlib
import signal
import sys

import pytest

WHERE = ["--name=node", "--zone=z", "--project=p"]
QUICK = ["--poll=0.05", "--stop-timeout=20"]
RUN = ["--config=configs/smoke.py", "--workdir=gs://b/run"]

# python of a worker: `-m pip` succeeds; `-m aced.main` runs the file `script`.
PYTHON = """#!/usr/bin/env bash
if [[ $2 == pip ]]; then echo "$@" > "$HOME/pip"; exit 0; fi
printf '%s\\n' "$PWD" "$@" > "$HOME/args"
trap 'echo saved; exit 42' TERM
echo "working"
source "$HOME/script"
"""


def the_run_of(path: pathlib.Path) -> list[str]:
    return (path / "args").read_text().splitlines()


def describe(world, *states):
    world.answer("tpu-vm describe", *(states or ["READY"]))


def workers(world, *scripts: str) -> list[pathlib.Path]:
    homes = world.add_workers(len(scripts), PYTHON)
    for home, script in zip(homes, scripts, strict=True):
        (home / "script").write_text(script)
    describe(world)
    return homes


def test_run_on_two_workers(world):
    homes = workers(world, "sleep 0.5; echo done; exit 0", "exit 0")
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN, "--", "--x=a 'b' \"c\"")
    assert result.code == 0, result.text
    for home in homes:
        assert (home / "pip").read_text().split()[-1] == f"{home}/aced[tpu,gcs]"
        assert (home / "aced" / "aced" / "data" / "records.py").exists()
        assert (home / "aced" / "configs" / "smoke.py").exists()
        assert not (home / "aced" / ".git").exists()
        assert not (home / "aced" / "runs").exists()
        words = ["-m", "aced.main", "--distributed", *RUN, "--x=a 'b' \"c\""]
        assert the_run_of(home) == [f"{home}/aced", *words]
    assert "working\ndone\n" in result.text  # the log of worker 0
    assert "tpu-vm delete node --zone=z --project=p" in result.text


def test_dry_run_prints_the_calls_of_the_real_run(world):
    workers(world, "exit 0")
    flags = [*WHERE, *QUICK, *RUN, "--env=A=b c", "--internal-ip", "--", "--x=a b"]
    dry = world.launch("tpu_vm.sh", *flags[:-2], "--dry-run", *flags[-2:])
    assert not world.calls()
    real = world.launch("tpu_vm.sh", *flags)
    assert real.code == 0, real.text
    assert [words for words in dry.printed if words[0] == "gcloud"] == world.calls()
    # A real run does not print its questions.
    assert [words for words in dry.printed if "describe" not in words] == real.printed


def test_a_run_that_fails_ends_with_its_code_and_the_log_of_the_worker_that_knows(world):
    workers(world, "sleep 0.2; exit 134", "echo the reason; exit 3")
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN)
    assert result.code == 134
    assert "the last lines of the log:\nworking\nthe reason" in result.text
    assert "ended with code 3" in result.text
    assert "the run failed with code 134" in result.text


def test_one_worker_that_was_told_to_save_means_saved(world):
    workers(world, "exit 134", "exit 42")
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN)
    assert result.code == 42
    assert "The same command again goes on." in result.text


def test_stop_saves_and_status_tells(world):
    (home,) = workers(world, "sleep 60 & wait")
    here = [*WHERE, *QUICK]
    assert world.launch("tpu_vm.sh", "sync", *here).code == 0
    assert "no run" in world.launch("tpu_vm.sh", "status", *here).text
    assert world.launch("tpu_vm.sh", "start", *here, *RUN).code == 0
    assert ": running; working" in world.launch("tpu_vm.sh", "status", *here).text
    again = world.launch("tpu_vm.sh", "start", *here, *RUN)
    assert again.code == 1
    assert "a run is going on here already" in again.text
    # `run` after this machine was cut off: what is going on is followed, nothing is copied over it.
    copies = len(world.calls("tpu-vm scp"))
    follower = world.start("tpu_vm.sh", "run", *here, *RUN)
    world.wait_for_call("tpu_worker.sh follow")
    stop = world.launch("tpu_vm.sh", "stop", *here)
    assert "ended with code 42" in stop.text
    followed = world.finish(follower)
    assert followed.code == 42
    assert "it is followed" in followed.text
    assert "saved" in followed.text
    assert len(world.calls("tpu-vm scp")) == copies
    assert (home / "aced_run" / "exit_code").read_text() == "42\n"


def test_stop_kills_what_does_not_save(world):
    workers(world, "trap '' TERM; while true; do sleep 0.1; done")
    here = [*WHERE, "--poll=0.05", "--stop-timeout=1"]
    world.launch("tpu_vm.sh", "sync", *here)
    world.launch("tpu_vm.sh", "start", *here, *RUN)
    assert "ended with code 137" in world.launch("tpu_vm.sh", "stop", *here).text


def test_the_machine_is_taken_away_while_the_run_saves(world):
    """A shutdown sends SIGTERM to everybody: what supervises the run still notes its code."""
    (home,) = workers(world, "trap 'sleep 0.5; exit 42' TERM; sleep 60 & wait")
    here = [*WHERE, *QUICK]
    world.launch("tpu_vm.sh", "sync", *here)
    world.launch("tpu_vm.sh", "start", *here, *RUN)
    run = int((home / "aced_run" / "pid").read_text())
    os.killpg(os.getpgid(run), signal.SIGTERM)
    assert world.launch("tpu_vm.sh", "follow", *here).code == 42


def test_a_new_node_that_does_not_answer_yet(world):
    describe(world, "CREATING", "READY")
    world.answer("tpu-vm scp", {"code": 255, "err": "Connection refused\n"}, "")
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN)
    assert result.code == 0, result.text
    assert "node is CREATING" in result.text
    assert "Connection refused" in result.text
    assert len(world.calls("tpu-vm scp")) == 2


def test_a_node_that_never_answers(world):
    describe(world)
    world.answer("tpu-vm scp", {"code": 255})
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN, "--attempts=3")
    assert result.code == 255
    assert len(world.calls("tpu-vm scp")) == 3
    assert "failed 3 times" in result.text
    assert not world.calls("tpu_worker.sh start")


def test_a_broken_connection_is_made_again(world):
    describe(world)
    world.answer("tpu_worker.sh follow", {"code": 255}, {"out": "more of the log\n", "code": 0})
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN)
    assert result.code == 0, result.text
    assert "The connection broke" in result.text
    assert len(world.calls("tpu_worker.sh start")) == 1


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED"])
def test_a_node_that_is_gone(world, state):
    describe(world, "READY", state)
    world.answer("tpu_worker.sh follow", {"code": 255})
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN)
    assert result.code == 255
    assert f"node is {state}" in result.text
    assert "queued_resource.sh" in result.text


def test_a_node_that_is_not_there(world):
    describe(world, {"code": 1, "err": "ERROR: NOT_FOUND: node was not found\n"})
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN)
    assert result.code == 1
    assert "NOT_FOUND" in result.text
    assert "check --name, --zone and --project" in result.text


def test_waiting_for_a_node_ends(world):
    describe(world, "CREATING")
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN, "--ready-timeout=1")
    assert result.code == 1
    assert "not READY after 1 s, but CREATING" in result.text


def test_ctrl_c_tells_what_goes_on_and_what_it_costs(world):
    describe(world)
    world.answer("tpu_worker.sh follow", {"seconds": 30})
    launcher = world.start("tpu_vm.sh", *WHERE, *QUICK, *RUN)
    world.wait_for_call("tpu_worker.sh follow")
    os.killpg(launcher.pid, signal.SIGINT)
    result = world.finish(launcher, timeout=10)
    assert result.code == 130
    assert "costs money until it is deleted" in result.text
    assert "follow  launch/tpu_vm.sh follow --name=node --zone=z --project=p" in result.text


def test_worker_without_a_new_python(world):
    """The image's python is too old and apt-get has none: said, not a traceback."""
    (home,) = workers(world, "exit 0")
    (home / "aced_venv" / "bin" / "python").unlink()
    for name in ("python3.13", "python3.12", "python3.11", "sudo"):
        (world.folder / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (world.folder / "bin" / name).chmod(0o755)
    result = world.launch("tpu_vm.sh", *WHERE, *QUICK, *RUN, "--attempts=1")
    assert result.code == 1
    assert "--runtime-version" in result.text
    assert sys.executable not in result.text
