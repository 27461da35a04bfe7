"""launch/local.sh: one process, several, one that dies, Ctrl-C; and a real run."""

import json
import os
import pathlib
import signal
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROCESS = f"""#!{sys.executable} -IS
import json, os, pathlib, signal, subprocess, sys, time

def leave(number, frame):
    print("saved", flush=True)
    sys.exit(42)

signal.signal(signal.SIGTERM, leave)
keys = ["ACED_COORDINATOR", "ACED_NUM_PROCESSES", "ACED_PROCESS_ID", "JAX_PLATFORMS",
        "JAX_NUM_CPU_DEVICES", "GREETING"]
here = pathlib.Path(__file__).parent
child = subprocess.Popen(["sleep", "60"])
seen = dict(args=sys.argv[1:], env={{k: os.environ.get(k) for k in keys}}, pid=os.getpid(),
            child=child.pid)
number = os.environ.get("ACED_PROCESS_ID", "0")
(here / f"new_{{number}}").write_text(json.dumps(seen))
(here / f"new_{{number}}").rename(here / f"seen_{{number}}")
codes = json.loads((here / "codes").read_text())
code = codes[int(number)]
if code is None:
    time.sleep(60)
while not all((here / f"seen_{{i}}").exists() for i in range(len(codes))):
    time.sleep(0.01)  # no process ends before all have begun, even on a busy machine
print("last words", flush=True)
child.kill()
sys.exit(code)
"""


@pytest.fixture
def process(world, write_program):
    """process(codes): a python whose processes end with these codes, or not by themselves."""

    def write(*codes: int | None) -> str:
        (world.folder / "codes").write_text(json.dumps(codes))
        return f"--python={write_program('python', PROCESS)}"

    return write


def seen(world, number: int) -> dict:
    path = world.folder / f"seen_{number}"
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return json.loads(path.read_text())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


QUICK = ["--poll=0.05", "--config=c.py"]


def test_one_process(world, process):
    result = world.launch("local.sh", *QUICK, "--workdir=a b", process(0), "--", "--x=y z")
    assert result.code == 0, result.text
    run = seen(world, 0)
    assert run["args"] == ["-m", "aced.main", "--config=c.py", "--workdir=a b", "--x=y z"]
    assert run["env"]["ACED_PROCESS_ID"] is None


def test_several_processes_get_the_contract_of_distributed(world, process):
    flags = ["--processes=3", "--devices=2", "--env=GREETING=good day", "--port=12345"]
    result = world.launch("local.sh", *QUICK, *flags, process(0, 0, 0))
    assert result.code == 0, result.text
    for number in range(3):
        run = seen(world, number)
        assert run["args"] == ["-m", "aced.main", "--distributed", "--config=c.py"]
        assert run["env"] == {
            "ACED_COORDINATOR": "127.0.0.1:12345",
            "ACED_NUM_PROCESSES": "3",
            "ACED_PROCESS_ID": str(number),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "GREETING": "good day",
        }
        assert f"[{number}] last words" in result.text


def test_the_dry_run_prints_what_runs(world, process):
    flags = [*QUICK, "--processes=2", "--devices=2", "--port=12345", process(0, 0)]
    dry = world.launch("local.sh", *flags, "--dry-run")
    assert not (world.folder / "seen_0").exists()
    assert dry.printed == world.launch("local.sh", *flags).printed
    for number, words in enumerate(dry.printed):
        assert words[words.index("-m") :] == seen(world, number)["args"]


def test_if_one_dies_all_are_ended_with_their_children(world, process):
    flags = ["--processes=3", "--devices=1"]
    result = world.launch("local.sh", *QUICK, *flags, process(None, 7, None))
    assert result.code == 7
    assert "process 1 ended with code 7" in result.text
    for number in (0, 2):
        assert not is_alive(seen(world, number)["pid"])
        assert not is_alive(seen(world, number)["child"])


def test_with_code_42_the_others_have_time_but_not_for_ever(world, process):
    flags = ["--processes=2", "--devices=1", "--stop-timeout=2"]
    started = time.monotonic()
    result = world.launch("local.sh", *QUICK, *flags, process(42, None))
    assert result.code == 42
    assert time.monotonic() - started >= 1  # bash counts whole seconds
    assert "goes on" in result.text
    assert not is_alive(seen(world, 1)["pid"])


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_saves(world, process, processes):
    flags = [f"--processes={processes}", "--devices=1", process(None, None)]
    launcher = world.start("local.sh", *QUICK, *flags)
    for number in range(processes):
        seen(world, number)
    os.killpg(launcher.pid, signal.SIGINT)
    result = world.finish(launcher, timeout=20)
    assert result.code == 42, result.text
    assert result.text.count("saved") == processes
    assert "the run saves and stops" in result.text


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--processes=0", "runs nothing"), ("--processes=two", "not a whole number"),
     ("--processes=2", "give --devices"), ("--processes=99999999999999999999", "too large"),
     ("--processes=2000", "at most 1024"), ("--python=-rf", "begins with a dash")],
)  # fmt: skip
def test_impossible_processes(world, flag, words):
    result = world.launch("local.sh", "--config=c.py", flag)
    assert result.code == 2
    assert words in result.text


def test_a_count_with_zeros_before_it(world):
    result = world.launch("local.sh", "--config=c.py", "--processes=08", "--devices=1", "--dry-run")
    assert result.code == 0
    assert result.text.count("ACED_NUM_PROCESSES=8") == 8


@pytest.mark.slow
def test_a_real_run(world):
    """The command at the top of local.sh, on a recipe's smallest form."""
    workdir = world.folder / "run"
    flags = ["--config=configs/siglip_b16.py:tiny", f"--workdir={workdir}", "--devices=1"]
    launcher = world.start("local.sh", *flags, f"--python={sys.executable}", root=ROOT)
    result = world.finish(launcher, timeout=240)
    assert result.code == 0, result.text
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("step", 0) for line in lines) == 2
