import dataclasses
import math

import numpy as np
import pytest

from aced.config import ConfigError
from aced.optim import durations, schedules


def build(total_steps=1000, batch_size=10, data_size=None, **settings):
    config = schedules.ScheduleConfig(peak=0.5, **settings)
    return schedules.build(
        config, total_steps=total_steps, batch_size=batch_size, data_size=data_size
    )


def cosine(s):
    return 0.5 * 0.5 * (1 + math.cos(math.pi * (s - 100) / 900))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"kind": "cosine", "warmup_steps": 100},
            {0: 0.0, 50: 0.25, 100: 0.5, 550: 0.25, 999: cosine(999), 1000: 0.0},
        ),
        (
            {"kind": "cosine", "warmup_steps": 100, "end_factor": 0.1},
            {100: 0.5, 550: 0.05 + 0.9 * 0.25, 1000: 0.05},
        ),
        (
            {"kind": "linear", "warmup_percent": 10.0, "end_factor": 0.2},
            {0: 0.0, 100: 0.5, 550: 0.5 - 0.4 / 2, 1000: 0.1},
        ),
        (
            # 1 / sqrt(1 + (s - warm-up) / timescale): 300 steps on, at timescale 100, a half.
            {
                "kind": "rsqrt",
                "warmup_examples": 1000,
                "cooldown_percent": 20.0,
                "timescale_steps": 100,
            },
            {
                0: 0.0,
                50: 0.25,
                100: 0.5,
                400: 0.25,
                800: 0.5 / math.sqrt(8),
                900: 0.5 / math.sqrt(9) / 2,
                999: 0.5 / math.sqrt(9.99) / 200,
            },
        ),
        (
            {"kind": "constant", "cooldown_steps": 100},
            {0: 0.5, 900: 0.5, 950: 0.25, 999: 0.005, 1000: 0.0},
        ),
    ],
)
def test_values_at_the_corners(settings, expected):
    lr = build(**settings)
    for step, value in expected.items():
        np.testing.assert_allclose(lr(step), value, rtol=2e-6, atol=2e-7, err_msg=f"step {step}")


def test_warmup_in_epochs():
    lr = build(kind="constant", warmup_epochs=0.5, data_size=800)  # 40 steps of 10 examples
    np.testing.assert_allclose([lr(20), lr(39), lr(40)], [0.25, 0.5 * 39 / 40, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 1, "warmup_percent": 1.0}, "warmup_steps=1, warmup_percent=1.0"),
        ({"warmup_epochs": 1.0}, "data_size is not known"),
        ({"kind": "rsqrt", "warmup_steps": 600, "cooldown_steps": 500}, "do not fit"),
        ({"kind": "cosine", "cooldown_steps": 5}, "decay it a second time"),
        ({"kind": "rsqrt", "end_factor": 0.1}, "end_factor has no effect"),
        ({"warmup_percent": 101.0}, "at most 100"),
        ({"warmup_steps": -1}, "not be negative"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


@pytest.mark.parametrize("peak", [math.nan, math.inf, -math.inf, 1e30, 100.1, 0.0, -1e-3])
def test_invalid_learning_rates_are_refused(peak):
    with pytest.raises(ConfigError, match=r"peak must be above 0 and at most 100\.0, got"):
        schedules.ScheduleConfig(peak=peak)


@dataclasses.dataclass
class Duration:
    total_steps: int | None = None
    total_examples: int | None = None
    total_epochs: float | None = None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"total_steps": 7}, 7),
        ({"total_steps": 0}, 0),
        ({"total_examples": 64}, 2),
        ({"total_examples": 79}, 2),
        ({"total_examples": 80}, 3),  # 2.5 steps
        ({"total_examples": 1}, 1),  # never rounded to nothing
        ({"total_examples": 0}, 0),
        ({"total_epochs": 1.5}, 5),  # 150 / 32 = 4.7
    ],
)
def test_durations_in_steps(given, expected):
    assert durations.steps(Duration(**given), "total", batch_size=32, data_size=100) == expected


def test_a_duration_that_is_not_set():
    assert durations.steps(Duration(), "total", default=3) == 3
    with pytest.raises(ConfigError, match=r"exactly one of total_steps, total_examples, .*none"):
        durations.steps(Duration(), "total")
