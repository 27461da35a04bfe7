"""The page of several runs: its numbers, its curves, and that its pictures are the ones chosen."""

import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from aced.checkpoints import record
from aced.config import ConfigError
from aced.data import pipeline
from aced.data.sources import open_source
from aced.files import own_files
from aced.metrics import history
from aced.report import command, curves
from aced.report.command import ReportConfig
from aced.train import chosen, loop
from aced.train.config import parse
from tests import commands, many_processes
from tests.data.sources.test_every_source import VIEW
from tests.prepare.test_page import EVIL, Reader
from tests.train.test_train import config

STEPS = 5
# Beside the loss, of a run that selects by the learner alone.
DRAWN = ("noisy_share", "perplexity", "variety", "near_copies")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that chooses by the learner alone, and one that trains on everything."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("hard", "iid"):
        loop.run(config(method, STEPS), str(folder / method), jax.devices()[:1])
    return folder


def page_of(*folders, **changes):
    return command.report([str(folder) for folder in folders], ReportConfig(**changes))[0]


def settings_of(folder):
    return parse(record.read(epath.Path(folder)).settings)


def super_batches(folder, places, count):
    fingerprint = record.read(epath.Path(folder)).data
    return chosen.of_run(folder, settings_of(folder), fingerprint, places, count)


@pytest.mark.slow
def test_super_batch_of_a_step_is_rebuilt(runs):
    settings = settings_of(runs / "hard")
    size = settings.method.super_batch_size(settings.batch_size)
    picks = history.read_picks(runs / "hard")
    found = super_batches(runs / "hard", (0.0, 0.5, 1.0), 10**6)
    assert [batch.step for batch in found] == [1, 3, STEPS]
    source = open_source(settings.data)
    for batch in found:
        read = pipeline.train_batches(
            source, settings.data, {"": VIEW}, batch_size=size, seed=settings.seed,
            start_step=batch.step - 1,
        )  # fmt: skip
        with read:
            candidates = set(next(read)["id"].tolist())
        ids = {x.id for x in batch.chosen}
        assert ids == set(picks[batch.step])
        assert ids | {x.id for x in batch.left} == candidates
        assert (len(batch.chosen), len(batch.left)) == (32, size - 32)
        for example in (*batch.chosen, *batch.left):
            record_ = source[example.id]
            np.testing.assert_array_equal(example.picture, record_["image"])
            assert example.texts == record_["texts"]
            assert example.is_noisy == record_["is_noisy"]


@pytest.mark.slow
def test_samples_are_limited_and_reproducible(runs):
    ids = []
    for _ in range(2):
        (batch,) = super_batches(runs / "hard", (1.0,), 3)
        ids.append([x.id for x in (*batch.chosen, *batch.left)])
        assert len(batch.chosen) == len(batch.left) == 3
    assert ids[0] == ids[1]
    (batch,) = super_batches(runs / "iid", (0.3,), 3)
    assert (len(batch.chosen), batch.left) == (3, [])


