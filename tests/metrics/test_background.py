"""The thread that sends lines to a service: order, ids, resumption, failures and time."""

import json
import sys
import threading
import time

import pytest
from etils import epath

from aced.config import ConfigError
from aced.metrics import sinks
from aced.metrics.background import Background
from aced.metrics.config import MetricsConfig
from aced.metrics.shown import RunCard


class Recorder:
    """A service that keeps what it gets in `runs`, by run id."""

    runs: dict
    errors: list  # raised by the next calls, one each

    def __init__(self, card):
        self.card = card

    def open(self, run_id):
        self._raise()
        self.run_id = run_id or f"run{len(self.runs)}"
        self.runs.setdefault(self.run_id, [])
        return self.run_id

    def write(self, lines):
        self._raise()
        self.runs[self.run_id] += lines
        return lines[-1]["step"]

    def close(self, outcome):
        self.runs[self.run_id].append(outcome)

    def _raise(self):
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def service():
    return type("Service", (Recorder,), {"runs": {}, "errors": []})


def card(folder, earlier=(), first_step=0):
    return RunCard(epath.Path(folder), "aced", "name", {}, first_step, list(earlier))


def lines(*steps):
    return [{"step": step, "loss": 1 / step} for step in steps]


def steps(sent):
    return [line["step"] for line in sent if isinstance(line, dict)]


def background(service, *args, patience=5.0, **more):
    return Background("service", service, card(*args, **more), seconds=0.01, patience=patience)


def test_lines_arrive_in_order_and_the_run_is_ended(tmp_path, service):
    sink = background(service, tmp_path)
    for step in range(1, 1200):
        sink.write(lines(step))
    sink.close("finished")
    (sent,) = service.runs.values()
    assert sent == [*lines(*range(1, 1200)), "finished"]
    content = json.loads((tmp_path / "service.json").read_text())
    assert (content["id"], content["step"]) == ("run0", 1199)


def test_a_resumed_run_has_its_id_and_every_line_once(tmp_path, service):
    first = background(service, tmp_path)
    first.write(lines(*range(1, 10)))
    first.close("stopped")
    # From checkpoint 6: lines 7 to 9 are written again.
    second = background(service, tmp_path, earlier=lines(*range(1, 7)), first_step=7)
    second.write(lines(*range(7, 12)))
    second.close("finished")
    assert list(service.runs) == ["run0"]
    assert steps(service.runs["run0"]) == list(range(1, 12))


def test_lines_from_before_the_service_was_asked_for_are_sent(tmp_path, service):
    sink = background(service, tmp_path, earlier=lines(1, 2, 3), first_step=4)
    sink.write(lines(4))
    sink.close("finished")
    assert steps(service.runs["run0"]) == [1, 2, 3, 4]


def test_several_lines_of_a_step_are_sent(tmp_path, service):
    sink = background(service, tmp_path)
    evaluation = {"step": 2, "retrieval/mean_r1": 0.5}
    sink.write([*lines(1, 2), evaluation])
    sink.close("finished")
    assert service.runs["run0"][2] == evaluation


def test_a_service_that_does_not_answer_delays_nothing(tmp_path, service, caplog):
    never = threading.Event()
    opened = service.open
    service.open = lambda self, run_id: never.wait(30) and opened(self, run_id)
    sink = background(service, tmp_path, patience=0.2)
    start = time.monotonic()
    sink.write(lines(*range(1, 1000)))
    assert time.monotonic() - start < 0.1
    sink.close("finished")
    assert time.monotonic() - start < 5
    assert "999 lines of metrics have not reached service" in caplog.text
    never.set()
    sink._thread.join()


def test_lines_are_tried_again_after_errors(tmp_path, service, caplog, monkeypatch):
    monkeypatch.setattr("aced.metrics.background._RETRY_SECONDS", 0.01)
    service.errors += [
        OSError("no network"),
        TimeoutError("no answer"),
        ValueError("a bad gateway"),
    ]
    sink = background(service, tmp_path)
    sink.write(lines(1, 2))
    deadline = time.monotonic() + 5
    while service.errors and time.monotonic() < deadline:
        time.sleep(0.01)
    sink.write(lines(3))
    sink.close("finished")
    assert steps(service.runs["run0"]) == [1, 2, 3]
    errors = [x.getMessage() for x in caplog.records if x.levelname == "ERROR"]
    assert len(errors) == 1  # of several in a row
    assert "Metrics could not be sent to service: no network. The run continues" in errors[0]


def test_what_an_error_kept_back_is_sent_by_the_next_start(tmp_path, service, caplog):
    service.errors += [OSError("no network")] * 2
    sink = background(service, tmp_path)
    sink.write(lines(1, 2))
    sink.close("finished")
    assert "2 lines of metrics have not reached service" in caplog.text
    assert service.runs == {}
    sink = background(service, tmp_path, earlier=lines(1, 2), first_step=3)
    sink.close("finished")
    assert steps(service.runs["run0"]) == [1, 2]


def test_a_damaged_id_names_the_file(tmp_path, service, caplog):
    (tmp_path / "service.json").write_text('{"id": "run7", "step": 3, "sha256": "0"}')
    sink = background(service, tmp_path)
    sink.write(lines(1))
    sink.close("finished")
    assert f"{tmp_path}/service.json is not readable" in caplog.text
    assert service.runs == {}


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    sinks.check(("tensorboard",))
    with pytest.raises(ConfigError, match=r"needs the package mlflow: pip install '.\[mlflow\]'"):
        sinks.check(("tensorboard", "mlflow"))


def test_folder_with_the_name_of_a_package_is_not_the_package(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="needs the package wandb"):
        sinks.check(("wandb",))


def test_unknown_sinks_are_refused():
    with pytest.raises(ConfigError, match=r"to\[0\] must be .*'wandb' or 'mlflow', got 'neptune'"):
        MetricsConfig(to=("neptune",))
