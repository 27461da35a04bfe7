"""The lines and the table that a run prints about its scores."""

import math

from aced.train import summary


def test_evaluation_is_printed_with_its_changes():
    found = {
        "retrieval/mean_r1": 0.108,
        "retrieval/i2t_r1": 0.2,
        "retrieval/images": 1000.0,
        "captions/cider": 0.52,
        "classes/top1": 0.1,
    }
    earlier = {"loss": 3.0, "retrieval/mean_r1": 0.077, "captions/cider": 0.55}
    assert summary.evaluation(found, {}) == (
        "retrieval/mean_r1 10.8%  captions/cider 0.52  classes/top1 10.0%"
    )
    assert summary.evaluation(found, earlier) == (
        "retrieval/mean_r1 10.8% (+3.1)  captions/cider 0.52 (-0.03)  classes/top1 10.0%"
    )


def test_column_that_no_run_has_is_left_out():
    cost = {"examples_trained": 64, "examples_scored": 0, "flops": 2e9}
    titles, cells = summary.rows({"a": cost, "b": cost | {"retrieval/mean_r1": 0.5}})
    assert titles == ["trained", "scored", "FLOPs", "retrieval/mean r1"]
    assert cells == {"a": ["64", "0", "2.00e+09", "-"], "b": ["64", "0", "2.00e+09", "50.0%"]}
    titles, cells = summary.rows({"a": cost | {"selection/noisy_share": 0.25}, "b": cost})
    assert titles == ["trained", "scored", "FLOPs", "noisy picks"]
    assert [row[-1] for row in cells.values()] == ["25.0%", "-"]


def test_evaluation_without_a_main_number_has_no_line():
    assert summary.evaluation({"captions/words": 7.0}, {}) == ""


def test_scores_that_are_not_finite():
    assert summary.evaluation({"a/top1": math.nan}, {"a/top1": 0.5}) == "a/top1 nan% (+nan)"
