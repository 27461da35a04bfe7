"""The loop: the same run on any devices, exact resumption, signals, and what goes wrong."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from aced import evaluators
from aced.cache import fingerprint
from aced.checkpoints import checkpointer
from aced.checkpoints.checkpointer import CheckpointError
from aced.config import ConfigError
from aced.files import ownership
from aced.metrics import history
from aced.metrics.writer import Writer
from aced.parallel import preemption
from aced.train import loop
from configs import smoke
from tests import many_processes

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import os, sys
import jax
jax.config.update("jax_platforms", "cpu")
sys.path.insert(0, {root!r})
from tests.train import test_train
test_train.{function}(*{arguments!r})
"""


def config(method="h_acid", steps=20, **changes):
    """A tiny run with a reference, a line of metrics and all picks of every step."""
    out = smoke.get_config(f"method={method},online,tiny")
    out.batch_size = 32
    out.total_steps = steps
    out.method.selection.chunks = 2
    out.method.selection.strata = 8
    out.data.shapes.wrong = 0.5
    out.data.shapes.size = 100_000
    out.data.num_threads = 2
    out.evals = {}
    for key, value in changes.items():
        out.update_from_flattened_dict({key: value})
    return out


def run(settings, workdir, devices=1):
    return loop.run(settings, str(workdir), devices=jax.devices()[:devices])


def lines(workdir):
    """Metrics without what depends on the clock."""
    keep = [
        {k: v for k, v in line.items() if not k.startswith("wall/")}
        for line in history.read(workdir)
    ]
    assert keep
    return keep


def state(workdir):
    """All that the newest checkpoint holds, as host arrays."""
    folder = pathlib.Path(workdir) / checkpointer.FOLDER
    newest = max(folder.iterdir(), key=lambda path: int(path.name))
    metadata = ocp.checkpointables_metadata(newest).metadata["state"]
    shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
    loaded = ocp.load(newest, shapes, checkpointable_name="state")
    return jax.tree.leaves(loaded)


def assert_same_run(a, b):
    assert lines(a) == lines(b)
    assert history.read_picks(a) == history.read_picks(b)
    for x, y in zip(state(a), state(b), strict=True):
        np.testing.assert_array_equal(x, y)


