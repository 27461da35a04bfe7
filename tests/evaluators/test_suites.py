"""Averages of evaluations, and which of them hardly vary over seeds."""

import re

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

from aced import evaluate, suite
from aced.checkpoints import record
from aced.config import ConfigError
from aced.evaluators import suites
from aced.metrics import history
from aced.suite import SuiteConfig
from aced.train import loop
from aced.train.config import parse
from tests.evaluators.test_evaluate import config
from tests.test_main import aced


def test_the_rule_by_hand():
    """Three seeds of four evaluations; the sets are those of the first k by variance."""
    scores = np.array([[0.50, 0.3, 0.2, 0.10], [0.52, 0.3, 0.4, 0.11], [0.51, 0.3, 0.9, 0.13]])
    found = suites.stability(scores)
    assert found.order.tolist() == [1, 0, 3, 2]
    for k, column in enumerate([1, 0, 3, 2]):
        values = scores[:, column].tolist()
        mean = sum(values) / 3
        assert found.variance[k] == pytest.approx(sum((x - mean) ** 2 for x in values) / 2)
    for k in range(1, 5):
        means = [sum(row[i] for i in [1, 0, 3, 2][:k]) / k for row in scores.tolist()]
        mean = sum(means) / 3
        spread = (sum((x - mean) ** 2 for x in means) / 2) ** 0.5
        assert found.spread[k - 1] == pytest.approx(spread, abs=1e-12)
    assert found.kept == 1  # nothing varies less than what does not vary


def test_opposite_errors_are_kept_and_ties_go_to_the_largest_set():
    up, down = np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])
    assert suites.stability(np.stack([up, down], axis=1)).kept == 2
    for value in (0.1, 0.5, 0.7):  # also if they are not exact in binary
        assert suites.stability(np.full((3, 4), value)).kept == 4
    both = np.stack([[0.11, 0.22, 0.33], [0.33, 0.22, 0.11]] * 2, axis=1)
    assert suites.stability(both).kept == 4
    constant = np.full((3, 4), 0.5)
    with pytest.raises(ConfigError, match="1 runs with 4 evaluations"):
        suites.stability(constant[:1])
    with pytest.raises(ConfigError, match="3 runs with 0 evaluations"):
        suites.stability(constant[:, :0])
    with pytest.raises(ConfigError, match="not finite"):
        suites.stability(np.where(np.eye(3, 4), np.nan, constant))


