import io

import jax
import pytest

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


VALUES = {
    "loss": 1.23456,
    "wall/steps_per_s": 0.5,
    "wall/examples_per_s": 1234.5,
    "wall/data_share": 0.034,
    "wall/mfu": 0.4123,
}


def test_the_line():
    assert progress.describe(1200, 10_000, VALUES, eta=17_600.0) == (
        "step 1,200/10,000  ETA 4:53:20  loss 1.2346  1,234 examples/s  data wait 3%  MFU 41.2%"
    )
    assert progress.describe(1, 2, {}) == "step 1/2"


def test_eta_includes_evaluations_but_not_the_start():
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(100, stream=stream, seconds=0.0, clock=clock)
    clock.now = 50.0  # compiling
    line.show(10, VALUES)
    clock.now = 80.0  # 1 s a step by the metrics, and an evaluation of 20 s
    line.show(20, VALUES | {"wall/steps_per_s": 1.0})
    first, second = stream.getvalue().splitlines()
    assert "ETA" not in first
    assert "ETA 0:04:00" in second


def test_eta_includes_the_phases_after_this_one():
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(
        100, name="reference", flops=2e9, later_flops=6e11, stream=stream, seconds=0.0, clock=clock
    )
    line.show(10, {})
    clock.now = 20.0
    line.show(20, {})  # 1e9 FLOP/s
    remaining = 80 * 2 + 600
    assert stream.getvalue().splitlines()[1] == "reference 20/100  ETA 0:12:40"
    assert remaining == 12 * 60 + 40


def test_periodic_lines_without_a_terminal():
    clock, stream = Clock(), io.StringIO()
    line = progress.Progress(100, stream=stream, seconds=10.0, clock=clock)
    for step in range(0, 101, 4):
        clock.now = float(step)
        line.show(step, {})
    line.close()
    shown = [int(text.split()[1].split("/")[0]) for text in stream.getvalue().splitlines()]
    assert shown == [0, 12, 24, 36, 48, 60, 72, 84, 96, 100]  # the last one in any case


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_line_is_rewritten_on_a_terminal():
    stream = Terminal()
    line = progress.Progress(100, stream=stream, clock=lambda: 1.0)
    line.show(1, VALUES)
    line.show(2, {})
    line.close()
    first, second = progress.describe(1, 100, VALUES), "step 2/100  ETA 0:00:00"
    assert stream.getvalue() == f"\r{first}\r{second}{' ' * (len(first) - len(second))}\n"


def test_only_process_0_prints(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = Terminal()
    line = progress.Progress(100, stream=stream)
    line.show(1, VALUES)
    line.close()
    assert stream.getvalue() == ""
