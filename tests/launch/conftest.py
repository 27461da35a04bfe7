"""A world without clouds: the launch scripts' commands are played by fake_command.sh."""

import dataclasses
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAKED = ("gcloud", "kubectl", "sbatch", "scontrol", "srun", "squeue", "scancel")


@dataclasses.dataclass
class Result:
    """Of a launch script: its exit code, its output, and the commands it said it runs."""

    code: int
    text: str

    @property
    def printed(self) -> list[list[str]]:
        """The commands behind `+`, as a shell reads them."""
        lines = [line[2:] for line in self.text.splitlines() if line.startswith("+ ")]
        return [shlex.split(line) for line in lines]


@dataclasses.dataclass
class World:
    """Fake commands with scripted answers, and what was called."""

    folder: pathlib.Path

    def answer(self, words: str, *answers: dict | str) -> None:
        """Calls that contain `words` get these answers in turn, the last one from then on.

        An answer is what is printed, or a dict of out, err, code and seconds. Earlier rules win.
        """
        rules = self.folder / "rules"
        rule = rules / f"{len(list(rules.iterdir())):02d}"
        rule.mkdir()
        (rule / "words").write_text(words)
        for number, answer in enumerate(answers):
            answer = {"out": answer + "\n"} if isinstance(answer, str) else answer
            (rule / f"{number:02d}").write_text(
                f"sleep {answer.get('seconds', 0)}\n"
                f"printf %s {shlex.quote(answer.get('out', ''))}\n"
                f"printf %s {shlex.quote(answer.get('err', ''))} >&2\n"
                f"exit {answer.get('code', 0)}\n"
            )

    def add_workers(self, count: int, program: str) -> list[pathlib.Path]:
        """Homes in which commands sent by ssh are really run; `program` is their python."""
        homes = []
        for number in range(count):
            home = self.folder / f"home_{number}"
            executable(home / "aced_venv" / "bin" / "python", program)
            homes.append(home)
        return homes

    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "FAKE_WORLD": str(self.folder)}

    def start(
        self, script: str, *arguments: str, root: pathlib.Path | None = None
    ) -> subprocess.Popen:
        """The script in a session of its own, so that Ctrl-C can be sent to all of it.

        It is that of a small copy of the repository, into which it writes; or that of `root`.
        """
        return subprocess.Popen(
            ["bash", str((root or self.folder / "repo") / "launch" / script), *arguments],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def launch(self, script: str, *arguments: str) -> Result:
        return self.finish(self.start(script, *arguments))

    @staticmethod
    def finish(process: subprocess.Popen, timeout: float = 60) -> Result:
        try:
            text, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return Result(process.returncode, text)

    def calls(self, words: str = "") -> list[list[str]]:
        """The recorded calls that contain `words`."""
        path = self.folder / "calls"
        records = path.read_text().split("\x1e\0")[:-1] if path.exists() else []
        calls = [record.split("\0")[:-1] for record in records]
        return [call for call in calls if words in " ".join(call)]

    def wait_for_call(self, words: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not self.calls(words):
            assert time.monotonic() < deadline, f"no call of {words}: {self.calls()}"
            time.sleep(0.05)


def executable(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def world(tmp_path: pathlib.Path) -> World:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    fake = (pathlib.Path(__file__).parent / "fake_command.sh").read_text()
    for name in FAKED:
        executable(tmp_path / "bin" / name, fake)
    (tmp_path / "rules").mkdir()
    shutil.copytree(ROOT / "launch", tmp_path / "repo" / "launch")
    for file in ("aced/data/records.py", "configs/smoke.py", "runs/old/log", ".git/config"):
        (tmp_path / "repo" / file).parent.mkdir(parents=True)
        (tmp_path / "repo" / file).touch()
    return World(tmp_path)


@pytest.fixture
def write_program(tmp_path: pathlib.Path):
    """write_program(name, text) -> its path."""
    return lambda name, text: executable(tmp_path / name, text)
