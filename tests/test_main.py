"""The command as a user types it."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def aced(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "aced.main", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
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
        (
            ["--config=configs/acid_b16.py", "--config.batch_size=8"],
            "not divisible by selection.chunks * selection.strata",
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
