"""Runs in gs:// and data there and in s3://, by the APIs that they meet on a TPU VM."""

import importlib.util
import os
import posixpath
import time

import fsspec
import pytest

from aced.files import ownership, storage
from aced.files.storage import StorageError
from aced.metrics import history
from aced.parallel.preemption import EXIT_CODE
from tests import bucket, many_processes
from tests.data import many
from tests.data.sources.test_every_source import STEPS, assert_same, batches, data_config
from tests.train.test_train import assert_same_run, lines

CONFIG = "--config=configs/smoke.py:tiny,method=i_acid,online"
SETTINGS = (
    "--config.checkpoint.every_steps=10",
    # A learning rate that does not depend on how long the run is to be.
    "--config.optimizer.schedule.kind=constant",
    "--config.optimizer.schedule.warmup_percent=0.0",
)


@pytest.fixture(scope="module")
def server():
    with bucket.serve_gs() as found:
        yield found


@pytest.fixture(scope="module")
def s3():
    with bucket.serve_s3() as found:
        yield found


@pytest.fixture(params=["gs", "s3"])
def scheme(request, monkeypatch):
    """That of a bucket which this process and those it starts are able to reach."""
    if request.param == "gs":
        variables = request.getfixturevalue("server")[1]
    else:
        variables = request.getfixturevalue("s3")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    storage._file_system.cache_clear()
    fsspec.filesystem(request.param).clear_instance_cache()
    yield request.param
    storage._file_system.cache_clear()
    fsspec.filesystem(request.param).clear_instance_cache()


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


@pytest.mark.slow
def test_killed_and_preempted_run_resumes_bit_for_bit(server, on_disk, tmp_path):
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
    for source, out in ((workdir, tmp_path / "there"), (on_disk, tmp_path / "here")):
        arguments = ["-m", "aced.convert", f"--source={source}", f"--out={out}", "--to=aced"]
        with many_processes.start(1, 1, arguments, tmp_path, **variables) as started:
            assert started.exit_codes() == [0], started.output(0)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert weights[0] == weights[1]
    assert saved(folder / "reference")


@pytest.mark.slow
def test_run_of_two_processes_resumes_with_one(server, on_disk, tmp_path):
    objects, variables = server
    finish("gs://bucket/runs/two", tmp_path, processes=2, steps=60, **variables)
    finish("gs://bucket/runs/two", tmp_path, **variables)
    folder = objects / "runs" / "two"
    assert history.read_picks(folder) == history.read_picks(on_disk)
    for a, b in zip(lines(folder), lines(on_disk), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_an_owner_in_a_store_is_made_once_and_gives_signs_of_life(scheme, monkeypatch):
    monkeypatch.setattr(ownership, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(ownership, "_DYING_SECONDS", 0.1)
    path = f"{scheme}://bucket/owned/owner.json"

    with ownership.owned(path):
        first, end = ownership.owner_in(path).seen, time.monotonic() + 30
        said = f"process {os.getpid()} on"
        with pytest.raises(ownership.OwnedError, match=said), ownership.owned(path):
            pass
        while ownership.owner_in(path).seen == first:
            assert time.monotonic() < end
            time.sleep(0.1)
    assert storage.stat(path) is None
    with ownership.owned(path):
        pass


def test_errors_of_a_store_name_the_path(monkeypatch):
    """The first mistake that one makes there."""
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    storage._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    for ask in (lambda path: storage.find(path, ".tar"), storage.stat):
        with pytest.raises(StorageError, match=r"s3://some/0.tar cannot be .*NoCredentials"):
            ask("s3://some/0.tar")
    with pytest.raises(StorageError, match=r"s3://some/0.tar cannot be read: NoCredentials"):
        storage.read("s3://some/0.tar", 0, 10)
    storage._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "mixture"])
def test_data_is_read_as_from_a_disk(scheme, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))  # where copies of indices are kept
    places = {"array_record": "", "tfds": ""}
    (tmp_path / "webdataset").mkdir(), (tmp_path / "parquet").mkdir()
    many.write_tars(tmp_path / "webdataset", [20, 0, 22])
    many.write_parquet(tmp_path / "parquet", [25, 17], 4)
    root, store = f"{scheme}://bucket/{kind}", fsspec.filesystem(scheme)
    here = places | {name: str(tmp_path / name) for name in ("webdataset", "parquet")}
    there = places | {name: f"{root}/{name}" for name in ("webdataset", "parquet")}
    for name in ("webdataset", "parquet"):
        store.put(f"{here[name]}/", f"{there[name]}/", recursive=True)
    expected = batches(data_config(here, kind), STEPS)
    assert_same(batches(data_config(there, kind), STEPS), expected)
    assert_same(batches(data_config(there, kind), STEPS - 4, start_step=4), expected[4:])
    if kind == "webdataset":  # beside the tars, for every host
        store.invalidate_cache()
        names = sorted(posixpath.basename(path) for path in store.find(f"{root}/webdataset"))
        assert names[:3] == ["00000.tar", "00001.tar", "00002.tar"]
        assert [name.partition("-")[0] for name in names[3:]] == ["INDEX"]


@pytest.mark.slow
def test_data_prepared_in_a_bucket_equal_those_on_disk(scheme, tmp_path):
    (tmp_path / "tars").mkdir()
    many.write_tars(tmp_path / "tars", [6, 5])
    root, store = f"{scheme}://bucket", fsspec.filesystem(scheme)
    store.put(f"{tmp_path}/tars/", f"{root}/tars/", recursive=True)
    made = {
        f"{root}/prepared": [f"--tars={root}/tars/*.tar"],
        f"{tmp_path}/here": [f"--tars={tmp_path}/tars/*.tar"],
    }
    if importlib.util.find_spec("distributed"):  # workers exchange data through the bucket
        spread = ["--runner=DaskRunner", "--dask_npartitions=2"]
        made[f"{root}/spread"] = [f"--tars={root}/tars/*.tar", *spread]
    for out, flags in made.items():
        arguments = ["-m", "aced.prepare", *flags, f"--out={out}", "--val=2"]
        with many_processes.start(1, 1, arguments, tmp_path / "logs") as started:
            assert started.exit_codes() == [0], started.output(0)
    store.invalidate_cache()
    here = {
        str(path.relative_to(tmp_path / "here")): path.read_bytes()
        for path in (tmp_path / "here").rglob("*")
        if path.is_file()
    }
    assert len([name for name in here if name.endswith(".array_record")]) >= 2
    for name, data in here.items():
        if not name.endswith(".json") and data:
            for out in made:
                with fsspec.open(f"{out}/{name}", "rb") as file:
                    assert file.read() == data, f"{out}/{name}"
    assert not store.exists(f"{root}/.spread.partial")
