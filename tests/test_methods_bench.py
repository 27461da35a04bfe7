"""The comparison of methods, in small: what a row says, and that what is there is not run again."""

import numpy as np
import pytest

from benchmarks import gain
from benchmarks.methods import suites
from benchmarks.methods.runs import NUMBERS, Bench, Run, parse
from benchmarks.table import Runs


def test_every_suite_is_made_of_runs_that_can_be_set_up():
    for name, suite in suites.SUITES.items():
        listed = suite()
        assert len(set(listed)) == len(listed), name
        for run in listed:
            settings = parse(run)
            assert settings.method.selects == (run.method not in ("iid", "kd"))
            assert settings.batch_size == run.batch_size


def test_runs_of_the_gain_are_listed_once():
    runs = gain.all_runs()
    assert len(set(runs)) == len(runs)
    by_raw_gain = [run for run in runs if '"gain"' in run.settings]
    assert {run.selection.normalization for run in by_raw_gain} == {"none"}
    assert {run.selection.gain for run in by_raw_gain} == {0.1, 1.0, 10.0, 100.0}


@pytest.mark.slow
def test_a_run_and_its_table(tmp_path):
    bench, table = (
        Bench(str(tmp_path), pairs=400, reference_steps=3),
        Runs(tmp_path / "a.csv", Run, NUMBERS),
    )
    run = Run("h_acid", batch_size=16, steps=8)
    rows = bench.train(run)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert rows[-1]["examples_trained"] == 128
    assert 0 <= rows[-1]["r1"] <= 1
    # Half of the captions are wrong, of the picks fewer or more, and a mean over two steps.
    assert all(round(row["noise"] * 32) == pytest.approx(row["noise"] * 32) for row in rows)
    again = Bench(str(tmp_path), pairs=400, reference_steps=3).train(run)
    assert [row["r1"] for row in again] == [row["r1"] for row in rows]
    assert not table.has(run)
    table.add(run, rows)
    assert Runs(tmp_path / "a.csv", Run, NUMBERS).has(run)
    assert not Runs(tmp_path / "a.csv", Run, NUMBERS).has(Run("h_acid", batch_size=16, steps=9))
    pool, reference = bench.pool(run.wrong, run.resolution), bench.reference(run)
    assert len(pool) == len(reference.zimg) == 400
    np.testing.assert_allclose(np.linalg.norm(reference.zimg, axis=1), 1, rtol=1e-5)