def train_reference(folder, steps):
    """Trains the reference of `config` alone; returns its workdir."""
    settings = config().before.reference
    settings.total_steps = steps
    run(settings, folder)
    return str(folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A short run of a reference that the others share."""
    return train_reference(tmp_path_factory.mktemp("reference"), 30)


def with_reference(settings, reference):
    settings.before = {}
    settings.method.reference.checkpoint = reference
    return settings


@pytest.mark.slow
def test_same_picks_and_losses_on_1_2_and_8_devices(reference, tmp_path):
    for devices in (1, 2, 8):
        settings = with_reference(config("aced"), reference)
        run(settings, tmp_path / str(devices), devices=devices)
    one = history.read_picks(tmp_path / "1")
    assert len(one) == 20
    assert all(len(set(ids)) == 32 for ids in one.values())
    for devices in ("2", "8"):
        assert history.read_picks(tmp_path / devices) == one
        for a, b in zip(lines(tmp_path / "1"), lines(tmp_path / devices), strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
            assert a["selection/noisy_share"] == b["selection/noisy_share"]


def resumable(reference):
    settings = with_reference(config("aced"), reference)
    settings.checkpoint.every_steps = 10
    settings.ema_decay = 0.9
    return settings


@pytest.mark.slow
def test_a_reference_that_was_trained_further_is_refused(reference, tmp_path):
    """`which="last"` is found anew at every start: it must find the same weights."""
    copy = tmp_path / "reference"
    shutil.copytree(reference, copy)
    settings = with_reference(config("i_acid", steps=2), str(copy))
    run(settings, tmp_path / "run")
    further = config().before.reference
    further.total_steps = 32
    run(further, copy)
    settings.total_steps = 4
    with pytest.raises(ConfigError, match=r"model_fingerprints.reference's weights: '\w+' then"):
        run(settings, tmp_path / "run")


def killed_run(workdir, reference, score_ahead=0):
    """Runs in a process of its own that kills itself after step 13, as a machine that dies."""
    settings = resumable(reference)
    settings.method.score_ahead = score_ahead
    write = Writer.write

    def write_and_die(self, step, values):
        write(self, step, values)
        if step == 13:
            os.kill(os.getpid(), signal.SIGKILL)

    Writer.write = write_and_die
    run(settings, workdir)


def in_a_process(function, *arguments):
    program = PROGRAM.format(root=str(ROOT), function=function, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300,
        # As many devices as here, since XLA compiles other programs for a process with one.
        check=False, env=many_processes.environment(jax.device_count()),
    )  # fmt: skip


def test_killed_run_resumes_bit_for_bit(reference, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = resumable(reference)
    run(settings, whole)
    done = in_a_process("killed_run", str(killed), reference)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert history.read(killed)[-1]["step"] == 13
    run(settings, killed)
    assert_same_run(whole, killed)
    assert len(lines(killed)) == 20
    run(settings, killed)  # once more: nothing is left to do, and nothing changes
    assert_same_run(whole, killed)


def saved_steps(workdir):
    found = (workdir / checkpointer.FOLDER).glob("*")
    return [int(path.name) for path in found if path.name.isdigit()]


@pytest.mark.slow
def test_second_process_is_refused_and_changes_nothing(reference, tmp_path):
    """Then the first is killed, and the same command goes on at once, bit for bit."""
    arguments = ["-m", "aced.main", "--config=tests/small_run.py:reference=" + reference]
    arguments += [f"--workdir={tmp_path / 'run'}", "--config.total_steps=400"]
    file = tmp_path / "run" / history.FILE
    with many_processes.start(1, 1, arguments, tmp_path / "logs") as first:
        first.wait_for(lambda: file.exists() and file.read_text().count("\n") >= 3)
        for more in ([], ["--force"]):
            with many_processes.start(1, 1, [*arguments, *more], tmp_path / "logs") as second:
                assert second.exit_codes() == [1]
                said = second.output(0)
                assert f"process {first.processes[0].pid} on {os.uname().nodename}" in said
                assert "Traceback" not in said
        first.wait_for(lambda: saved_steps(tmp_path / "run"))
        first.kill()
    saved = max(saved_steps(tmp_path / "run"))
    arguments[-1] = f"--config.total_steps={saved + 3}"
    start = time.monotonic()
    with many_processes.start(1, 1, arguments, tmp_path / "logs") as again:
        assert again.exit_codes() == [0], again.output(0)
        assert "taken over" not in again.output(0)
    assert time.monotonic() - start < ownership.STALE_SECONDS
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert sorted(set(steps)) == list(range(1, saved + 4))
    assert not (tmp_path / "run" / ownership.FILE).exists()


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_its_own_code(reference, tmp_path):
    settings = with_reference(config(steps=2000), reference)
    settings.checkpoint.every_steps = 1000
    program = PROGRAM.format(
        root=str(ROOT), function="long_run", arguments=(str(tmp_path / "run"), reference)
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        file = tmp_path / "run" / history.FILE
        if file.exists() and file.read_text().count("\n") >= 5:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == preemption.EXIT_CODE == 42, stderr.decode()
    saved = [int(p.name) for p in (tmp_path / "run" / checkpointer.FOLDER).iterdir()]
    assert len(saved) == 1
    assert 5 <= saved[0] < 1000
    assert history.read(tmp_path / "run")[-1]["step"] == saved[0]
    settings.total_steps = saved[0] + 2
    assert run(settings, tmp_path / "run")["step"] == saved[0] + 2


def long_run(workdir, reference):
    settings = with_reference(config(steps=2000), reference)
    settings.checkpoint.every_steps = 1000
    run(settings, workdir)


def evaluated(steps):
    """A run that is evaluated halfway and at its end, on a few examples."""
    settings = config("iid", steps=steps)
    settings.evals.retrieval = smoke.get_config().evals.retrieval
    settings.evals.retrieval.data.shapes.size = 20
    return settings


def fail(self, params):
    """In the place of an evaluation."""
    raise ConfigError("no such data")


@pytest.mark.slow
def test_state_is_saved_when_evaluation_fails(tmp_path, monkeypatch):
    settings = evaluated(steps=3)
    monkeypatch.setattr(evaluators.retrieval.Retrieval, "__call__", fail)
    with pytest.raises(ConfigError, match="no such data"):
        run(settings, tmp_path)
    assert [path.name for path in (tmp_path / checkpointer.FOLDER).iterdir()] == ["2"]
    assert "loss" in lines(tmp_path)[-1]
    monkeypatch.undo()
    assert run(settings, tmp_path)["step"] == 3  # from there
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.slow
def test_preempted_run_saves_once_when_evaluation_fails(tmp_path, monkeypatch):
    settings = evaluated(steps=4)
    monkeypatch.setattr(evaluators.retrieval.Retrieval, "__call__", fail)
    monkeypatch.setattr(preemption.Preemption, "reached", lambda self, step: step == 2)
    with pytest.raises(ConfigError, match="no such data"):
        run(settings, tmp_path)
    assert [path.name for path in (tmp_path / checkpointer.FOLDER).iterdir()] == ["2"]
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("code", [preemption.EXIT_CODE, preemption.INTERRUPTED])
def test_preemption_in_the_last_step_of_an_earlier_run_sets_the_exit_code(
    tmp_path, monkeypatch, code
):
    settings = config("iid", steps=1)
    settings.before = {"reference": config("iid", steps=2)}
    settings.before.reference.before = {}

    def reached(self, step):
        self.exit_code = code
        return step == 2

    monkeypatch.setattr(preemption.Preemption, "reached", reached)
    with pytest.raises(SystemExit) as error:
        run(settings, tmp_path)
    assert error.value.code == code
    assert lines(tmp_path / "reference")[-1]["step"] == 2
    assert not (tmp_path / history.FILE).exists()
    monkeypatch.undo()
    assert run(settings, tmp_path)["step"] == 1


@pytest.mark.slow
def test_preempted_run_saves_before_evaluation(tmp_path, monkeypatch):
    settings = evaluated(steps=4)
    saved, evaluate = [], evaluators.retrieval.Retrieval.__call__

    def look(self, params):
        saved.append(sorted(path.name for path in (tmp_path / checkpointer.FOLDER).iterdir()))
        return evaluate(self, params)

    monkeypatch.setattr(evaluators.retrieval.Retrieval, "__call__", look)
    monkeypatch.setattr(preemption.Preemption, "reached", lambda self, step: step == 2)
    with pytest.raises(SystemExit):
        run(settings, tmp_path)
    assert saved == [["2"]]
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 2]
    assert "loss" in found[1]
    assert "retrieval/mean_r1" in found[2]
    monkeypatch.undo()
    assert run(settings, tmp_path)["step"] == 4


@pytest.mark.slow
def test_changed_tokenizer_ids_are_refused_on_resume(tmp_path, monkeypatch):
    run(config("iid", steps=1), tmp_path)
    monkeypatch.setattr(fingerprint, "of_tokenizer", lambda tokenizer: "other")
    with pytest.raises(ConfigError, match=r"model_fingerprints\.model's tokenizer"):
        run(config("iid", steps=2), tmp_path)


@pytest.mark.slow
def test_unused_pixels_are_reported(tmp_path, caplog):
    run(config("iid", steps=1, **{"method.model.image.resolution": 35}), tmp_path)
    assert "resolution = 35 is not a multiple of patch = 8; the last 3 pixels" in caplog.text


@pytest.mark.slow
def test_non_finite_steps_are_skipped_counted_and_stop_the_run(reference, tmp_path):
    settings = with_reference(config(steps=20), reference)
    settings.method.model.init_scale = 1e38  # logits overflow: the loss is not finite
    settings.max_skipped_in_a_row = 7
    with pytest.raises(loop.TrainingError, match=r"not finite in 7 steps in a row, up to step 7"):
        run(settings, tmp_path)
    found = lines(tmp_path)
    assert [line["skipped"] for line in found] == list(range(1, len(found) + 1))
    assert not np.isfinite(found[0]["loss"])
    assert len({line["param_norm"] for line in found}) == 1
    # The picks of the step that ends the run are there, once, and so are those of the others.
    picks = (tmp_path / history.PICKS_FILE).read_text().splitlines()
    steps = [json.loads(line)["step"] for line in picks]
    assert steps == sorted(set(steps))
    assert steps[-1] == 7


@pytest.mark.slow
def test_run_starts_from_another_runs_model(reference, tmp_path):
    settings = config("iid", steps=1)
    settings.before = {}
    settings.init.checkpoint = reference
    settings.optimizer.lr_rules = (("model/image/.*", 0.0),)
    settings.optimizer.schedule.warmup_percent = None
    run(settings, tmp_path)
    before = checkpointer.load_params(reference)["model"]
    after = checkpointer.load_params(tmp_path)["model"]
    jax.tree.map(np.testing.assert_array_equal, before["image"], after["image"])
    assert not np.array_equal(before["text"]["token"], after["text"]["token"])


@pytest.mark.slow
def test_a_checkpoint_of_another_shape(reference, tmp_path):
    settings = with_reference(config("iid", steps=2), reference)
    run(settings, tmp_path)
    (tmp_path / "config.json").unlink()  # or the changed settings would be refused before
    settings.method.model.text.length = 24
    with pytest.raises(CheckpointError, match=r"text/position: expected .*24.*, found .*16"):
        run(settings, tmp_path)


@pytest.mark.slow
def test_a_workdir_of_another_run(reference, tmp_path):
    settings = with_reference(config("iid", steps=2), reference)
    run(settings, tmp_path)
    written = (tmp_path / "config.json").read_text()
    changes = {"method.model.image.depth": 2, "batch_size": 16, "data.shapes.seed": 7}
    settings.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match="batch_size: 32 then, 16 now") as error:
        run(settings, tmp_path)
    assert "data_fingerprint" in str(error.value)
    assert "method.model.image.depth: None then, 2 now" in str(error.value)
    assert (tmp_path / "config.json").read_text() == written


@pytest.mark.slow
def test_a_reference_of_another_shape_than_assumed(reference, tmp_path, caplog):
    """It is used as it was trained, and computed with the dtype and attention of the settings."""
    run(with_reference(config("i_acid", steps=2), reference), tmp_path / "right")
    settings = with_reference(config("i_acid", steps=2), reference)
    settings.method.reference.model = settings.method.model.copy_and_resolve_references()
    settings.method.reference.model.image.patch = 16
    settings.method.reference.model.remat = "full"
    run(settings, tmp_path / "wrong")
    assert "image.patch: here 16, there 8" in caplog.text
    assert lines(tmp_path / "right") == lines(tmp_path / "wrong")


@pytest.mark.slow
def test_a_start_from_a_model_of_another_shape(reference, tmp_path):
    settings = config("iid", steps=2)
    settings.method.model.image.patch = 16
    settings.init.checkpoint = reference
    with pytest.raises(ConfigError, match=r"image\.patch: here 16, there 8.*use its model"):
        run(settings, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.shapes.size": 0}, r"shapes/train is empty"),
        (
            {"data.shapes.size": 100},
            r"batch_size = 32, with method\.selection\.filter_ratio, reads super-batches of 160 "
            r"examples, but the data set shapes/train has only 100: .*Lower batch_size or",
        ),
        ({"batch_size": 20}, r"not divisible by selection\.strata"),
        ({"method.reference.checkpoint": "/nowhere"}, r"/nowhere does not exist"),
        ({"method.reference.checkpoint": ""}, r"set method\.reference\.checkpoint"),
        ({"method.model.text.vocab_size": 20}, r"raise it to that"),
        ({"total_examples": 100}, r"Set exactly one of total_steps, total_examples"),
        ({"optimizer.lr_rules": (("nothing", 0.5),)}, r"'nothing' has no effect"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_step(changes, message, reference, tmp_path):
    settings = with_reference(config(), reference)
    settings.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        run(settings, tmp_path)
    assert not (tmp_path / history.FILE).exists()


def test_a_workdir_that_checkpoints_cannot_be_written_to():
    for workdir in ("s3://bucket/run", "gcs://bucket/run"):
        with pytest.raises(
            ConfigError, match=f"--workdir = '{workdir}' cannot be used.*Local paths and gs:// can"
        ):
            loop.run(config(), workdir)


def test_unknown_settings_are_refused_also_in_runs_that_come_first(tmp_path):
    settings = config()
    settings.unlock()
    settings.before.reference.method.selection.gian = 3.0
    with pytest.raises(ConfigError, match=r"config\.before\.reference.*gian.*gain"):
        run(settings, tmp_path)


def test_batches_that_devices_cannot_share(reference, tmp_path):
    settings = with_reference(config("iid"), reference)
    settings.batch_size = 12
    with pytest.raises(ConfigError, match="12 cannot be shared by 8 devices"):
        run(settings, tmp_path, devices=8)


@pytest.mark.slow
def test_evaluations_and_the_best_checkpoint(reference, tmp_path):
    settings = config("iid", steps=6)
    settings.before = {}
    plain = smoke.get_config("method=iid,tiny").evals
    settings.evals = {"retrieval": plain.retrieval, "classes": plain.classes}
    settings.evals.retrieval.every_percent = None
    settings.evals.retrieval.every_steps = 2
    settings.checkpoint.keep_best = 1
    settings.checkpoint.keep_last = 1
    settings.checkpoint.best_metric = "retrieval/mean_r1"
    results = {}
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        run(settings, workdir, devices=devices)
        found = {line["step"]: line.get("retrieval/mean_r1") for line in history.read(workdir)}
        assert [step for step, value in found.items() if value is not None] == [2, 4, 6]
        best = max((value, step) for step, value in found.items() if value is not None)[1]
        saved = {int(p.name) for p in (workdir / checkpointer.FOLDER).iterdir()}
        assert saved == {best, 6}
        results[devices] = history.last_values(workdir)
    for name in ("retrieval/i2t_r10", "retrieval/captions", "classes/top5", "classes/examples"):
        assert results[8][name] == pytest.approx(results[1][name], abs=0.02)
    assert results[1]["retrieval/captions"] == 64
