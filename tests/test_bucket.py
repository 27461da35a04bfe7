"""Runs and data in gs://, by the API that they meet on a TPU VM."""

import os

import fsspec
import pytest

from aced import metrics
from aced.data import storage
from aced.preemption import EXIT_CODE
from tests import bucket, many_processes
from tests.data import many
from tests.data.test_every_source import STEPS, assert_same, batches, data_config
from tests.test_train import assert_same_run, lines

CONFIG = "--config=configs/smoke.py:tiny,method=i_acid"
SETTINGS = (
    "--config.checkpoint.every_steps=10",
    # A learning rate that does not depend on how long the run is to be.
    "--config.optimizer.schedule.kind=constant",
    "--config.optimizer.schedule.warmup_percent=0.0",
)


@pytest.fixture(scope="module")
def server():
    with bucket.serve() as found:
        yield found


@pytest.fixture
def gcs(server, monkeypatch):
    """The bucket's folder, with this process able to reach it."""
    for name, value in server[1].items():
        monkeypatch.setenv(name, value)
    storage._file_system.cache_clear()
    fsspec.filesystem("gs").clear_instance_cache()
    yield server[0]
    storage._file_system.cache_clear()
    fsspec.filesystem("gs").clear_instance_cache()


def command(workdir, steps=120):
    settings = (*SETTINGS, f"--config.total_steps={steps}")
    return ["-m", "aced.main", CONFIG, *settings, f"--workdir={workdir}"]


def finish(workdir, logs, processes=1, steps=120, **variables):
    arguments = [*command(workdir, steps), *(["--distributed"] if processes > 1 else [])]
    with many_processes.start(processes, 1, arguments, logs, **variables) as started:
        assert started.exit_codes() == [0] * processes, started.output(0)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    finish(folder / "run", folder / "logs")
    return folder / "run"


def saved(folder):
    return {int(path.parent.name) for path in folder.glob("checkpoints/*/commit_success.txt")}


def test_a_run_that_is_killed_and_preempted_goes_on_bit_for_bit(server, on_disk, tmp_path):
    objects, variables = server
    workdir, folder = "gs://bucket/runs/one", objects / "runs" / "one"
    with many_processes.start(1, 1, command(workdir), tmp_path, **variables) as started:
        started.wait_for(lambda: max(saved(folder), default=0) >= 20)
        started.kill()
    killed_after = max(saved(folder))
    with many_processes.start(1, 1, command(workdir), tmp_path, **variables) as started:
        started.wait_for(lambda: max(saved(folder), default=0) > killed_after)
        started.processes[0].terminate()
        assert started.exit_codes() == [EXIT_CODE], started.output(0)
    finish(workdir, tmp_path, **variables)
    assert_same_run(on_disk, folder)
    assert list((folder / "tensorboard").iterdir())
    assert saved(folder / "reference")


def test_two_processes_share_a_run_and_one_goes_on_with_it(server, on_disk, tmp_path):
    objects, variables = server
    finish("gs://bucket/runs/two", tmp_path, processes=2, steps=60, **variables)
    finish("gs://bucket/runs/two", tmp_path, **variables)
    folder = objects / "runs" / "two"
    assert metrics.read_picks(folder) == metrics.read_picks(on_disk)
    for a, b in zip(lines(folder), lines(on_disk), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "mixture"])
def test_data_is_read_as_from_a_disk(gcs, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))  # where copies of indices are kept
    places = {"array_record": "", "tfds": ""}
    (tmp_path / "webdataset").mkdir(), (tmp_path / "parquet").mkdir()
    many.write_tars(tmp_path / "webdataset", [20, 0, 22])
    many.write_parquet(tmp_path / "parquet", [25, 17], 4)
    here = places | {name: str(tmp_path / name) for name in ("webdataset", "parquet")}
    there = places | {name: f"gs://bucket/{kind}/{name}" for name in ("webdataset", "parquet")}
    for name in ("webdataset", "parquet"):
        fsspec.filesystem("gs").put(f"{here[name]}/", f"{there[name]}/", recursive=True)
    expected = batches(data_config(here, kind), STEPS)
    assert_same(batches(data_config(there, kind), STEPS), expected)
    assert_same(batches(data_config(there, kind), STEPS - 4, start_step=4), expected[4:])
    if kind == "webdataset":  # beside the tars, for every host
        files = [path.name for path in (gcs / kind / kind).rglob("*") if path.is_file()]
        assert sorted(files)[:3] == ["00000.tar", "00001.tar", "00002.tar"]
        assert [name.partition("-")[0] for name in sorted(files)[3:]] == ["INDEX"]


def test_prepared_in_a_bucket_are_the_bytes_of_a_disk(gcs, tmp_path):
    (tmp_path / "tars").mkdir()
    many.write_tars(tmp_path / "tars", [6, 5])
    fsspec.filesystem("gs").put(f"{tmp_path}/tars/", "gs://bucket/tars/", recursive=True)
    for tars, out in (("gs://bucket/tars", "gs://bucket/prepared"), (tmp_path / "tars", "here")):
        out = out if "://" in out else tmp_path / out
        arguments = ["-m", "aced.prepare", f"--tars={tars}/*.tar", f"--out={out}", "--val=2"]
        with many_processes.start(1, 1, arguments, tmp_path / "logs") as started:
            assert started.exit_codes() == [0], started.output(0)
    files = {
        path.relative_to(tmp_path / "here")
        for path in (tmp_path / "here").rglob("*")
        if path.is_file()
    }
    assert len([path for path in files if path.suffix == ".array_record"]) >= 2
    for path in files:
        there, here = gcs / "prepared" / path, tmp_path / "here" / path
        if path.suffix != ".json" and os.path.getsize(here):
            assert there.read_bytes() == here.read_bytes(), path