@pytest.mark.slow
def test_the_page(runs, tmp_path):
    page = Reader(page_of(runs / "hard", f"{runs}/iid/", tmp_path))
    text = " ".join(page.text.split())
    assert f"No workdirs of runs: {tmp_path}" in text
    # 5 steps of 32, of 160 candidates where there is a choice.
    assert "hardhard learner160800" in text
    assert "iidIID1600" in text
    differing = text[text.index("Settings that differ") : text.index("Curves")]
    assert "method.selection.scorehard_learnerlearnability" in differing
    assert "batch_size" not in differing
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    drawn = [x["alt"] for x in images if x["src"].startswith("data:image/svg+xml;base64,")]
    panels = ["loss/contrastive, sigmoid", *(f"selection/{x}" for x in DRAWN)]
    assert drawn == [panel for panel in panels for _ in range(2)]  # over examples and over FLOPs
    # Of the run that selects, both kinds at three steps.
    assert sum(x["src"].startswith("data:image/jpeg;base64,") for x in images) == 3 * 12 * 2
    assert "What hard chose" in text
    assert "What iid chose" not in text
    assert any(tag == "figure" and x.get("class") == "marked" for tag, x in page.tags)
    assert "cpu" in text
    assert "shapes/train, 100,000 examples" in text
    assert f"{STEPS} of {STEPS}" in text
    first, second = (re.sub("Written at [^<]*", "", page_of(runs / "hard")) for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_page_without_images_if_data_are_missing(runs, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    settings = config("hard", STEPS)
    settings.data.source = "array_record"
    settings.data.array_record.path = str(tmp_path / "gone")
    record.write(epath.Path(folder), parse(settings), "print")
    (folder / history.FILE).write_text((runs / "hard" / history.FILE).read_text())
    (folder / history.PICKS_FILE).write_text((runs / "hard" / history.PICKS_FILE).read_text())
    text = Reader(page_of(folder)).text
    assert re.search(r"No pictures: .*gone", text)
    assert "No pictures" not in page_of(folder, pictures=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", [history.FILE, history.PICKS_FILE])
def test_page_names_files_that_lost_lines(runs, tmp_path, name):
    shutil.copytree(runs / "hard", tmp_path / "run")
    file = tmp_path / "run" / name
    assert "has lost lines" not in page_of(file.parent, pictures=0)
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))
    page = Reader(page_of(file.parent, pictures=0)).text
    assert re.search(rf"{file} has lost lines: \d+ bytes fewer than when checkpoint 5 was", page)
    assert "its last line is of step 2." in page


@pytest.mark.slow
def test_other_data_at_the_same_place_and_no_picks(runs, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for file in (record.FILE, history.FILE, history.PICKS_FILE):
        (folder / file).write_text((runs / "hard" / file).read_text())
    content = own_files.loads((folder / record.FILE).read_bytes())
    content["data_fingerprint"] = "of other data"
    (folder / record.FILE).write_bytes(own_files.dumps(content))
    page = Reader(page_of(folder)).text
    assert "No pictures: shapes/train is not what the run of" in page
    (folder / history.PICKS_FILE).write_text("")
    page = Reader(page_of(folder)).text
    assert "has no picks on file; see picks_steps" in page


@pytest.mark.slow
def test_names_of_runs_are_escaped(runs, tmp_path):
    evil = tmp_path / EVIL.replace("/", "")
    evil.mkdir()
    for file in (record.FILE, history.FILE, history.PICKS_FILE):
        (evil / file).write_text((runs / "iid" / file).read_text())
    page = Reader(page_of(evil, runs / "hard", pictures=1))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script"})
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert EVIL.replace("/", "") in page.text


def test_curves_of_long_runs_are_the_means_of_neighbours():
    lines = [{"flops": 2.0 * i, "loss": float(i % 2)} for i in range(4000)]
    lines += [{"flops": 1.0}, {"flops": 8000.0, "loss": float("nan")}]
    x, y = curves.points(lines, "flops", "loss")
    assert (len(x), set(y)) == (250, {0.5})
    np.testing.assert_allclose(x, 2.0 * (16 * np.arange(250) + 7.5))


@pytest.mark.slow
def test_the_command(runs, tmp_path):
    arguments = [f"{runs}/hard", f"{runs}/iid", f"--out={tmp_path}/page.html", "--pictures=2"]
    done = subprocess.run(
        [sys.executable, "-m", "aced.report", *arguments],
        capture_output=True, text=True, timeout=300, env=many_processes.environment(1),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "What hard chose" in (tmp_path / "page.html").read_text()
    for arguments, message in (
        ([str(tmp_path)], "is the workdir of a run; give some, such as runs/*"),
        ([], "None of no folders is"),
        ([str(runs / "iid"), "--pictures=-1"], "--pictures must be at least 0"),
    ):
        done = commands.call("report", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_matplotlib(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"Curves need `pip install '.\[plots\]'`"):
        page_of(runs / "iid")
