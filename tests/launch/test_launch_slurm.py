"""launch/slurm.sh against a fake sbatch, launch/slurm.sbatch against fake srun and scontrol."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

SBATCH = pathlib.Path(__file__).parents[2] / "launch" / "slurm.sbatch"
FLAGS = ["--config=configs/acid_b16.py", "--workdir=/shared/run"]


def test_submit(world):
    world.answer("sbatch", "1234;cluster")
    flags = ["--nodes=4", "--time=24:00:00", "--partition=gpu", "--python=/env/bin/python"]
    result = world.launch("slurm.sh", *FLAGS, *flags, "--", "--x=a 'b'")
    assert result.code == 0, result.text
    environment, call = world.calls()
    assert environment == ["environment", "/env/bin/python", "50", ""]
    script = call.index("launch/slurm.sbatch")
    assert set(call[1:script]) == {
        "--parsable",
        f"--chdir={world.folder}/repo",
        "--output=runs/slurm/aced_%j.log",
        "--nodes=4",
        "--gpus-per-node=8",
        "--ntasks-per-node=8",
        "--signal=TERM@120",
        "--time=24:00:00",
        "--partition=gpu",
    }
    assert call[script + 1 :] == [*FLAGS, "--x=a 'b'"]
    assert (world.folder / "repo" / "runs" / "slurm").is_dir()
    assert "Job 1234.\n" in result.text
    assert "launch/slurm.sh stop --job=1234" in result.text
    assert "# costs money" in result.text


def test_a_sweep_is_an_array_of_jobs(world):
    world.answer("sbatch", "1234;cluster")
    flags = ["--sweep=4", "--parallel=2", f"--python={sys.executable}"]
    settings = ["--set=method.selection.gain=1,10", "--seeds=2"]
    result = world.launch("slurm.sh", *FLAGS, *flags, "--", *settings)
    assert result.code == 0, result.text
    (call,) = world.calls("launch/slurm.sbatch")
    assert {"--array=0-3%2", "--output=runs/slurm/aced_%A_%a.log"} < set(call)
    script = call.index("launch/slurm.sbatch")
    assert call[script + 1 :] == [FLAGS[0], "--out=/shared/run", *settings]
    assert "launch/slurm.sh logs --job=1234_0" in result.text

    for wrong, message in (
        (["--sweep=5", *flags[1:], "--", *settings], "--sweep=5, but the sweep has 4 runs"),
        ([*flags, "--", "--sett=1"], "aced.sweep refuses its arguments"),
        (["--sweep=x"], "--sweep=x is not a whole number"),
    ):
        refused = world.launch("slurm.sh", *FLAGS, *wrong)
        assert refused.code == 2
        assert message in refused.text
    assert len(world.calls("launch/slurm.sbatch")) == 1


def test_a_job_of_an_array_trains_its_run(world):
    result = world.finish(start_batch(world, SLURM_ARRAY_TASK_ID="3"))
    assert result.code == 0, result.text
    (call,) = world.calls()
    assert call[2:] == [
        "python",
        "-m",
        "aced.sweep",
        "--index=3",
        "--distributed",
        *FLAGS,
        "--x=a b",
    ]


def test_one_process_per_node_sees_all_gpus(world):
    result = world.launch("slurm.sh", *FLAGS, "--per=node", "--gpus-per-node=4")
    assert result.code == 0, result.text
    environment, call = world.calls()
    assert environment[-1] == "0,1,2,3"
    assert "--ntasks-per-node=1" in call


def test_dry_run_prints_the_calls_of_the_real_run(world):
    flags = [*FLAGS, "--per=node", "--env=A=b c", "--account=a", "--qos=q", "--cpus-per-task=4"]
    dry = world.launch("slurm.sh", *flags, "--dry-run", "--", "--x=a 'b'")
    assert not world.calls()
    real = world.launch("slurm.sh", *flags, "--", "--x=a 'b'")
    assert real.code == 0, real.text
    assert dry.printed == real.printed
    (submit,) = [words for words in dry.printed if "sbatch" in words]
    assert submit[submit.index("sbatch") :] == world.calls("launch/slurm.sbatch")[0]


def test_refused(world):
    world.answer("sbatch", {"code": 1, "err": "sbatch: error: Invalid account\n"})
    result = world.launch("slurm.sh", *FLAGS)
    assert result.code == 1
    assert "Invalid account" in result.text
    assert "Nothing was submitted" in result.text


def test_status_stop_logs(world):
    assert world.launch("slurm.sh", "status", "--job=7").code == 0
    assert world.launch("slurm.sh", "stop", "--job=7").code == 0
    assert [call[:2] for call in world.calls()] == [["squeue", "--jobs=7"], ["scancel", "7"]]
    logs = world.launch("slurm.sh", "logs", "--job=7")
    assert logs.code == 1
    assert "no log runs/slurm/aced_7.log yet" in logs.text
    missing = world.launch("slurm.sh", "stop")
    assert missing.code == 2
    assert "--job is missing" in missing.text


def test_per_what(world):
    result = world.launch("slurm.sh", *FLAGS, "--per=rack")
    assert result.code == 2
    assert "neither gpu nor node" in result.text


def start_batch(world, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(SBATCH), *FLAGS, "--x=a b"],
        env={**world.environment(), "SLURM_JOB_ID": "99", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_the_directives_before_the_first_command():
    """sbatch reads #SBATCH lines up to the first line that is neither comment nor empty."""
    head = re.split(r"^[^#\n]", SBATCH.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    directives = re.findall(r"^#SBATCH (\S+)$", head, re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=TERM@120"} <= set(directives)
    assert len(directives) == SBATCH.read_text().count("#SBATCH ")


def test_the_batch_runs_the_command_on_all_tasks(world):
    result = world.finish(start_batch(world, ACED_PYTHON="/env/python"))
    assert result.code == 0, result.text
    assert world.calls() == [
        [
            "srun",
            "--kill-on-bad-exit=0",
            "/env/python",
            "-m",
            "aced.main",
            "--distributed",
            *FLAGS,
            "--x=a b",
        ]
    ]


def test_srun_is_told_the_cpus_of_a_task(world):
    """In Slurm 22.05 to 23.02 srun does not inherit the setting of sbatch."""
    result = world.finish(start_batch(world, SLURM_CPUS_PER_TASK="16"))
    assert result.code == 0, result.text
    (call,) = world.calls()
    assert call[:3] == ["srun", "--kill-on-bad-exit=0", "--cpus-per-task=16"]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued", "ends"),
    [
        (42, "", True, 0),
        (42, "3", True, 0),
        (42, "50", False, 42),
        (1, "", False, 1),
        (137, "", False, 137),
    ],
)
def test_only_a_saved_run_is_queued_again(world, code, restarts, requeued, ends):
    world.answer("srun", {"code": code})
    counted = {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    result = world.finish(start_batch(world, **counted))
    assert result.code == ends
    assert world.calls("scontrol") == ([["scontrol", "requeue", "99"]] if requeued else [])
    if code != 42:
        assert f"the run failed with code {code}" in result.text


def test_a_requeue_that_is_refused(world):
    world.answer("srun", {"code": 42})
    world.answer("scontrol", {"code": 1, "err": "Requested operation is presently disabled\n"})
    result = world.finish(start_batch(world))
    assert result.code == 42
    assert "presently disabled" in result.text
    assert "next:  the same command goes on." in result.text


def test_preemption_of_the_whole_job(world):
    """SIGTERM comes to the script, too: it waits for srun, which ends with 42, and queues again."""
    world.answer("srun", {"seconds": 0.5, "code": 42})
    batch = start_batch(world)
    world.wait_for_call("srun")
    os.kill(batch.pid, signal.SIGTERM)
    result = world.finish(batch)
    assert result.code == 0, result.text
    assert world.calls("scontrol") == [["scontrol", "requeue", "99"]]
