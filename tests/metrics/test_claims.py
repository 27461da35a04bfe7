"""Lines of metrics and picks that a checkpoint came with, and that are lost when it is used."""

import os

import numpy as np
import pytest
from etils import epath

from aced.metrics import history, jsonl
from aced.metrics.writer import Budget, Writer

BUDGET = Budget(examples_trained=4, examples_scored=20, flops=1e9)
LOST = "has lost lines"


def train(workdir, first, last, resume=None):
    """A line of each file a step, a checkpoint every fourth."""
    with Writer(workdir, BUDGET, resume) as writer:
        for step in range(first, last + 1):
            writer.write_picks(step, np.arange(step))
            writer.write(step, {"loss": 1 / step})
            if step % 4 == 0:
                writer.claim(step)
                writer.write(step, {"eval/top1": 0.5})  # what comes later is no loss
    return writer


def claims(run):
    return jsonl.read(epath.Path(run / history.CLAIMS_FILE))


@pytest.fixture
def run(tmp_path):
    """Of 10 steps, with checkpoints 4 and 8."""
    train(tmp_path, 1, 10)
    return tmp_path


@pytest.mark.parametrize("checkpoint", [4, 8])
def test_a_run_that_lost_nothing_is_not_reported(run, caplog, checkpoint):
    train(run, checkpoint + 1, 12, checkpoint)
    train(run, 13, 13, 12)
    assert "los" not in caplog.text
    assert [line["step"] for line in claims(run)] == [4, 8, 12]


def lines_of(path, count):
    return b"".join(path.read_bytes().splitlines(keepends=True)[:count])


@pytest.mark.parametrize(
    ("name", "left", "checkpoint", "last"),
    [
        ("metrics.jsonl", 7, 8, 6),  # with a line of the evaluation at step 4
        ("metrics.jsonl", 8, 8, 7),
        ("metrics.jsonl", 2, 4, 2),
        ("picks.jsonl", 7, 8, 7),
        ("picks.jsonl", 0, 8, "none"),
    ],
)
@pytest.mark.parametrize("tail", [b"", b'{"step": 8, "lo', b"\0" * 4096])
def test_a_file_that_was_cut_is_reported(run, caplog, name, left, checkpoint, last, tail):
    whole = (run / name).read_bytes()
    claimed = next(line for line in claims(run) if line["step"] == checkpoint)
    kept = lines_of(run / name, left)
    (run / name).write_bytes(kept + tail)
    train(run, checkpoint + 1, checkpoint + 1, checkpoint)
    (message,) = [record.getMessage() for record in caplog.records if LOST in record.getMessage()]
    assert str(run / name) in message
    assert f"{claimed[name] - len(kept)} bytes fewer than when checkpoint {checkpoint}" in message
    assert f"last line is of step {last}." in message
    assert len(whole) > len(kept)


def test_missing_claims_are_reported_except_for_older_runs(run, caplog):
    file = run / history.CLAIMS_FILE
    file.write_bytes(lines_of(file, 1))
    train(run, 9, 9, 8)
    assert "does not say how many lines checkpoint 8 came with" in caplog.text
    caplog.clear()
    file.unlink()
    train(run, 9, 9, 8)
    assert "los" not in caplog.text
    file.write_bytes(b"\xff\n")
    train(run, 9, 9, 8)
    assert caplog.text.count("does not say") <= 1


def test_lines_lost_to_a_full_disk_are_reported_at_the_next_start(tmp_path, caplog):
    writer = Writer(tmp_path, BUDGET)
    writer.write(1, {"loss": 1.0})

    def full(lines):
        raise OSError(28, "No space left on device")

    writer._sinks["metrics.jsonl"].write = full
    writer.write(2, {"loss": 0.5})
    writer.claim(2)
    assert writer.failed_writes >= 1
    writer._sinks["tensorboard"].close("stopped")
    # Killed here. The next start has no line of step 2.
    train(tmp_path, 3, 3, 2)
    assert LOST in caplog.text
    assert "last line is of step 1" in caplog.text

    # Where there is room again in time, nothing is missing.
    caplog.clear()
    writer = Writer(tmp_path, BUDGET)
    write, writer._sinks["metrics.jsonl"].write = writer._sinks["metrics.jsonl"].write, full
    writer.write(1, {"loss": 1.0})
    writer.claim(1)
    writer._sinks["metrics.jsonl"].write = write
    writer.close()
    train(tmp_path, 2, 2, 1)
    assert LOST not in caplog.text


def test_lines_and_claim_are_synced(tmp_path, monkeypatch):
    events = []
    real = os.fsync

    def fsync(file):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
        events.extend([name] * (not name.startswith("events.")))  # TensorBoard's are synced anyway
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    writer = Writer(tmp_path, BUDGET)
    for step in range(1, 4):
        writer.write_picks(step, np.arange(2))
        writer.write(step, {"loss": 1.0})
    assert events == []  # not at every line
    writer.claim(3)
    files = [name for name in events if name.endswith("jsonl")]
    assert files == ["metrics.jsonl", "picks.jsonl", "claims.jsonl"]
    assert tmp_path.name in events  # the folder has the new files
    events.clear()
    writer.claim(4)
    assert events == ["metrics.jsonl", "picks.jsonl", "claims.jsonl"]
    writer.close()


def test_failing_sync_does_not_stop_the_run(tmp_path, monkeypatch, caplog):
    def broken(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith("jsonl"):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    assert train(tmp_path, 1, 4).failed_writes == 3
    assert "Input/output error" in caplog.text
    assert len(history.read(tmp_path)) == 5
