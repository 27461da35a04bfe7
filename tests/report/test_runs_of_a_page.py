"""Reading, grouping and panels of runs, on files that are written here: no training."""

import dataclasses
import re
import time

import numpy as np
import pytest
from etils import epath

from aced.checkpoints import record
from aced.config import ConfigError, to_config
from aced.evaluators import EvalConfig
from aced.files import ownership
from aced.metrics import history, jsonl
from aced.report import command, curves, page, panels, runs, seeds
from aced.report.command import ReportConfig
from aced.train import starts, summary
from aced.train.config import parse
from tests import commands
from tests.prepare.test_page import Reader
from tests.train.test_train import config

BUDGET = {"examples_trained": 32, "examples_scored": 160, "flops": 1e6}


def write(folder, method="hard", lines=(), seed=0, total=10, before=(), evaluated=False, **changes):
    """A workdir with these lines of metrics, given without step and costs."""
    folder.mkdir(parents=True)
    settings = config(method, total, seed=seed, **changes)
    settings.before = {}
    if evaluated:
        settings.evals.val = to_config(EvalConfig(kind="zeroshot"))
    for name in before:
        settings.before[name] = config("iid", total, seed=1000 + seed)
    record.write(epath.Path(folder), parse(settings), "print")
    written = []
    for step, line in enumerate(lines, 1):
        written.append({"step": step, **{k: v * step for k, v in BUDGET.items()}, **line})
    (folder / history.FILE).write_bytes(jsonl.dumps(written))
    return folder


def write_start(folder, **changes):
    line = {
        "step": 0, "total_steps": 10, "time": "2026-11-29T10:20:30+00:00", "device": "TPU v5e",
        "devices": 8, "processes": 1, "host": "h", "data": "web", "examples": 12345,
        "commit": "abcdef012345", "python": "3.12.1", "versions": {},
    }  # fmt: skip
    with open(folder / starts.FILE, "ab") as file:
        file.write(jsonl.dumps([line | changes]))


def some(path, most, pattern=b'/top1"'):
    lines, skipped = jsonl.some(epath.Path(path), most, pattern, ("step",))
    return [line["step"] for line in lines], skipped


