import io
import logging as stdlib_logging
import re
import time

import jax
import pytest
from absl import logging

from aced.metrics import progress
from aced.metrics.writer import Budget

BUDGET = Budget(examples_trained=8, examples_scored=40, flops=3e12)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_speed_and_shares_of_time():
    clock = Clock()
    meter = progress.Meter(BUDGET, 100, peak=1e13, clock=clock)
    clock.now += 20.0
    meter.spend("data", 2.0)
    meter.spend("data", 3.0)
    assert meter.measure(110) == pytest.approx(
        {
            "wall/steps_per_s": 0.5,
            "wall/examples_per_s": 4.0,
            "wall/data_share": 0.25,
            "wall/mfu": 0.15,  # 1.5e12 FLOP/s of 1e13
        }
    )
    clock.now += 5.0
    meter.spend("data", 1.0)
    assert meter.measure(111) == pytest.approx(
        {
            "wall/steps_per_s": 0.2,
            "wall/examples_per_s": 1.6,
            "wall/data_share": 0.2,
            "wall/mfu": 0.06,
        }
    )


def test_pauses_are_not_counted():
    clock = Clock()
    meter = progress.Meter(BUDGET, clock=clock)
    clock.now += 2.0

    def evaluate():
        with meter.paused():
            clock.now += 50.0
            raise EOFError

    with pytest.raises(EOFError):
        evaluate()
    assert meter.measure(1) == pytest.approx({"wall/steps_per_s": 0.5, "wall/examples_per_s": 4.0})


def test_clock_starts_after_the_first_compilation():
    clock = Clock()
    meter = progress.Meter(BUDGET, clock=clock)
    meter.spend("data", 5.0)  # until the input has started
    clock.now += 5.0
    with meter.compiling():
        clock.now += 60.0
    clock.now += 2.0
    meter.spend("data", 0.5)
    measured = meter.measure(1)
    assert measured["wall/steps_per_s"] == pytest.approx(0.5)
    assert measured["wall/data_share"] == pytest.approx(0.25)


VALUES = {
    "loss": 1.23456,
    "wall/steps_per_s": 0.5,
    "wall/examples_per_s": 1234.5,
    "wall/data_share": 0.034,
    "wall/mfu": 0.4123,
}
MEASURED = "loss 1.2346  1,234 examples/s  MFU 41.2%"


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def screen(self):
        """The lines on the screen, with what was overwritten gone."""
        return [line.rpartition("\r")[2].rstrip() for line in self.getvalue()[:-1].split("\n")]


