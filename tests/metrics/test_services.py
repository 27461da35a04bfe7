"""Weights & Biases, offline, and MLflow, with a local store: real clients, killed and resumed."""

import json
import struct
import subprocess
import sys

import pytest
from etils import epath

from aced.metrics import mlflow
from aced.metrics.shown import RunCard
from tests import many_processes

# A run with a line a step from FIRST to LAST, resumed after RESUME (0: new); with `kill` it dies
# once all lines are sent.
RUN = """
import io, json, os, pathlib, sys, time
from PIL import Image
from aced.metrics.config import MetricsConfig
from aced.metrics.shown import Picture
from aced.metrics.writer import Budget, Writer

folder, name, first, last, resume, kill = sys.argv[1:]
first, last, resume = int(first), int(last), int(resume) or None
settings = {"optimizer.schedule.peak": 0.1, "data.name": "x", "odd[0]": [1, 2], "long": "y" * 7000}
settings |= {f"setting{i}": i for i in range(150)}
config = MetricsConfig(to=(name,), project="tests", name="a run")
out = io.BytesIO()
Image.new("RGB", (8, 4), "red").save(out, "JPEG")
with Writer(folder, Budget(4, 20, 1e9), resume, config, settings) as writer:
    for step in range(first, last + 1):
        writer.write(step, {"loss": 1 / step, "bad": float("nan")})
        if step == first:
            writer.show(step, "picks", Picture(out.getvalue(), 8, 4))
        if step == 4:
            writer.write(step, {"eval/top1": 0.5})
    if kill == "kill":
        writer.flush()
        file = pathlib.Path(folder, f"{name}.json")
        stored = last - (name == "wandb")  # which stores the lines of a step with the next one
        while not file.exists() or json.loads(file.read_text())["step"] < stored:
            time.sleep(0.05)
        os._exit(9)
"""


def run(workdir, name, first, last, resume=0, kill=""):
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, (workdir, name, first, last, resume, kill))],
        env=many_processes.environment(1)
        | {
            "WANDB_MODE": "offline",
            "MLFLOW_TRACKING_URI": f"file:{workdir}/store",
            "MLFLOW_ALLOW_FILE_STORE": "true",  # a database takes 20 seconds to be made
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == (9 if kill else 0), done.stderr
    assert "could not be sent" not in done.stderr
    assert "wandb: " not in done.stdout + done.stderr  # it would break the progress line
    return json.loads((workdir / f"{name}.json").read_text())["id"]


def wandb_records(path):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_offline_has_each_line_once_under_one_id(tmp_path):
    first = run(tmp_path, "wandb", 1, 6, kill="kill")
    assert run(tmp_path, "wandb", 5, 9, resume=4) == first
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # `wandb sync` joins those of one id
    history, settings, pictures = [], [], []
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                assert (record.run.run_id, record.run.project) == (first, "tests")
                assert record.run.display_name == "a run"
                settings.append({x.key: json.loads(x.value_json) for x in record.run.config.update})
            elif record.HasField("history"):
                items = {
                    "/".join(x.nested_key) or x.key: json.loads(x.value_json)
                    for x in record.history.item
                }
                history.append((record.history.step.num, items))
            elif record.HasField("files"):
                pictures += [x.path for x in record.files.files if "picks" in x.path]
    losses = [(step, items["loss"]) for step, items in history if "loss" in items]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 10)]
    assert [step for step, items in history if "eval/top1" in items] == [4]
    assert settings[0]["optimizer.schedule.peak"] == 0.1
    assert settings[0]["setting149"] == 149
    assert pictures
    assert all((files[0].parent / "files" / path).exists() for path in pictures[:1])


@pytest.mark.slow
def test_mlflow_has_each_line_once_in_one_run(tmp_path, monkeypatch):
    first = run(tmp_path, "mlflow", 1, 6, kill="kill")
    assert run(tmp_path, "mlflow", 5, 9, resume=4) == first
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"file:{tmp_path}/store")
    experiment = client.get_experiment_by_name("tests").experiment_id
    (found,) = client.search_runs([experiment])
    assert (found.info.run_id, found.info.run_name) == (first, "a run")
    assert found.info.status == "FINISHED"
    losses = client.get_metric_history(first, "loss")
    assert [(x.step, x.value) for x in losses] == [(step, 1 / step) for step in range(1, 10)]
    assert [x.step for x in client.get_metric_history(first, "eval/top1")] == [4]
    assert found.data.params["optimizer.schedule.peak"] == "0.1"
    assert found.data.params["odd_0_"] == "[1, 2]"
    assert len(found.data.params["long"]) == 6000
    assert len(found.data.params) == 154
    pictures = [x.path for x in client.list_artifacts(first, "images")]
    assert any("picks" in path and "step+1+" in path.replace("%", "+") for path in pictures)


def test_settings_are_cut_to_what_mlflow_accepts():
    found = mlflow.params_of({"a.b-c/d": True, "x" * 300: "y" * 7000, "é[0]": None})
    assert found == {"a.b-c/d": "true", "x" * 250: "y" * 6000, "é_0_": "null"}


@pytest.mark.slow  # the import of mlflow takes seconds
def test_mlflow_has_one_run_after_an_error_and_a_refused_setting(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    log, errors = MlflowClient.log_batch, [MlflowException("no network")]

    def log_batch(self, *args, **settings):
        if errors:
            raise errors.pop()
        log(self, *args, **settings)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    settings = {"..": 1} | {f"setting{i}": i for i in range(150)}  # a name that MLflow refuses
    service = mlflow.MLflow(RunCard(epath.Path(tmp_path), "tests", "a run", settings, 0, []))
    with pytest.raises(MlflowException, match="no network"):
        service.open(None)
    run_id = service.open(None)
    service.write([{"step": 1, "loss": 0.5}])
    assert "MLflow has refused 100 settings" in caplog.text
    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert found.info.run_id == run_id
    assert found.data.metrics == {"loss": 0.5}
    assert found.data.params["setting149"] == "149"