def test_some_lines_of_a_long_file(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": i, "loss": 0.5} for i in range(1000)]
    for i in (0, 333, 998):
        lines[i]["eval/top1"] = 0.1
    data = jsonl.dumps(lines)
    path.write_bytes(data + b'{"step": 1000, "eval/top1": 0.')  # cut off
    found, skipped = some(path, 10)
    assert skipped == 0  # the last line is not looked at
    assert {0, 333, 998, 999} <= set(found)
    assert len(found) <= 10 + 1 + 3
    assert found == sorted(set(found))
    assert np.diff(found).max() < 150  # evenly spaced
    assert some(path, 1000) == (list(range(1000)), 1)
    damaged = data.replace(b'{"step": 333, "loss": 0.5', b'{"step": 333, "loss": 0.6')
    path.write_bytes(damaged)
    found, skipped = some(path, 10)
    assert 333 not in found
    assert skipped == 1
    assert "line 334 is not complete or damaged" in caplog.text
    path.write_bytes(b"")
    assert some(path, 10) == ([], 0)


def test_some_lines_of_parts(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(jsonl.dumps([{"step": i} for i in range(100)]))
    (tmp_path / "metrics.jsonl.1").write_bytes(jsonl.dumps([{"step": i} for i in range(100, 130)]))
    found, _ = some(tmp_path / "metrics.jsonl", 50)
    assert found[-30:] == list(range(100, 130))
    assert found[0] == 0
    assert 99 in found


def test_long_runs_have_their_last_costs_and_all_scores(tmp_path, monkeypatch):
    lines = [{"loss": 1.0, "selection/noisy_share": 0.25} for _ in range(5000)]
    for i in range(0, 5000, 700):
        lines[i]["retrieval/mean_r1"] = i / 5000
    write(tmp_path / "run", lines=lines)
    monkeypatch.setattr(runs, "MOST_LINES", 100)
    ((run,), _) = runs.open_all([str(tmp_path / "run")])
    assert len(run.lines) <= 109
    whole, some_of = (summary.values_of(x) for x in (history.read(run.folder), run.lines))
    assert some_of == whole
    scores = [line["step"] for line in run.lines if "retrieval/mean_r1" in line]
    assert scores == list(range(1, 5001, 700))


def test_runs_before_are_rows(tmp_path):
    write(tmp_path / "a", lines=[{"loss": 1.0}] * 3, before=("reference", "not_started"))
    write(tmp_path / "a" / "reference", "iid", lines=[{"loss": 1.0}] * 2)
    write(tmp_path / "b", "iid", lines=[{"loss": 1.0}])
    text, _ = command.report([str(tmp_path / x) for x in "ab"], ReportConfig(pictures=0))
    cells = Reader(text).text
    assert "a/reference" in cells
    found, _ = runs.open_all([str(tmp_path / x) for x in "ab"])
    assert [run.name for run in found] == ["a/reference", "a", "b"]
    assert [summary.values_of(run.lines)["flops"] for run in found] == [2e6, 3e6, 1e6]
    one, _ = runs.open_all([str(tmp_path / "a")])
    assert [run.name for run in one] == ["a/reference", "a"]


def opened(*folders):
    return runs.open_all([str(folder) for folder in folders])[0]


def test_runs_that_differ_only_in_the_seed_are_a_group(tmp_path):
    own = {"method.selection.gain": 7.0}
    folders = [write(tmp_path / f"hard_seed{i}", lines=[{"loss": 1.0}], seed=i) for i in range(3)]
    folders.append(write(tmp_path / "sharp_seed0", lines=[{"loss": 1.0}], **own))
    folders.append(write(tmp_path / "longer_seed0", lines=[{"loss": 1.0}], total=11))
    groups = seeds.groups(opened(*folders))
    names = {label: [run.name for run in members] for label, members in groups.items()}
    assert names == {
        "hard, n = 3": ["hard_seed0", "hard_seed1", "hard_seed2"],
        "sharp_seed0": ["sharp_seed0"],
        "longer_seed0": ["longer_seed0"],
    }


def test_copies_of_a_run_are_not_seeds(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / name, lines=[{"loss": 1.0}], seed=seed, before=("reference",))
        write(tmp_path / name / "reference", "iid", lines=[{"loss": 1.0}], seed=7)
    groups = seeds.groups(opened(*(tmp_path / name for name in "abc")))
    names = {label: [run.name for run in members] for label, members in groups.items()}
    assert names == {
        "a/reference": ["a/reference"],
        "a, n = 2": ["a", "c"],
        "b/reference": ["b/reference"],
        "b": ["b"],
        "c/reference": ["c/reference"],
    }


def test_references_of_other_seeds_do_not_separate_runs_but_other_references_do(tmp_path):
    def reference(i, path):
        return write(
            tmp_path / f"run{i}", "h_acid", [{"loss": 1.0}], seed=i,
            **{"method.reference.checkpoint": path},
        )  # fmt: skip

    folders = [reference(1, "refs/big_seed1"), reference(2, "refs/big_seed2")]
    folders += [reference(3, str(tmp_path / "run3" / "reference"))]
    folders += [reference(4, str(tmp_path / "run4" / "reference"))]
    folders += [reference(5, "refs/vit_s16"), reference(6, "refs/vit_s32")]
    groups = seeds.groups(opened(*folders))
    assert [[run.name for run in members] for members in groups.values()] == [
        ["run1", "run2"], ["run3", "run4"], ["run5"], ["run6"],
    ]  # fmt: skip


def test_mean_and_band_over_seeds():
    lines = [
        [{"flops": x, "loss": float(value * x)} for x in (1.0, 2.0, 4.0)] for value in (1, 2, 6)
    ]
    curve = curves.curve(lines, "flops", "loss")
    np.testing.assert_array_equal(curve.x, (1, 2, 4))
    np.testing.assert_array_equal(curve.mean, (3, 6, 12))
    np.testing.assert_array_equal(curve.low, (1, 2, 4))
    np.testing.assert_array_equal(curve.high, (6, 12, 24))
    assert curves.curve(lines, "flops", "other") is None


def test_mean_is_of_the_runs_that_have_come_as_far():
    long = [{"flops": float(x), "loss": 1.0} for x in range(1, 101)]
    short = [{"flops": float(x), "loss": 3.0} for x in range(1, 51)]
    curve = curves.curve([long, short], "flops", "loss")
    assert curve.x[-1] == 100
    np.testing.assert_allclose(curve.mean[curve.x < 50], 2.0)
    np.testing.assert_allclose(curve.mean[curve.x > 50], 1.0)


LOSSES = {"loss": 3.0, "loss/contrastive": 1.0, "loss/distillation": 2.0}


def test_losses_are_drawn_in_comparable_parts(tmp_path):
    iid = {"loss": 1.0, "loss/contrastive": 1.0}
    folders = [
        write(tmp_path / "aced", lines=[LOSSES]),
        write(tmp_path / "iid", "iid", lines=[iid]),
        write(tmp_path / "softmax", "iid", lines=[iid], **{"method.loss": "softmax"}),
        write(tmp_path / "other", "iid", lines=[{"loss": 5.0}]),
    ]
    found = {x.title: [run.name for run in x.runs] for x in panels.of(opened(*folders))}
    assert found == {
        "loss/contrastive, sigmoid": ["aced", "iid"],
        "loss/contrastive, softmax": ["softmax"],
        "loss/distillation, softmax": ["aced"],
        "loss": ["other"],  # without the sum of a run that has parts
    }


def test_scores_come_first_and_selection_has_panels(tmp_path):
    line = {
        "retrieval/mean_r1": 0.5, "captions/cider": 0.5, "selection/perplexity": 0.5,
        "selection/noisy_share": 0.1, "selection/noisy_share_super_batch": 0.5,
        "sources/web/picked_share": 0.9, "sources/web/share": 0.5, "selection/score_selected": -1.0,
    }  # fmt: skip
    found = {x.metric: x for x in panels.of(opened(write(tmp_path / "a", lines=[LOSSES | line])))}
    assert list(found) == [
        "retrieval/mean_r1", "captions/cider", "loss/contrastive", "loss/distillation",
        "selection/noisy_share", "selection/perplexity", "sources/web/picked_share",
    ]  # fmt: skip
    assert [x.is_share for x in found.values()] == [True, False, False, False, True, True, True]
    assert found["selection/noisy_share"].baseline == "selection/noisy_share_super_batch"
    assert found["sources/web/picked_share"].baseline == "sources/web/share"


def line_curve(*x, noise=0.0):
    x, y = np.array(x, float), 0.5 + noise * np.arange(len(x))
    return curves.Curve(x, y, y, y)


def drawn(ends, noise=0.0, **more):
    lines = {str(end): line_curve(1, end, noise=noise) for end in ends}
    colours = curves.colours(list(lines))
    return curves.draw(lines, {}, colours, "flops", **{"is_share": False} | more).decode()


def tick_texts(svg):
    """The texts in an SVG, without their positions."""
    return ["".join(re.findall(r">([^<]+)<", text)) for text in re.findall("<text.*?</text>", svg)]


def test_axis_of_costs_is_logarithmic_where_runs_differ_by_more_than_ten_times():
    assert {"200", "400", "1000"} <= set(tick_texts(drawn((100, 1000))))
    assert "200" not in tick_texts(drawn((90, 1000)))


def test_shares_are_drawn_in_per_cent():
    assert any(text.endswith("%") for text in tick_texts(drawn((100, 200), is_share=True)))
    assert not any("%" in text for text in tick_texts(drawn((100, 200))))


def test_axis_of_shares_does_not_magnify_rounding():
    texts = tick_texts(drawn((100, 200), is_share=True, noise=1e-7))
    shares = [float(text.rstrip("%")) for text in texts if text.endswith("%")]
    assert 0.05 <= max(shares) - min(shares) <= 0.1  # per cent
    texts = tick_texts(drawn((100, 200), is_share=True, noise=0.01))
    shares = [float(text.rstrip("%")) for text in texts if text.endswith("%")]
    assert 0.5 <= max(shares) - min(shares) <= 1.1


def test_settings_that_no_run_has_are_left_out(tmp_path):
    folders = [
        write(tmp_path / "a", lines=[LOSSES], **{"total_steps": None, "total_examples": 320}),
        write(tmp_path / "b", lines=[LOSSES], **{"init.checkpoint": "x"}),
    ]
    rows = {row[0]: row[1:] for row in command._differing(opened(*folders))}
    assert rows == {
        "init.checkpoint": ["-", "x"],
        "total_examples": ["320", "-"],
        "total_steps": ["-", "10"],
    }


def test_settings_of_sources_that_are_not_read_are_left_out_and_floats_are_short(tmp_path):
    folders = [
        write(tmp_path / name, lines=[LOSSES], **{"init.checkpoint": name}) for name in ("a", "b")
    ]
    found = opened(*folders)
    for run, peak in zip(found, (0.1 + 0.2, 1e-3), strict=True):
        run.settings["data"] |= {"source": "webdataset", "shapes": {"size": peak}}
        run.settings["data"]["webdataset"] = {"path": run.name}
        run.settings["ema_decay"] = peak
    rows = {row[0]: row[1:] for row in command._differing(found)}
    assert rows == {
        "data.webdataset.path": ["a", "b"],
        "ema_decay": ["0.3", "0.001"],
        "init.checkpoint": ["a", "b"],
    }


def test_group_that_a_run_does_not_have_is_one_row_and_what_is_not_learned_comes_last(tmp_path):
    gains = {"method.selection.gain": 7.0, "checkpoint.every_steps": 3}
    folders = [
        write(tmp_path / "a", lines=[LOSSES], evaluated=True),
        write(tmp_path / "b", lines=[LOSSES], evaluated=True, total=11, **gains),
        write(tmp_path / "c", lines=[LOSSES]),
    ]
    found = opened(*folders)
    for key in ("selection", "teachers"):
        found[2].settings["method"].pop(key, None)
    rows = command._differing(found)
    assert rows[0][0] == "method.selection"
    assert rows[0][1:] == ["...", "...", "-"]
    assert rows[1][0] == "method.selection.gain"
    assert rows[1][2:] == ["7", "-"]
    assert [row[0] for row in rows[2:]] == ["total_steps", "checkpoint.every_steps", "evals"]
    assert rows[-1][1:] == ["...", "...", "-"]


def test_header_has_when_where_and_on_what_a_run_ran(tmp_path):
    folder = write(tmp_path / "a", lines=[{"wall/seconds": 10.0}, {"wall/seconds": 3723.4}])
    write_start(folder)
    write_start(folder, step=5, commit="fedcba543210", devices=4)
    (run,) = opened(folder)
    assert dict(zip(runs.COLUMNS, runs.how(run), strict=True)) == {
        "run": "a",
        "began": "2026-11-29 10:20",
        "step": "2 of 10",
        "time": "1:02:03",
        "device": "4 x TPU v5e",
        "data": "web, 12,345 examples",
        "commit": "abcdef012345, fedcba543210",
    }
    assert not run.is_finished
    write_start(folder, total_steps=2)
    assert opened(folder)[0].is_finished


def test_runs_of_before_there_were_starts_have_a_header(tmp_path):
    (run,) = opened(write(tmp_path / "a", lines=[{"loss": 1.0}]))
    assert runs.how(run)[1:] == ["-", "1", "0:00:00", "-", "-", "-"]
    assert not run.is_finished


def test_runs_that_stopped_early_are_finished(tmp_path):
    changes = {"early_stop.metric": "val/top1", "early_stop.patience": 2}
    for name, scores, expected in (("a", (0.5, 0.4, 0.3), True), ("b", (0.3, 0.4, 0.4), False)):
        lines = [{"val/top1": score} for score in scores]
        folder = write(tmp_path / name, "iid", lines, evaluated=True, **changes)
        assert opened(folder)[0].is_finished == expected


def test_page_is_written_again_until_the_runs_are_finished(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", lines=[{"loss": 1.0}])
    write_start(folder, total_steps=2)
    pages = []

    def next_line(seconds):
        pages.append((seconds, (tmp_path / "page.html").read_text()))
        line = {"step": 2, "examples_trained": 777_777, "flops": 2e6, "loss": 0.5}
        with open(folder / history.FILE, "ab") as file:
            file.write(jsonl.dumps([line]))

    monkeypatch.setattr(time, "sleep", next_line)
    done = commands.call(
        "report", str(folder), f"--out={tmp_path}/page.html", "--watch=7", "--pictures=0"
    )
    assert done.returncode == 0, done.stderr
    ((seconds, first),) = pages
    assert seconds == 7
    assert '<meta http-equiv="refresh" content="7">' in first
    assert "777,777" not in first
    last = (tmp_path / "page.html").read_text()
    assert "777,777" in last
    assert "refresh" not in last
    assert done.stdout.startswith(f"{tmp_path}/page.html is written every 7 s until all runs are ")
    assert re.fullmatch(rf"{tmp_path}/page.html: \d\.\d MB", done.stdout.splitlines()[-1])
    assert len(done.stdout.splitlines()) == 2


def test_watched_page_waits_for_a_run_and_shows_the_runs_before_it(tmp_path):
    watched = ReportConfig(pictures=0, watch=7)
    text, is_finished = command.report([str(tmp_path / "a")], watched)
    assert "No workdirs of runs" in text
    assert not is_finished
    reference = write(tmp_path / "a" / "reference", "iid", [LOSSES])
    write_start(reference, total_steps=1)
    (tmp_path / "a" / ownership.FILE).write_bytes(ownership.Owner.this().bytes())
    text, is_finished = command.report([str(tmp_path / "a")], watched)
    assert f"No metrics yet: {tmp_path / 'a'}" in text
    assert [run.name for run in opened(tmp_path / "a")] == ["reference"]
    assert opened(tmp_path / "a")[0].is_finished
    assert not is_finished
    assert 'content="7"' in text
    with pytest.raises(ConfigError, match="is the workdir of a run; give some"):
        command.report([str(tmp_path / "b")], ReportConfig())


def test_page_is_final_when_the_process_of_an_unfinished_run_has_died(tmp_path):
    """An hour without a sign of life, on another machine; here it is recognised at once."""
    watched = ReportConfig(pictures=0, watch=7)
    folder = write(tmp_path / "a", lines=[{"loss": 1.0}])
    (tmp_path / "b").mkdir()
    alive = ownership.Owner.this()
    dead = dataclasses.replace(alive, birth="1")
    far = dataclasses.replace(alive, boot="other", host="far", seen=time.time() - 7200)

    def report(of_a, of_b):
        for name, owner in (("a", of_a), ("b", of_b)):
            (tmp_path / name / ownership.FILE).write_bytes(owner.bytes())
        return command.report([str(folder), str(tmp_path / "b")], watched)

    for of_a, of_b in ((alive, dead), (dead, alive), (alive, alive)):
        text, is_finished = report(of_a, of_b)
        assert not is_finished
        assert 'content="7"' in text
    text, is_finished = report(dead, far)
    assert is_finished
    assert "refresh" not in text
    assert f"a was broken off, its process has ended: process {dead.process} on" in text
    assert f"{tmp_path / 'b'} was broken off, its process has ended: process" in text
    assert "on far, started" in text
    # A folder that never becomes a run, since its process died in a run before it.
    assert command.report([str(tmp_path / "b")], watched)[1]


def test_page_counts_the_lines_that_are_left_out(tmp_path):
    folder = write(tmp_path / "a", lines=[{"loss": 1.0 + i} for i in range(4)])
    assert "incomplete or damaged" not in command.report([str(folder)], ReportConfig(pictures=0))[0]
    file = folder / history.FILE
    file.write_bytes(file.read_bytes().replace(b"2.0", b"2.5") + b'{"step": 5, "lo')
    text, _ = command.report([str(folder)], ReportConfig(pictures=0))
    assert f"{file}: 2 of the lines that were read are incomplete or damaged" in text


def test_pages_have_no_refresh_unless_watched_and_are_for_narrow_screens():
    text = page.document("Runs", [page.table("T", ["a"], [["b"]])])
    assert "refresh" not in text
    assert 'name="viewport"' in text
    assert '<div class="scroll"><table>' in text
    assert "width: max-content" in text  # a table scrolls, instead of cells of one word a line
