"""starts.jsonl has a line for each start. It is not a setting, and its errors do not end a run."""

import pathlib
import subprocess

import jax
import pytest
from etils import epath

from aced.data.sources import open_source
from aced.parallel import mesh as meshes
from aced.train import loop, program, starts
from aced.train.config import parse
from tests.train.test_train import config

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run():
    """The program of a run and its data."""
    settings = parse(config("iid", 7))
    source = open_source(settings.data)
    mesh = meshes.make_mesh(jax.devices()[:2], settings.mesh)
    return program.build(settings, mesh, len(source)), source


def test_each_start_writes_a_line(tmp_path, run):
    folder = epath.Path(tmp_path)
    assert starts.read(folder) == []
    for step in (0, 4):
        starts.write(folder, *run, step)
    first, second = starts.read(folder)
    assert (first["step"], second["step"], second["total_steps"]) == (0, 4, 7)
    assert (first["device"], first["devices"], first["processes"]) == ("cpu", 2, 1)
    assert (first["data"], first["examples"]) == ("shapes/train", 100_000)
    assert first["versions"]["jax"] == jax.__version__


def test_commit_is_that_of_the_repository():
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the tests are not in a repository")
    assert head.stdout.startswith(starts.commit().rstrip("+"))
    assert len(starts.commit()) >= 12


def test_other_processes_write_nothing_and_a_full_disk_ends_no_run(
    tmp_path, run, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    starts.write(epath.Path(tmp_path / "file"), *run, 0)
    assert "starts.jsonl cannot be written" in caplog.text
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    starts.write(epath.Path(tmp_path), *run, 0)
    assert not (tmp_path / starts.FILE).exists()


@pytest.mark.slow
def test_a_resumed_run_has_a_line_for_each_start(tmp_path):
    for steps in (4, 6):
        loop.run(config("iid", steps), str(tmp_path), jax.devices()[:1])
    found = starts.read(epath.Path(tmp_path))
    assert [(x["step"], x["total_steps"], x["devices"]) for x in found] == [(0, 4, 1), (4, 6, 1)]
