"""Evaluation alone: the numbers that training logged, and those of other models."""

import json

import jax
import pytest

from aced import evaluate
from aced.config import ConfigError
from aced.convert.command import ConvertConfig, convert
from aced.evaluate import EvaluateConfig
from aced.metrics import history
from aced.train import loop
from configs import smoke
from tests.test_main import aced


def config(**changes):
    out = smoke.get_config("tiny,method=iid")
    out.update_from_flattened_dict(changes)
    return out


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory):
    """Two runs, one of which is evaluated by its moving average."""
    folder = tmp_path_factory.mktemp("runs")
    for name, decay in (("plain", 0.0), ("averaged", 0.5)):
        loop.run(config(ema_decay=decay), str(folder / name), devices=jax.devices()[:1])
    return folder


def logged(workdir):
    last = history.last_values(workdir)
    return {name: x for name, x in last.items() if name.startswith(("retrieval/", "classes/"))}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", ["plain", "averaged"])
def test_numbers_are_those_that_training_logged(runs, name, devices):
    some = jax.devices()[:devices]
    found = evaluate.run(config(), EvaluateConfig(), str(runs / name), devices=some)
    assert found == pytest.approx(logged(runs / name), abs=1e-6)
    assert len(found) > 4


@pytest.mark.slow
def test_other_parameters_have_others(runs):
    some, workdir = jax.devices()[:1], str(runs / "averaged")
    found = evaluate.run(config(), EvaluateConfig(parameters="params"), workdir, devices=some)
    assert found != pytest.approx(logged(runs / "averaged"), abs=1e-6)


@pytest.mark.slow
def test_a_converted_model_is_evaluated_as_its_run(runs, tmp_path):
    source, out = str(runs / "plain"), str(tmp_path / "model")
    convert(ConvertConfig(source=source, out=out, to="aced"))
    wanted = EvaluateConfig(model=out)
    found = evaluate.run(config(), wanted, str(tmp_path / "none"), devices=jax.devices()[:1])
    assert found == pytest.approx(logged(runs / "plain"), abs=1e-6)


@pytest.mark.slow
def test_what_cannot_be_evaluated(runs, tmp_path):
    with pytest.raises(ConfigError, match="has no evaluations"):
        evaluate.run(config(evals={}), EvaluateConfig(), str(runs / "plain"))
    with pytest.raises(ConfigError, match=r"nowhere does not exist, .*--workdir"):
        evaluate.run(config(), EvaluateConfig(), str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="holds no run"):
        evaluate.run(config(), EvaluateConfig(), str(tmp_path))
    with pytest.raises(ConfigError, match="--which must be one of last, best"):
        EvaluateConfig(which="first")


@pytest.mark.slow
def test_the_command(runs):
    flags = [
        "--config=configs/smoke.py:tiny,method=iid",
        "--config.evals.retrieval.max_examples=16",
    ]
    done = aced(*flags, f"--workdir={runs / 'plain'}", "--json", command="evaluate")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == set(logged(runs / "plain"))
