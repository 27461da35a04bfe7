"""The examples of code in README.md and docs/ run unchanged."""

import dataclasses
import json
import pathlib
import re

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

from aced import evaluators, losses, methods
from aced.config import ConfigError, from_config
from aced.data import sources
from aced.data.sources import DataConfig
from aced.evaluators import EvalConfig
from aced.metrics import sinks
from aced.metrics.writer import Budget, Writer
from aced.models import model_folder
from aced.models.saved import Model
from aced.train import loop
from configs import smoke
from tests.docs.pages import ROOT, blocks


@pytest.fixture(autouse=True)
def _examples_leave_no_names_behind(monkeypatch):
    for table, name in (
        (evaluators.KINDS, "uniformity"),
        (losses.LOSSES, "hinge"),
        (methods.METHODS, "locked_image"),
        (sinks.SINKS, "best"),
    ):
        monkeypatch.setitem(table, name, None)  # at the end it is removed again


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def run(page: str) -> dict:
    """Runs the blocks of a page one after the other; returns the names that they define."""
    names = {"__name__": "example"}
    code = "\n".join(blocks(ROOT / page, "python"))
    assert code, f"{page} has no block of Python"
    exec(compile(code, page, "exec"), names)
    return names


def write_model(folder: pathlib.Path, width: int, seed: int) -> None:
    config = smoke.run(depth=1, width=width, steps=1, seed=0)
    model = methods.parse(config.method).model
    params = jax.device_get(model.init(jax.random.key(seed)))
    folder.mkdir(parents=True)
    model_folder.write(Model(model, params), folder)


def test_sink(tmp_path):
    names = run("docs/extend/sink.md")
    for first, resume in ((1, None), (4, 3)):
        with Writer(tmp_path, Budget(1, 1, 1), resume, names["config"]) as writer:
            for step in range(first, first + 3):
                writer.write(step, {"loss": 9.0, "retrieval/mean_r1": 0.5 - abs(step - 2) / 8})
    assert json.loads((tmp_path / "best.json").read_text()) == {"retrieval/mean_r1": 0.5}


@pytest.mark.slow
def test_readme_with_model_folders(tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "runs/smoke", 32, seed=0)
    write_model(tmp_path / "runs/smoke/reference", 64, seed=1)
    monkeypatch.chdir(tmp_path)
    names = run("README.md")
    ids = np.asarray(names["picks"].ids)
    assert len(set(ids.tolist())) == 64
    assert names["learner"].zimg.shape == (320, 32)
    assert "selection/perplexity" in capsys.readouterr().out


@pytest.mark.slow
def test_readme_with_the_runs_of_the_first_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = smoke.get_config("tiny")
    config.evals = {}
    loop.run(config, "runs/smoke", devices=jax.devices()[:1])
    names = run("README.md")
    assert names["picks"].ids.shape == (64,)


def test_using_a_model(tmp_path, monkeypatch):
    write_model(tmp_path / "models/siglip", 32, seed=0)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names = run("docs/guides/models.md")
    assert names["zimg"].shape == names["ztxt"].shape == (2, 32)


@pytest.mark.slow
def test_own_loop_picks_fewer_wrong_captions():
    names = run("docs/extend/own_loop.md")
    assert names["wrong"] < 0.35  # of the candidates half are wrong


def test_loss():
    names = run("docs/extend/loss.md")
    assert losses.LOSSES["hinge"] is names["hinge_loss"]
    assert from_config(methods.ContrastiveConfig, {"loss": "hinge"}).loss == "hinge"


def test_source():
    names = run("docs/extend/source.md")
    line = re.search(r"^    colours: ColoursConfig = (.*)$", page("docs/extend/source.md"), re.M)
    field = eval(line[1], names | {"_kind": sources._kind})
    kind = ("colours", names["ColoursConfig"], field)
    ours = dataclasses.make_dataclass("Ours", [kind], bases=(DataConfig,), frozen=True)
    config = from_config(ours, {"source": "colours", "colours": {"names": "red,lime"}})
    assert len(sources.open_source(config)) == 2
    with pytest.raises(ConfigError, match=r"data.colours.names is empty.* such as red,blue"):
        from_config(ours, {"source": "colours"})


@pytest.mark.slow
def test_evaluator():
    names = run("docs/extend/evaluator.md")
    assert names["numbers"].keys() == {"uniformity"}
    assert from_config(EvalConfig, {"kind": "uniformity"}).kind == "uniformity"


@pytest.mark.slow
def test_method(tmp_path):
    config = run("docs/extend/method.md")["get_config"]("steps=2")
    config.batch_size = 16
    config.evals = {}
    last = loop.run(config, str(tmp_path), devices=jax.devices()[:1])
    assert last["step"] == 2
    assert last["examples_trained"] == 32


def test_method_keeps_the_image_tower():
    names = run("docs/extend/method.md")
    assert names["LockedImage"].fixed == ("model/image/.*",)


@pytest.mark.slow
def test_notebook_picks_fewer_wrong_captions(tmp_path, monkeypatch):
    """Its cells, one after the other; no Jupyter is needed for that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = json.loads((ROOT / "examples/quickstart.ipynb").read_text("utf-8"))["cells"]
    names = {"__name__": "notebook"}
    matplotlib.use("agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(names["picks"][names["step"]]) == 64
    assert names["last"]["selection/noisy_share_super_batch"] == pytest.approx(0.5, abs=0.1)
    assert names["last"]["selection/noisy_share"] < 0.4
    assert len(names["figure"].axes) == 18


def test_recipe():
    assert run("docs/design/configs.md")["get_config"]("steps=7").total_steps == 7
