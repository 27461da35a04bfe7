"""A sweep: its runs, their commands, and what a second call does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from aced import sweep
from aced.config import ConfigError
from aced.files import own_files
from aced.sweep import SweepConfig, runs
from tests import commands
from tests.many_processes import ROOT

RECIPE = "configs/smoke.py:method=iid,tiny"


def names(*settings, **others):
    return [run.name for run in runs(SweepConfig(config=RECIPE, set=settings, **others))]


def test_every_combination_once_and_the_last_setting_varies_fastest():
    assert names("a.peak=1e-3,3e-4", "b.decay=0,0.1", seeds=2) == [
        f"peak={peak},decay={decay},seed={seed}"
        for peak in ("1e-3", "3e-4")
        for decay in ("0", "0.1")
        for seed in (0, 1)
    ]
    assert names() == ["run"]


def test_arguments_are_those_of_main():
    config = SweepConfig(config=RECIPE, set=(":steps=5", "optimizer.b2=0.9"), seeds=2, out="o")
    assert [run.arguments for run in runs(config, ["--config.log_steps=1"])] == [
        (
            f"--config={RECIPE},steps=5",
            f"--workdir=o/steps=5,b2=0.9,seed={seed}",
            "--config.optimizer.b2=0.9",
            f"--config.seed={seed}",
            "--config.log_steps=1",
        )
        for seed in (0, 1)
    ]
    (plain,) = runs(SweepConfig(config="configs/smoke.py", set=(":method=kd",)))
    assert plain.arguments[:2] == (
        "--config=configs/smoke.py:method=kd",
        "--workdir=runs/sweep_smoke/method=kd",
    )
    again = SweepConfig(config="runs/x/config.json")
    assert sweep.folder_of(again) == "runs/sweep_x"


def test_settings_with_the_same_last_name_keep_their_paths():
    assert names("image.depth=2", "text.depth=4") == ["image.depth=2,text.depth=4"]


def test_values_may_have_commas_in_brackets_and_names_are_safe_for_folders():
    assert names("a.to=('x','y'),('z',)") == ["to=__x_,_y__", "to=__z_,_"]
    assert names("data.path=/a/b,../c") == ["path=_a_b", "path=.._c"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("peak",), "--set=peak must be KEY=VALUE"),
        (("peak=",), "--set=peak= must be KEY=VALUE"),
        (("=3",), "--set==3 must be"),
        (("a b=3",), "--set=a b=3 must be"),
        (("x.peak=1", "x.peak=2"), "x.peak is set twice"),
        (("x.peak=1,1",), "Two runs would be called peak=1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        names(*settings)


def test_seeds_and_a_set_seed_contradict_each_other():
    with pytest.raises(ConfigError, match="seed is set twice"):
        names("seed=3,4", seeds=2)
    with pytest.raises(ConfigError, match="seed is set twice"):
        runs(SweepConfig(config=RECIPE, seeds=2), ["--config.seed=4"])


def test_command_lists_runs_and_refuses_what_it_cannot_do():
    flags = [f"--config={RECIPE}", "--set=total_steps=3,4", "--list"]
    listed = commands.call("sweep", *flags, "--config.log_steps=1")
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"python -m aced.main --config={RECIPE} --workdir=")
    assert lines[1].endswith("--config.total_steps=4 --config.log_steps=1")
    assert commands.call("sweep", *flags, "--index=1").stdout.splitlines() == [
        lines[1].removesuffix(" --config.log_steps=1")
    ]
    for wrong, message in (
        ("--index=2", "the sweep has 2 runs, from 0"),
        ("--sett=3", "--sett=3 is neither a flag of this command nor --config.KEY=VALUE; did"),
    ):
        refused = commands.call("sweep", *flags, wrong)
        assert refused.returncode == 1
        assert message in refused.stderr
    distributed = commands.call("sweep", *flags[:2], "--distributed")
    assert "start each run as a job of its own: --index=N" in distributed.stderr


def test_finished_runs_are_skipped_and_failed_ones_do_not_stop_the_others(
    tmp_path, monkeypatch, caplog, capsys
):
    config = SweepConfig(config=RECIPE, set=("a=1,2,3",), out=str(tmp_path))
    wanted, codes, trained = runs(config), {"a=2": 1}, []

    def train(run):
        trained.append(run.name)
        (tmp_path / run.name).mkdir(exist_ok=True)
        (tmp_path / run.name / "config.json").write_text("{}")
        return codes.get(run.name, 0), False

    monkeypatch.setattr(sweep, "_train", train)
    caplog.set_level("INFO")
    assert sweep.train_all(config, wanted) == 1
    assert trained == ["a=1", "a=2", "a=3"]
    assert "1 of 3 runs failed; the same command resumes them: a=2" in caplog.text
    assert f"python -m aced.report {tmp_path}/*/" in capsys.readouterr().out
    codes["a=2"] = 42
    assert sweep.train_all(config, wanted) == 42
    assert trained[3:] == ["a=2"]
    assert "The sweep stops here; the same command resumes it." in caplog.text
    codes["a=2"] = 0
    longer = runs(config, ["--config.total_steps=9"])
    assert sweep.train_all(config, longer) == 0
    assert trained[4:] == ["a=1", "a=2", "a=3"]  # other arguments
    assert own_files.loads((tmp_path / sweep.FILE).read_bytes())["a=1"] == list(longer[0].arguments)


def test_a_run_that_cannot_start_ends_the_sweep(tmp_path):
    command = [sys.executable, "-m", "aced.sweep", f"--config={RECIPE}", f"--out={tmp_path}/out"]
    done = subprocess.run(
        [*command, "--set=optimizer.nothing=1,2"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert "optimizer.nothing" in done.stderr
    assert "Run 1 of 2: nothing=1 cannot start" in done.stderr
    assert "Run 2" not in done.stderr


def test_a_signal_before_the_first_step_stops_the_sweep(tmp_path):
    command = [sys.executable, "-m", "aced.sweep", f"--config={RECIPE}", f"--out={tmp_path}/out"]
    command += ["--set=total_steps=6,4"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "Run 1 of 2" in line:
            break
    time.sleep(0.5)  # the run imports its modules
    os.kill(process.pid, signal.SIGTERM)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "The sweep stops here; the same command resumes it." in text
    assert "Run 2" not in text


@pytest.mark.slow
def test_a_stopped_sweep_resumes_and_then_trains_nothing_again(tmp_path):
    command = [sys.executable, "-m", "aced.sweep", f"--config={RECIPE}", f"--out={tmp_path}/out"]
    command += [
        "--set=total_steps=400,4",
        "--config.log_steps=1",
        "--config.checkpoint.every_steps=1",
    ]
    metrics = tmp_path / "out" / "total_steps=400" / "metrics.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not metrics.exists() or not metrics.read_bytes():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 42, text
    assert not (tmp_path / "out" / "total_steps=4").exists()

    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for steps in (400, 4):
        lines = (tmp_path / "out" / f"total_steps={steps}" / "metrics.jsonl").read_text()
        assert [json.loads(line)["step"] for line in lines.splitlines()] == [*range(1, steps + 1)]
    before = metrics.stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0
    assert "Run 1 of 2: total_steps=400 is finished." in again.stderr
    assert metrics.stat().st_mtime_ns == before