def test_averages_need_all_evaluations_of_a_suite(monkeypatch):
    chosen = {"all": ("a/top1", "b/mean_r1"), "a": ("a/top1", "a/top5")}
    assert suites.averages({"a/top1": 0.2, "a/top5": 0.5, "b/mean_r1": 0.4}, chosen) == {
        "suite/all": pytest.approx(0.3),
        "suite/a": pytest.approx(0.35),
    }
    assert suites.averages({"b/mean_r1": 0.4, "loss": 1.0}, chosen) == {}
    said = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: said.append(text % args))
    assert suites.averages({"a/top1": 0.2}, chosen) == {}
    assert len(said) == 1
    assert "suites.a is left out: its evaluation does not give 'a/top5'" in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suites": {"x": ()}}, r"suites.x must have some numbers"),
        ({"suites": {"x": ("retrieval/mean_r1",) * 2}}, r"each once"),
        ({"suites": {"x": ("nope/top1",)}}, r"'nope/top1', which is not a number of an evaluation"),
        ({"checkpoint.best_metric": "suite/x"}, r"is not a number of an evaluation"),
        ({"suites": {"x": ("top1",)}}, r"EVALUATION/NUMBER"),
    ],
)
def test_suites_of_unknown_numbers_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(config(**changes))


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory):
    """Three seeds of a run that keeps the best checkpoint by a suite."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        of_seed = config(seed=seed)
        of_seed.suites = {"both": ("retrieval/mean_r1", "classes/top1")}
        of_seed.checkpoint.best_metric = "suite/both"
        of_seed.checkpoint.keep_best = 1
        last = loop.run(of_seed, str(folder / f"seed{seed}"), devices=jax.devices()[:1])
        both = (last["retrieval/mean_r1"] + last["classes/top1"]) / 2
        assert last["suite/both"] == pytest.approx(both)
    return folder


@pytest.mark.slow
def test_runs_and_evaluations_give_the_average(runs):
    wanted = config(suites={"both": ("retrieval/mean_r1", "classes/top1")})
    found = evaluate.run(wanted, evaluate.EvaluateConfig(which="best"), str(runs / "seed1"))
    logged = history.last_values(runs / "seed1")
    assert found["suite/both"] == pytest.approx(logged["suite/both"], abs=1e-6)


@pytest.mark.slow
def test_the_command_chooses_from_runs(runs):
    folders = [str(runs / f"seed{seed}") for seed in range(3)]
    done = aced(*folders, "--name=mine", command="suite")
    assert done.returncode == 0, done.stderr
    found = [history.last_values(folder) for folder in folders]
    rows = re.findall(r"^(\S+/\S+) +([\d.]+) +([\d.]+) +([\d.]+)", done.stdout, re.MULTILINE)
    assert {name for name, *_ in rows} == {"retrieval/mean_r1", "classes/top1"}
    for name, mean, own, _ in rows:
        values = [of_run[name] for of_run in found]
        assert float(mean) == pytest.approx(np.mean(values), abs=1e-4)
        assert float(own) == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    line = done.stdout.strip().splitlines()[-1]
    assert line.startswith("config.suites.mine = (")
    parse(config(suites={"mine": eval(line.partition(" = ")[2])}))
    regex = SuiteConfig(numbers="retrieval/.*_r1")
    assert "classes" not in suite.choose(folders, regex)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({record.FILE: ('"batch_size": 16', '"batch_size": 32')}, r"batch_size is 32, not 16"),
        ({record.FILE: ('"data_fingerprint": "', '"data_fingerprint": "x')}, "data's fingerprint"),
        ({record.FILE: ('"model_fingerprints": {', '"model_fingerprints": {"a": "b",')}, "frozen"),
        ({record.FILE: ('"max_examples": 1000', '"max_examples": 9')}, r"evals.\S+ is 9, not 1000"),
        ({record.FILE: ('"seed": 1,', '"seed": 0,')}, "have the same seed, 0"),
        ({history.FILE: ('"step": 2', '"step": 3')}, r"is at step 3 and \S+ at 2; finish both"),
        ({history.FILE: ('"classes/top1": ', '"classes/top1": "NaN", "x": ')}, "no finite classes"),
        ({history.FILE: ("classes/top1", "classes/top2")}, "no finite classes/top1"),
        ({record.FILE: ('"log_steps": 1,', '"log_steps": 7,')}, None),
        ({record.FILE: ('"log_steps": 1,', '"log_steps": 1, "gone": 0,')}, "gone is 0, not None"),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(runs, tmp_path, changes, message):
    folders = [str(runs / "seed0"), str(tmp_path)]
    for file in (record.FILE, history.FILE):
        text = re.sub(r',\s*"(sha256|crc32)": "\w+"', "", (runs / "seed1" / file).read_text())
        then, now = changes.get(file, ("", ""))
        assert then in text
        (tmp_path / file).write_text(text.replace(then, now))
    if message is None:
        assert "config.suites.stable" in suite.choose(folders, SuiteConfig())
        return
    with pytest.raises(ConfigError, match=message):
        suite.choose(folders, SuiteConfig())


@pytest.mark.slow
def test_missing_numbers_are_refused(runs, tmp_path):
    folders = [str(runs / f"seed{seed}") for seed in range(2)]
    with pytest.raises(ConfigError, match="is not the workdir of a run"):
        suite.choose([*folders, str(tmp_path)], SuiteConfig())
    with pytest.raises(ConfigError, match="1 runs"):
        suite.choose(folders[:1], SuiteConfig())
    with pytest.raises(ConfigError, match="No runs"):
        suite.choose([], SuiteConfig())
    with pytest.raises(ConfigError, match=r"--numbers='\(' is not a regular expression"):
        SuiteConfig(numbers="(")
    for regex in ("nope", "suite/.*", "loss", "wall/.*"):
        with pytest.raises(ConfigError, match=r"matches no number of .*retrieval/mean_r1"):
            suite.choose(folders, SuiteConfig(numbers=regex))
