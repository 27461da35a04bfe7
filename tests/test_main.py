"""The command as a user types it."""

import pathlib
import re
import subprocess
import sys

import pytest

from tests import many_processes

ROOT = pathlib.Path(__file__).parents[1]


def aced(*arguments, command="main", **variables):
    """As on a laptop: one CPU device."""
    env = many_processes.environment(1, **variables)
    return subprocess.run(
        [sys.executable, "-m", f"aced.{command}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=580, check=False, env=env,
    )  # fmt: skip


def test_one_config_trains_a_reference_and_a_learner_and_prints_both(tmp_path):
    done = aced("--config=configs/smoke.py:tiny", f"--workdir={tmp_path / 'learner'}")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
    assert rows["run"][:3] == ["trained", "scored", "FLOPs"]
    assert rows["reference"][:2] == ["32", "0"]
    assert rows["learner"] != rows["reference"]
    assert [line.split()[:3] for line in done.stdout.splitlines() if "160" in line] == [
        ["learner", "32", "160"]
    ]
    assert "step 2/2" in done.stderr
    again = aced("--config=configs/smoke.py:tiny", f"--workdir={tmp_path / 'learner'}")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout  # finished: nothing is trained again
    assert "step 2/2" not in again.stderr


def test_wrong_settings_end_in_one_clear_line(tmp_path):
    for arguments, message in [
        (["--config=configs/smoke.py:tiny", "--config.batch_siez=8"], "batch_siez"),
        (["--config=configs/smoke.py:tiny,typo"], "'typo' is unknown; known: method"),
        (
            ["--config=configs/smoke.py:tiny", "--config.batch_size=0"],
            "batch_size must be at least 1",
        ),
        (["--config=configs/smok.py"], "There is no config file configs/smok.py in "),
        (
            ["--config=configs/smoke.py:tiny", "--config.evals.imagenet.kind=zeroshot"],
            "There is no 'imagenet' in the config. Evaluations",
        ),
        (
            ["--config=configs/acid_b16.py", "--config.batch_size=8"],
            "not divisible by selection.chunks = 16",
        ),
    ]:
        done = aced(*arguments, f"--workdir={tmp_path}")
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_help_says_how_to_change_settings():
    done = aced("--helpshort")
    assert "--config.method.selection.gain=10" in done.stdout
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
    done = aced("--help", command=command)
    listed = re.findall(r"^ +--(?:\[no\])?(\w+): ", done.stdout, re.MULTILINE)
    missing = sorted(set(names) - set(listed))
    assert not missing, done.stdout


def test_a_home_folder_is_spelled_out(tmp_path):
    """bash leaves the ~ of `--workdir=~/run` alone."""
    done = aced("--config=configs/smoke.py:tiny,method=iid", "--workdir=~/run", HOME=tmp_path)
    assert done.returncode == 0, done.stderr
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= files
    assert not (ROOT / "~").exists()
