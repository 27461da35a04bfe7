"""Every recipe runs two steps, and its header has the right cost."""

import dataclasses
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from aced import methods
from aced.checkpoints import record
from aced.config import ArgumentHelp, ConfigError
from aced.cost import flops as costs
from aced.methods.frozen import FrozenConfig
from aced.metrics import history
from aced.optim import durations
from aced.parallel import mesh as meshes
from aced.parallel.mesh import MeshConfig
from aced.preflight import plan
from aced.train import loop, summary
from aced.train.config import parse, recorded
from tests.docs import pages

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("methods", "tiny", "coca_tasks", "elevater")
)
V5E_FLOPS, MFU = 197e12, 0.5  # what the headers assume


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_recipes():
    """Those that differ when tiny: of a model's sizes, the first."""
    found = {load(name).get_config("tiny").to_json_best_effort(): name for name in RECIPES[::-1]}
    return sorted(found.values())


TINY = tiny_recipes()


@pytest.mark.parametrize("name", TINY)
def test_tiny_is_traced(name, tmp_path):
    """The step's shapes, by the settings alone: neither data nor a checkpoint is there."""
    config = load(name).get_config("tiny")
    settings = plan.read(config, str(tmp_path))
    built = plan.first_program(settings, meshes.make_mesh(jax.devices()[:1], MeshConfig()))
    after, found = jax.eval_shape(built.step, built.state, built.frozen, built.batch())
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, built.state)
    assert found["loss"].shape == ()
    assert (built.batch_size, built.total_steps) == (16, 2)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("iid", "IID"),
        ("kd", "softmax-KD"),
        ("hard", "hard learner"),
        ("i_acid", "I-ACID"),
        ("h_acid", "H-ACID"),
        ("aced", "ACED-ACIDistill"),
        ("aced_iid", "ACED-IIDistill"),
        ("cabs_dm", "CABS-DM"),
        ("cabs_fm", "CABS-FM"),
    ],
)
def test_a_table_has_the_papers_names(name, title):
    config = load("smoke").get_config(f"method={name}")
    assert methods.parse(config.method).title == title


def test_table_describes_methods_without_a_name_in_the_paper():
    config = load("smoke").get_config("method=i_acid")
    config.method.distillation.weight = 1.0
    assert methods.parse(config.method).title == "I-ACID + softmax-KD"


@pytest.mark.parametrize("name", TINY)
def test_settings_of_a_record_are_those_of_its_run(name, tmp_path):
    settings = parse(load(name).get_config("tiny"))
    record.write(epath.Path(tmp_path), settings, "data")
    config = recorded(record.read(epath.Path(tmp_path)).settings)
    before = {name: parse(earlier) for name, earlier in settings.before.items()}
    assert {name: parse(earlier) for name, earlier in config.before.items()} == before
    assert dataclasses.replace(parse(config), before={}) == dataclasses.replace(settings, before={})


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_tiny_runs_two_steps(name, tmp_path):
    last = loop.run(load(name).get_config("tiny"), str(tmp_path), devices=jax.devices()[:1])
    assert last["step"] == 2
    assert last["examples_trained"] == 32
    config = methods.parse(load(name).get_config("tiny").method)
    assert last["examples_scored"] == (config.super_batch_size(32) if config.selects else 0)
    lines = history.read(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["skipped"] == 0 for line in lines)
    if config.name == "contrastive":  # of its settings only those that distil have that term
        assert ("loss/distillation" in last) == (config.distillation.weight > 0)


def test_config_file_in_the_guide(tmp_path):
    (block,) = pages.blocks(ROOT / "docs/guides/runs.md", "python")
    file = tmp_path / "mine.py"
    file.write_text(block)
    spec = importlib.util.spec_from_file_location("mine", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = parse(module.get_config())
    assert settings.data.members == ("curated", "web")
    assert settings.evals["cifar10"].data.tfds.name == "cifar10"
    config = module.get_config("tiny")
    assert "cifar10" in config.evals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arg", "number"),
    [
        ("coca_base", "tiny,acid=PATH", "retrieval/mean_r1"),
        ("optima_coca_tiny6", "tiny,task=nlvr2", "val/accuracy"),
        ("optima_coca_tiny6", "tiny,task=coco_caption", "val/cider"),
    ],
)
def test_arguments_of_recipes(name, arg, number, tmp_path):
    last = loop.run(load(name).get_config(arg), str(tmp_path), devices=jax.devices()[:1])
    assert last["step"] == 2
    assert last["examples_scored"] == (160 if "acid" in arg else 0)
    assert last[number] >= 0
    assert number.replace("_", " ") in summary.table(tmp_path)


