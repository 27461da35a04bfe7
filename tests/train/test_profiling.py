"""A trace has the steps that were asked for, also where the run stops within it."""

import pathlib
import signal
import warnings

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from aced.config import ConfigError
from aced.parallel import preemption
from aced.train.config import parse
from aced.train.profiling import Profiler
from tests.signals import signal_at
from tests.train.test_train import config, run


def traces(folder):
    return list(pathlib.Path(folder).glob("profile/plugins/profile/*/*.xplane.pb"))


def traced_steps(folder):
    """The numbers of the steps that the only trace of the run in `folder` has."""
    (file,) = traces(folder)
    with warnings.catch_warnings():  # as an error in JAX's own code, it aborts the process
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        trace = jax.profiler.ProfileData.from_file(str(file))
        (host,) = (plane for plane in trace.planes if plane.name == "/host:CPU")
        events = (event for line in host.lines for event in line.events)
        return sorted(dict(event.stats)["step_num"] for event in events if event.name == "train")


def profiled(**changes):
    """Six steps; the third and the fourth are traced."""
    return config("iid", **{"total_steps": 6, "profile.steps": 2, "profile.skip": 2} | changes)


@pytest.mark.slow
def test_the_steps_asked_for_are_traced(tmp_path, caplog):
    run(config("iid", total_steps=1), tmp_path)
    assert not (tmp_path / "profile").exists()
    with caplog.at_level("INFO"):
        run(profiled(), tmp_path)  # the same run, which goes on
    assert traced_steps(tmp_path) == [4, 5]
    assert f"Steps from 4 on are traced in {tmp_path}/profile" in caplog.text
    assert f"xprof --logdir={tmp_path}/profile" in caplog.text


@pytest.mark.slow
def test_a_preempted_run_ends_its_trace(tmp_path, monkeypatch):
    signal_at(monkeypatch, signal.SIGTERM, 4)
    with pytest.raises(SystemExit) as stopped:
        run(profiled(**{"profile.steps": 3}), tmp_path)
    assert stopped.value.code == preemption.EXIT_CODE
    assert traced_steps(tmp_path) == [3, 4]


def fail_in_step(profiler):
    with profiler, jax.profiler.StepTraceAnnotation("train", step_num=3):
        profiler.switch()
        jnp.ones(2).block_until_ready()
        raise RuntimeError("the step failed")


def test_an_error_ends_the_trace(tmp_path):
    profiler = Profiler(parse(profiled()).profile, epath.Path(tmp_path), start=0, total_steps=6)
    with pytest.raises(RuntimeError, match="the step failed"):
        fail_in_step(profiler)
    assert len(traces(tmp_path)) == 1
    with pytest.raises(RuntimeError, match="the step failed"):  # no trace is open any more
        fail_in_step(profiler)


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file")
    profiler = Profiler(parse(profiled()).profile, epath.Path(tmp_path), start=0, total_steps=6)
    with pytest.raises(RuntimeError, match="the step failed"):
        fail_in_step(profiler)
    assert f"{tmp_path}/profile" in caplog.text


def test_a_trace_ends_with_the_run(tmp_path):
    settings = parse(profiled()).profile
    profiler = Profiler(settings, epath.Path(tmp_path), start=0, total_steps=3)
    assert [step for step in range(1, 4) if profiler.is_due(step)] == [2, 3]


def test_steps_are_counted_from_where_the_process_goes_on(tmp_path):
    profiler = Profiler(parse(profiled()).profile, epath.Path(tmp_path), start=10, total_steps=20)
    assert [step for step in range(1, 21) if profiler.is_due(step)] == [12, 14]


def test_a_run_that_ends_before_the_first_traced_step_warns(tmp_path, caplog):
    settings = parse(profiled()).profile
    with Profiler(settings, epath.Path(tmp_path), start=4, total_steps=6) as profiler:
        assert not any(profiler.is_due(step) for step in range(1, 10))
    message = "No step is traced: step 7 would be the first, and the run ends with step 6"
    assert message in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile.steps": -1}, r"config.profile.steps must be at least 0, got -1"),
        ({"profile.skip": 0}, r"config.profile.skip must be at least 1, got 0"),
        ({"profile.steps": "100:110"}, r"config.profile.steps must be int, got '100:110'"),
    ],
)
def test_settings_that_make_no_trace_are_refused(changes, message):
    settings = profiled()
    with settings.ignore_type():
        settings.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        parse(settings)
