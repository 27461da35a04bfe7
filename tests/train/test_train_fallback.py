"""A run whose newest checkpoint is damaged: it resumes from an older one, bit for bit."""

import pytest

from aced.checkpoints.checkpointer import CheckpointError
from aced.metrics import history
from tests.checkpoints.test_checkpoint_damage import flip, one_of, set_aside
from tests.train.test_train import assert_same_run, config, lines, run


@pytest.mark.slow
def test_run_resumes_from_the_newest_intact_checkpoint(tmp_path, caplog):
    settings = config("iid", steps=8)
    settings.before = {}
    settings.checkpoint.every_steps = 2
    settings.checkpoint.keep_last = 4
    settings.optimizer.schedule.kind = "constant"  # independent of the length of the run
    settings.optimizer.schedule.warmup_percent = 0.0
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    run(settings, whole)
    settings.total_steps = 6
    run(settings, damaged)
    flip(one_of(damaged, 6, "ocdbt.process_0/d/"))
    flip(one_of(damaged, 4, "state/_METADATA"))
    settings.total_steps = 8
    run(settings, damaged)
    assert "resumes from its newest intact checkpoint, step 2" in caplog.text
    # The lines of the steps that are taken again are there once, as those of a run without damage.
    assert_same_run(whole, damaged)
    assert [line["step"] for line in lines(damaged)] == list(range(1, 9))
    assert sorted(history.read_picks(damaged)) == list(range(1, 9))
    assert set_aside(damaged) == ["4", "6"]

    for step in (2, 4, 6, 8):
        flip(one_of(damaged, step, "ocdbt.process_0/d/"))
    before = (damaged / history.FILE).read_bytes()
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is whole"):
        run(settings, damaged)
    assert (damaged / history.FILE).read_bytes() == before