@pytest.mark.parametrize("name", RECIPES)
def test_header_says_what_a_run_costs(name):
    recipe = load(name)
    header = recipe.__doc__
    for field in ("Command:", "Hardware:", "Cost:", "Expect:"):
        assert field in header
    stated = re.search(r"Cost:\s+(\S+) FLOPs(?:, (\S+) v5e chip-hours)?", header)
    cost = float(stated[1])
    assert cost == pytest.approx(flops(recipe.get_config()), rel=0.01)
    if stated[2]:
        hours = float(stated[2].replace(",", ""))
        assert hours == pytest.approx(cost / V5E_FLOPS / MFU / 3600, rel=0.01)


def flops(config):
    """FLOPs of a run and of those before it, by the settings alone."""
    settings = parse(config)
    earlier = {name: parse(run) for name, run in settings.before.items()}
    method = settings.method
    cache = 0
    if "reference" in earlier:  # not trained yet, so that its size is not on disk
        reference = FrozenConfig(model=earlier["reference"].method.model)
        if settings.before_caches:
            reference = dataclasses.replace(reference, cache="cache", scale=1.0, bias=0.0)
            pair = sum(costs.macs(reference.model))
            cache = costs.step_flops([], [(pair, settings.data.shapes.size)])
        method = dataclasses.replace(method, reference=reference)
    steps = durations.steps(settings, "total", batch_size=settings.batch_size)
    own = steps * methods.METHODS[method.name][1](method).flops_per_step(settings.batch_size)
    return own + cache + sum(flops(run) for run in settings.before.values())


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_header_explains_every_argument(name):
    with pytest.raises(ArgumentHelp) as request:
        load(name).get_config("help")
    header = load(name).__doc__.partition("Arguments:\n")[2]
    explained = re.findall(r"^  (\w[\w, ]*?)  ", header, re.MULTILINE)
    assert sorted(", ".join(explained).split(", ")) == sorted(request.value.defaults)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("width=48", "width = 48 must be a multiple of 32"),
        ("batch=0", "batch = 0 must be at least"),
        ("resolution=30", "resolution = 30 must be a multiple of 8"),
    ],
)
def test_arguments_that_make_no_model(argument, message):
    with pytest.raises(ConfigError, match=message):
        load("small").get_config(argument)


@pytest.mark.parametrize("name", ["aced_f0", "aced_f1", "aced_f2"])
def test_aced_has_a_reference_and_a_teacher(name):
    """Two models, unless they are shared; each from a run or from a cache."""
    method = parse(load(name).get_config()).method
    assert set(method.frozen) == {"reference", "teacher"}
    assert method.frozen["reference"].checkpoint != method.frozen["teacher"].checkpoint
    cached = parse(load(name).get_config("cache=a,teacher_cache=b")).method.frozen
    assert {key: item.cache for key, item in cached.items()} == {"reference": "a", "teacher": "b"}
    assert set(parse(load(name).get_config("shared")).method.frozen) == {"reference"}
    assert set(parse(load(name).get_config("method=h_acid")).method.frozen) == {"reference"}
    assert set(load(name).get_config("tiny").before) == {"reference", "teacher"}


def test_small_may_have_a_teacher_of_its_own(tmp_path):
    config = load("small").get_config(f"reference={tmp_path},teacher={tmp_path}/b")
    method = parse(config).method
    assert method.distillation.teachers == ("teacher",)
    assert method.teachers["teacher"].checkpoint == f"{tmp_path}/b"
    with pytest.raises(ConfigError, match=r"method=h_acid uses no teacher: leave out teacher="):
        load("small").get_config(f"method=h_acid,reference={tmp_path},teacher={tmp_path}/b")


def test_small_uses_all_that_is_given_for_the_reference(tmp_path):
    config = load("small").get_config(f"reference={tmp_path},cache={tmp_path}/c")
    reference = parse(config).method.reference
    assert (reference.checkpoint, reference.cache) == (str(tmp_path), f"{tmp_path}/c")
    alone = load("small").get_config(f"cache={tmp_path}/c")
    assert not parse(alone).method.reference.checkpoint
    for given in ("reference", "cache"):
        with pytest.raises(ConfigError, match="clean=PATH is to train a reference on, but"):
            load("small").get_config(f"clean={tmp_path},{given}={tmp_path}")


def test_small_distils_from_a_teacher_without_a_reference(tmp_path):
    """Nothing scores, so no reference is trained first, and none is asked for."""
    config = load("small").get_config(f"method=kd,data={tmp_path}/0.tar,val=1.tar,teacher=b")
    assert set(parse(config).method.frozen) == {"teacher"}
    assert not config.before
    with pytest.raises(ConfigError, match=r"method=kd with a teacher uses no reference: leave out"):
        load("small").get_config(f"method=kd,reference={tmp_path},teacher={tmp_path}/b")
    with pytest.raises(ConfigError, match="method=kd needs a reference"):
        load("small").get_config(f"method=kd,data={tmp_path}/0.tar,val=1.tar")


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_arguments_are_refused(name):
    with pytest.raises(ConfigError, match=r"(?s)no argument 'typo'.*\n  tiny"):
        load(name).get_config("typo")