@pytest.fixture
def window(monkeypatch):
    """A wide terminal with colours."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def without_stamps(text):
    lines = text.splitlines()
    assert all(re.match(r"\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in lines)
    return [line[16:] for line in lines]


def test_lines_of_a_file():
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(10_000, name="aced", stream=stream, clock=clock)
    line.show(1200, VALUES)
    clock.now = 200.0
    line.show(1300, VALUES | {"wall/data_share": 0.234})
    line.write(1300, "retrieval/mean_r1 10.8% (+3.1)")
    assert without_stamps(stream.getvalue()) == [
        f"aced 1,200/10,000  12%  {MEASURED}",
        f"aced 1,300/10,000  13%  ETA 4:50:00  {MEASURED}  data wait 23%",
        "aced 1,300/10,000  13%  retrieval/mean_r1 10.8% (+3.1)",
    ]


def test_eta_includes_evaluations_but_not_the_start():
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(100, name="aced", stream=stream, clock=clock)
    clock.now = 50.0  # compiling
    line.show(10, VALUES)
    clock.now = 80.0  # 1 s a step by the metrics, and an evaluation of 20 s
    line.show(20, VALUES | {"wall/steps_per_s": 1.0})
    first, second = stream.getvalue().splitlines()
    assert "ETA" not in first
    assert "ETA 0:04:00" in second


def test_eta_includes_later_phases_at_the_flops_of_this_one():
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(
        100, name="reference", flops=1e9, later_flops=6e10, stream=stream, clock=clock
    )
    line.show(10, VALUES)
    clock.now = 20.0  # 2 s for 1e9 FLOPs
    line.show(20, VALUES)
    clock.now = 180.0
    line.show(100, VALUES)
    _, second, last = stream.getvalue().splitlines()
    assert "ETA 0:04:40" in second  # 80 steps, and as much as 60
    assert "ETA 0:02:00" in last


def shown(total, seconds_per_step, every):
    """The steps that a file has lines of."""
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(total, name="aced", stream=stream, clock=clock)
    for step in range(every, total + 1, every):
        clock.now = step * seconds_per_step
        line.show(step - 1)  # nothing was measured
        line.show(step, VALUES)
    line.close()
    lines = without_stamps(stream.getvalue())
    return [int(text.split()[1].split("/")[0].replace(",", "")) for text in lines]


def test_lines_of_a_file_are_seconds_and_per_cents_apart():
    assert shown(100, 1.0, 4) == [4, 16, 28, 40, 52, 64, 76, 88, 100]
    assert shown(2000, 1.0, 10) == [*range(10, 2000, 20), 2000]
    rare = shown(1_000_000, 1.0, 100)[:4]
    assert rare == [100, 400, 700, 1000]  # 1 % would be hours


def test_line_is_shown_at_once_on_demand():
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(100, name="aced", stream=stream, clock=clock)
    for step in (1, 2, 3):
        line.show(step, VALUES, always=step == 2)
    assert [text.split()[1] for text in without_stamps(stream.getvalue())] == ["1/100", "2/100"]


def test_one_line_is_rewritten_on_a_terminal(window):
    clock = Clock()
    line = progress.Progress(100, name="aced", stream=window, clock=clock)
    for step in range(1, 51):
        clock.now = step / 16
        line.show(step, VALUES | {"wall/data_share": 0.5} if step == 10 else None)
    assert window.getvalue().count("\r") < 30  # not every step
    line.close()
    (last,) = window.screen()
    assert last.startswith("aced 49/100  49%  \033[32m")
    assert f"ETA 0:00:03  {MEASURED}  \033[33mdata wait 50%" in last
    assert window.getvalue().endswith("\n")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(window, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with progress.Progress(100, name="aced", stream=window) as line:
        line.show(100, VALUES | {"wall/data_share": 0.5})
    assert "\033" not in window.getvalue()


def test_line_fits_the_window(window, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    with progress.Progress(100, name="aced", stream=window) as line:
        line.show(100, VALUES)
    plain = re.sub(r"\033\[\d+m", "", window.screen()[0])
    assert plain.startswith("aced 100/100")
    assert len(plain) <= 30


def test_names_with_braces(window):
    with progress.Progress(100, name="a{b}c", stream=window) as line:
        line.show(100, VALUES)
    assert window.screen()[0].startswith("a{b}c 100/100")


def test_log_lines_and_evaluations_stay_above_the_line(window, monkeypatch):
    handler = logging.get_absl_handler().python_handler
    monkeypatch.setattr("sys.stderr", window)
    monkeypatch.setattr(handler, "stream", window)  # which an earlier test may have chosen
    monkeypatch.setattr(logging, "_warn_preinit_stderr", False)  # flags are not parsed in tests
    record = stdlib_logging.LogRecord("absl", stdlib_logging.INFO, "a.py", 1, "logged", (), None)
    with progress.Progress(100, name="aced", stream=window) as line:
        line.show(7, VALUES)
        handler.emit(record)
        line.write(7, "retrieval/mean_r1 10.8%")
    handler.emit(record)
    first, second, third, last = window.screen()
    assert first.endswith("logged")
    assert second.endswith("aced 7/100   7%  retrieval/mean_r1 10.8%")
    assert third.startswith("aced 7/100   7%  ")
    assert third.count("examples/s") == 1
    assert last.endswith("logged")


def test_only_process_0_prints(monkeypatch, window):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    line = progress.Progress(100, name="aced", stream=window)
    line.show(1, VALUES)
    line.write(1, "retrieval/mean_r1 10.8%")
    line.close()
    assert window.getvalue() == ""


def test_long_part_is_announced_before_and_after(caplog):
    caplog.set_level("INFO")
    with progress.announced("Opening /data/all", seconds=0.01):
        deadline = time.monotonic() + 10
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.005)
        assert caplog.messages == ["Opening /data/all ..."]
    assert caplog.messages[1:] == ["Opening /data/all took 0 s."]


def test_short_part_is_not_announced(caplog):
    caplog.set_level("INFO")
    with progress.announced("Opening /data/all", seconds=60.0):
        pass
    assert not caplog.messages
