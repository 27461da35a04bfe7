"""A run ends once its evaluation no longer improves."""

import math
import shutil

import pytest
from etils import epath

from aced.checkpoints import checkpointer
from aced.config import ConfigError
from aced.metrics import history
from aced.train.config import parse
from aced.train.early_stop import EarlyStop, EarlyStopConfig
from configs import smoke
from tests.train.test_train import run


@pytest.mark.parametrize(
    ("settings", "values", "end"),  # the number of values after which the run ends, or None
    [
        ({}, (0.1, 0.2, 0.2, 0.1, 0.19), 5),
        ({}, (0.1, 0.2, 0.2, 0.1, 0.21, 0.2, 0.2), None),
        ({"mode": "min"}, (3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0), 8),
        ({"min_delta": 0.1}, (0.1, 0.15, 0.19, 0.2), 4),
        ({"patience": 1}, (0.1, 0.2, 0.3, 0.3), 4),
        ({}, (math.nan, math.nan, math.nan), 3),
        ({"metric": None}, (0.1,) * 9, None),
    ],
)
def test_end_after_as_many_evaluations_without_a_better_one(settings, values, end):
    config = EarlyStopConfig(**{"metric": "val/r1"} | settings)
    stop = EarlyStop(config)
    reached = []
    for value in values:
        stop.update({"loss": 1.0, "other/r1": value + len(reached), "val/r1": value})
        reached.append(stop.reached)
    assert (reached.index(True) + 1 if any(reached) else None) == end
    if settings != {"metric": None}:
        assert EarlyStop(config, values).reached == reached[-1]


def test_a_misspelt_number_is_logged_with_those_there_are(caplog):
    stop = EarlyStop(EarlyStopConfig(metric="val/recal"))
    stop.update({"loss": 1.0})
    assert not caplog.text
    stop.update({"val/r1": 0.5, "val/r5": 0.5, "other/x": 1.0})
    assert "early_stop.metric = 'val/recal' is not measured" in caplog.text
    assert "There are: val/r1, val/r5" in caplog.text


def test_average_that_is_not_due_is_no_mistake(caplog):
    stop = EarlyStop(EarlyStopConfig(metric="suite/both"))
    stop.update({"suite/one": 0.5, "val/r1": 0.5})
    assert not caplog.text


def test_run_that_was_stopped_before_its_first_metrics_goes_on(tmp_path):
    stop = EarlyStop.resumed(EarlyStopConfig(metric="val/r1"), epath.Path(tmp_path), 30)
    assert not stop.reached


def test_evaluation_has_to_exist():
    config = smoke.get_config("method=iid,tiny")
    config.early_stop.metric = "retrieval/mean_r1"
    assert parse(config).early_stop.patience == 3
    config.early_stop.metric = "retrival/mean_r1"
    with pytest.raises(
        ConfigError, match=r"early_stop\.metric = 'retrival/mean_r1' is not a number"
    ):
        parse(config)


@pytest.mark.slow
def test_run_ends_early_and_once(tmp_path, caplog):
    def config(patience=2):
        out = smoke.get_config("method=iid,tiny")
        out.total_steps = 20
        out.checkpoint.every_steps = 2
        for name, every in (("retrieval", 2), ("classes", 20)):
            out.evals[name].every_percent = None
            out.evals[name].every_steps = every
        # No value is better than the first one by so much.
        out.suites.both = ("retrieval/mean_r1", "classes/top1")
        out.early_stop.update(metric="retrieval/mean_r1", min_delta=10.0, patience=patience)
        return out

    def numbers(folder, name):
        return {line["step"]: line[name] for line in history.read(folder) if name in line}

    once, resumed = tmp_path / "once", tmp_path / "resumed"
    run(config(), once)
    assert list(numbers(once, "retrieval/mean_r1")) == [2, 4, 6]
    assert list(numbers(once, "classes/top1")) == [6]  # all evaluations have their last number
    assert list(numbers(once, "suite/both")) == [6]
    assert list(numbers(once, "loss")) == [1, 2, 3, 4, 5, 6]
    steps = [int(path.name) for path in (once / checkpointer.FOLDER).iterdir()]
    assert max(steps) == 6

    shutil.copytree(once, resumed)  # as if killed after step 4
    shutil.rmtree(resumed / checkpointer.FOLDER / "6")
    run(config(), resumed)
    assert numbers(resumed, "retrieval/mean_r1") == numbers(once, "retrieval/mean_r1")

    caplog.set_level("INFO")
    run(config(), once)
    assert "raise config.early_stop.patience to continue it" in caplog.text
    assert list(numbers(once, "loss")) == [1, 2, 3, 4, 5, 6]
    run(config(patience=3), once)
    assert list(numbers(once, "loss")) == [1, 2, 3, 4, 5, 6, 7, 8]
