"""What a run logs while it trains."""

import contextlib
import logging

import pytest
from absl import logging as absl_logging

from aced import evaluators
from aced.data.prefetch import DevicePrefetch
from aced.metrics import history, progress
from aced.train import setup
from configs import smoke
from tests.train.test_train import run

pytestmark = pytest.mark.slow


def evaluated(steps):
    """A run that is evaluated at every second step, and logs other numbers at every fourth."""
    config = smoke.get_config("method=iid,tiny")
    config.total_steps = steps
    config.log_steps = 4
    config.evals = {"retrieval": config.evals.retrieval}
    config.evals.retrieval.every_percent = None
    config.evals.retrieval.every_steps = 2
    config.watchdog_minutes = 30.0
    config.data.num_threads = 2
    return config


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run of 4 steps that is resumed for 2 more: the log, and the lines of the terminal."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    values = iter([0.1, 0.15, 0.13])
    lines, records = [], []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelno, record.getMessage()))

    @contextlib.contextmanager
    def announced(part):
        records.append((logging.NOTSET, part))
        yield

    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    with pytest.MonkeyPatch.context() as patch:
        # What an earlier test of this process has logged once may be logged again.
        patch.setattr(absl_logging, "_log_counter_per_token", {})
        patch.setattr(
            evaluators.retrieval.Retrieval, "__call__", lambda *_: {"mean_r1": next(values)}
        )
        patch.setattr(DevicePrefetch, "take_waited", lambda self: 1e6)
        patch.setattr(setup, "announced", announced)
        patch.setattr(progress.tqdm.tqdm, "write", lambda line, file: lines.append(line))
        run(evaluated(4), folder)
        run(evaluated(6), folder)
    logger.setLevel(level)
    logger.removeHandler(handler)
    return folder, records, [line[16:] for line in lines]


def test_evaluations_are_printed_with_the_change_since_the_last_one(logged):
    _, _, lines = logged
    assert [line for line in lines if "mean_r1" in line] == [
        "mine 2/4  50%  retrieval/mean_r1 10.0%",
        "mine 4/4 100%  retrieval/mean_r1 15.0% (+5.0)",
        "mine 6/6 100%  retrieval/mean_r1 13.0% (-2.0)",  # since metrics.jsonl's
    ]


def test_loss_and_speed_are_measured_at_evaluations(logged):
    folder, _, lines = logged
    shown = [line.split("  ")[0] for line in lines if "loss" in line and "examples/s" in line]
    assert shown == ["mine 2/4", "mine 4/4 100%", "mine 6/6 100%"]
    for line in history.read(folder):
        assert {"loss", "wall/examples_per_s", "retrieval/mean_r1"} <= set(line)


def test_wait_for_data_is_logged_with_what_helps(logged):
    _, records, lines = logged
    assert all("data wait" in line for line in lines if "loss" in line)
    (message,) = [text for level, text in records if "waited for data" in text]
    assert message.startswith("Step 2: the devices waited for data in ")
    assert "raise data.num_threads (now 2); docs/guides/troubleshooting.md" in message


def test_parts_of_the_start_are_announced_if_they_take_long(logged):
    _, records, _ = logged
    started = [text for level, text in records if level == logging.NOTSET]
    assert started == [
        "Opening shapes, split train",
        "Building the program",
        "Restoring the newest checkpoint",
        "Initializing the model and the optimizer",
        "Preparing the evaluation retrieval",
        # resumed
        "Opening shapes, split train",
        "Building the program",
        "Restoring the newest checkpoint",
        "Preparing the evaluation retrieval",
    ]


def test_watchdog_is_logged_once_for_debugging(logged):
    _, records, _ = logged
    assert [level for level, text in records if "watchdog_minutes" in text] == [logging.DEBUG]


def test_size_of_the_data_is_logged(logged):
    _, records, _ = logged
    assert (logging.INFO, "Data: shapes, split train, 1,000 examples.") in records


def test_finished_run_is_no_warning(logged):
    folder, _, _ = logged
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: pytest.fail(record.getMessage())
    logging.getLogger("absl").addHandler(handler)
    run(evaluated(6), folder)
    logging.getLogger("absl").removeHandler(handler)
