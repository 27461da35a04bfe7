"""The command as a user types it."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from aced.metrics import history
from tests import commands, many_processes

ROOT = pathlib.Path(__file__).parents[1]


def aced(*arguments, command="main", **variables):
    """As on a laptop: one CPU device."""
    env = many_processes.environment(1, **variables)
    return subprocess.run(
        [sys.executable, "-m", f"aced.{command}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=580, check=False, env=env,
    )  # fmt: skip


TINY = "--config=configs/smoke.py:tiny"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The workdir of the tiny run, with what the command printed."""
    workdir = tmp_path_factory.mktemp("runs") / "learner"
    done = aced(TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_one_config_trains_a_reference_and_a_learner_and_prints_both(first):
    workdir, done = first
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert rows["run"][:4] == ["method", "trained", "scored", "FLOPs"]
    assert rows["reference"][:3] == ["IID", "32", "0"]
    assert rows["learner"] != rows["reference"]
    assert [line.split()[:4] for line in done.stdout.splitlines() if "160" in line] == [
        ["learner", "ACED-ACIDistill", "32", "160"]
    ]
    plan = [line.split() for line in done.stderr.partition("The plan of ")[2].splitlines()[1:5]]
    assert [line[0] for line in plan] == ["phase", "reference", "reference's", "learner"]
    assert plan[3][1:4] == [*rows["learner"][:1], "2", "32"]
    assert [plan[1][4], plan[3][4]] == [rows["reference"][3], rows["learner"][3]]  # FLOPs
    assert "Data: shapes, split train, " in done.stderr
    assert re.search(r"learner 2/2 100%  loss [\d.]+  [\d,]+ examples/s", done.stderr)
    assert re.search(r"learner 1/2  50%  .*retrieval/mean_r1 [\d.]+%(  |\n)", done.stderr)
    assert re.search(r"learner 2/2 100%  .*retrieval/mean_r1 [\d.]+% \([+-]", done.stderr)
    assert "watchdog" not in done.stderr
    assert f"What was chosen, in pictures: {workdir}/picks.html" in done.stdout
    assert (workdir / "picks.html").read_text().count("<figure") == 2 * 2 * 12
    again = aced(TINY, f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout  # finished: nothing is trained again
    assert "learner 2/2" not in again.stderr
    assert again.stderr.partition("The plan of ")[2].count("100%") == 4


def test_a_run_is_evaluated_by_the_command(first):
    workdir, _ = first
    done = aced(f"--config={workdir}/config.json", "--json", command="evaluate")
    assert done.returncode == 0, done.stderr
    found, logged = json.loads(done.stdout), history.last_values(workdir)
    assert "retrieval/mean_r1" in found
    assert found == pytest.approx({name: logged[name] for name in found}, abs=1e-6)


@pytest.mark.slow
def test_a_run_starts_anew_from_the_settings_of_another(first):
    workdir, _ = first
    done = aced(f"--config={workdir}/config.json")
    assert done.returncode == 0, done.stderr
    again = workdir.with_name("learner-again")
    assert f"The run is in {again}." in done.stdout
    # Its reference and cache are its own.
    assert (again / "config.json").read_bytes() == (workdir / "config.json").read_bytes()
    assert (again / "reference/checkpoints/2").is_dir()
    assert measured(again) == measured(workdir)


def measured(workdir):
    """The metrics of a run, without those that depend on the clock."""
    return [
        {name: value for name, value in line.items() if not name.startswith("wall/")}
        for line in history.read(workdir)
    ]


def test_a_run_is_reported_by_the_command(first, tmp_path):
    workdir, _ = first
    page = tmp_path / "page.html"
    done = aced(str(workdir), f"--out={page}", "--pictures=2", command="report")
    assert done.returncode == 0, done.stderr
    assert "What learner chose" in page.read_text()


def test_preflight_command_prints_costs():
    done = aced("--config=configs/acid_b16.py", "--topology=gpu:h200x8", command="preflight")
    assert done.returncode == 0, done.stderr
    assert "only a roofline" in done.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [("suite", "error: No runs: give the workdirs of some"), ("select_text", "--out is empty")],
)
def test_commands_without_arguments_ask_for_them(command, message):
    done = aced(command=command)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_settings_end_in_one_clear_line(tmp_path):
    for arguments, message in [
        (
            ["--config=configs/smoke.py:tiny", "--config.batch_siez=8"],
            "\nThere is no setting batch_siez; did you mean --config.batch_size?",
        ),
        (["--config=configs/smoke.py:tiny", "--config.seed=abc"], "base 10: 'abc'\n"),
        (
            ["--config=configs/smoke.py:tiny", "--config.sede=None"],
            "There is no setting sede; did you mean --config.seed",
        ),
        (
            ["--config=configs/smoke.py:tiny", "--config.suites.x=1"],
            "There is no setting suites.x. Evaluations",
        ),
        (
            ["--config=configs/smoke.py:tiny", "--config.data.caption_weights.given=1"],
            "There is no setting data.caption_weights.given. The weights are set together: ",
        ),
        (["--config=configs/smoke.py:tiny", "--config.seed=None"], "seed must be int, got None"),
        (["--config=configs/smoke.py:tiny", "--config.total_steps=0"], "The run has no steps"),
        ([], "--config is missing: give a recipe.\nRecipes"),
        (["--config=configs/smoke.py:tiny,typo"], "The config has no argument 'typo'"),
        (
            ["--config=configs/smoke.py:tiny", "--config.batch_size=0"],
            "batch_size must be at least 1",
        ),
        (["--config=configs/smok.py"], "There is no config file configs/smok.py in "),
        (
            ["--config=configs/smoke.py:tiny", "--config.evals.imagenet.kind=zeroshot"],
            "There is no setting evals.imagenet.kind; did you mean",
        ),
        (
            ["--config=configs/acid_b16.py", "--config.batch_size=8"],
            "not divisible by selection.chunks = 16",
        ),
    ]:
        done = commands.call("main", *arguments, f"--workdir={tmp_path}")
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_duration_in_another_unit(tmp_path):
    done = aced(
        "--config=configs/smoke.py:tiny,method=iid",
        f"--workdir={tmp_path}",
        "--config.total_steps=None",
        "--config.total_examples=48",
        "--config.evals.retrieval.every_percent=None",
        "--config.evals.retrieval.every_steps=2",
    )
    assert done.returncode == 0, done.stderr
    found = history.read(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert ["retrieval/mean_r1" in line for line in found] == [False, True, True]
    assert f"python -m aced.report {tmp_path}" in done.stdout


@pytest.mark.slow
def test_run_resumes_after_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "aced.main", "--config=configs/smoke.py:tiny,method=iid"]
    command += [f"--workdir={tmp_path}", "--config.total_steps=100000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        file = tmp_path / history.FILE
        if file.exists() and file.read_text().count("\n") >= 3:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    saved = history.read(tmp_path)[-1]["step"]
    assert f"Step {saved} is saved; start the same command again." in stderr
    assert (tmp_path / "checkpoints" / str(saved)).is_dir()


def test_help_says_how_to_change_settings():
    done = aced("--helpshort")
    assert done.returncode == 0
    assert "--config.method.selection.gain=10" in done.stdout
    assert "--[no]force:" in done.stdout
    assert "goes on where the run stopped" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("cache", ("config", "workdir", "distributed", "out", "precision")),
        ("preflight", ("config", "workdir", "topology", "json")),
        ("convert", ("source", "out", "to")),
        ("prepare", ("images", "tars", "out", "val")),
        ("evaluate", ("config", "workdir", "model", "which", "json")),
        ("report", ("out", "pictures")),
        ("suite", ("numbers", "name")),
        ("select_text", ("corpus", "teacher", "distributed", "out")),
    ],
)
def test_help_lists_the_flags_of_a_command(command, names):
    done = commands.call(command, "--help")
    assert done.returncode == 0
    listed = re.findall(r"^ +--(?:\[no\])?(\w+): ", done.stdout, re.MULTILINE)
    missing = sorted(set(names) - set(listed))
    assert not missing, done.stdout
    owns = command in ("cache", "prepare", "select_text", "evaluate")  # an output, while it works
    assert ("force" in listed) == owns


@pytest.mark.slow
def test_home_folder_is_expanded(tmp_path):
    """bash leaves the ~ of `--workdir=~/run` alone."""
    done = aced("--config=configs/smoke.py:tiny,method=iid", "--workdir=~/run", HOME=tmp_path)
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= files
    assert not (ROOT / "~").exists()
