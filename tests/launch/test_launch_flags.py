"""What all launch scripts have in common: flags, help, messages, quoting, shellcheck."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
LAUNCHERS = {
    "local.sh": [],
    "tpu_vm.sh": ["--name=node", "--zone=z"],
    "queued_resource.sh": [
        "--name=node",
        "--zone=z",
        "--accelerator-type=v6e-16",
        "--runtime-version=v2",
    ],
    "gke.sh": ["--name=node", "--image=i", "--accelerator=tpu-v6e-slice", "--topology=4x4"],
    "slurm.sh": [],
}
RUN = ["--config=configs/smoke.py", "--workdir=gs://bucket/run"]
# Spaces, both quotes, a dollar, a star, a backslash, non-ASCII, nothing at all.
AWKWARD = ["--config.a=two words", "--b=it's", '--c="$HOME" * `x`', "--d=a\\nb;&|", "--é", ""]


def scripts() -> list[pathlib.Path]:
    return sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_bash_reads_it(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_shellcheck_is_clean():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    files = [str(path) for path in scripts()]
    result = subprocess.run([program, "-x", *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_tells_all_flags_and_runs_nothing(world, script):
    result = world.launch(script, "--help")
    assert result.code == 0
    declared = re.findall(r"^flag ([a-z-]+)", (LAUNCH / script).read_text(), re.MULTILINE)
    for flag in ["config", "workdir", "env", "dry-run", "help", *declared]:
        assert f"--{flag}" in result.text
    assert not world.calls()


@pytest.mark.parametrize("script", LAUNCHERS)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("--bogus=1", "unknown flag '--bogus=1'"),
        ("--config.seed=1", "go behind --"),
        ("--workdir", "--workdir needs a value"),
        ("--dry-run=maybe", "is a switch"),
        ("--env=XLA_FLAGS", "is not NAME=VALUE"),
        ("surprise", "unexpected argument 'surprise'"),
    ],
)
def test_wrong_flags_are_errors_that_tell_the_next_step(world, script, wrong, words):
    result = world.launch(script, *LAUNCHERS[script], *RUN, wrong)
    assert result.code == 2
    assert words in result.text
    assert "\nnext:  " in result.text
    assert not world.calls()


@pytest.mark.parametrize("script", LAUNCHERS)
def test_a_missing_config_and_an_unknown_command_are_errors(world, script):
    missing = world.launch(script, *LAUNCHERS[script], "--workdir=w", "--dry-run")
    assert missing.code == 2
    assert "--config is missing" in missing.text
    unknown = world.launch(script, "destroy", *LAUNCHERS[script])
    assert unknown.code == 2
    assert "unknown command 'destroy'" in unknown.text


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh"])
def test_what_is_behind_two_dashes_arrives_unchanged(world, script):
    result = world.launch(script, *RUN, "--env=A=b c", "--dry-run", "--", *AWKWARD)
    assert result.code == 0
    assert result.printed[-1][-len(AWKWARD) :] == AWKWARD
    assert "A=b c" in result.printed[-1]


def test_what_is_behind_two_dashes_arrives_through_ssh(world):
    result = world.launch(
        "queued_resource.sh", *LAUNCHERS["queued_resource.sh"], *RUN, "--dry-run", "--", *AWKWARD
    )
    (start,) = [words for words in result.printed if "tpu_worker.sh start" in words[-1]]
    remote = start[-1].removeprefix("--command=")
    echo = remote.replace("bash aced/launch/tpu_worker.sh start", "printf '%s\\0'")
    heard = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True).stdout
    words = heard.split("\0")[:-1]
    assert words == ["python", "-m", "aced.main", "--distributed", *RUN, *AWKWARD]


@pytest.mark.parametrize("script", LAUNCHERS)
def test_dry_run_calls_nothing_and_says_what_costs(world, script):
    result = world.launch(script, *LAUNCHERS[script], *RUN, "--dry-run")
    assert result.code == 0, result.text
    assert not world.calls()
    assert result.printed
    assert re.search(r"^  costs  ", result.text, re.MULTILINE)
    assert "configs/smoke.py" in result.text


def test_a_missing_program_is_named(world):
    (world.folder / "bin" / "sbatch").unlink()
    if shutil.which("sbatch"):
        pytest.skip("sbatch is installed")
    result = world.launch("slurm.sh", *RUN)
    assert result.code == 127
    assert "there is no 'sbatch' here" in result.text
    assert "login node" in result.text
