import dataclasses

import pytest
from etils import epath

from aced.config import ConfigError
from aced.cost import flops as costs
from aced.metrics import history, jsonl
from aced.train import plan
from aced.train.config import parse
from configs import siglip_b16, small, smoke
from tests import cached, test_configs


def planned(config, folder):
    return plan.plan(parse(config), epath.Path(folder))


def test_phases_in_their_order_with_their_costs(tmp_path):
    iid, reference, cache, run = planned(smoke.get_config(), tmp_path / "run")
    assert [phase.name for phase in (iid, reference, cache, run)] == [
        "iid",
        "reference",
        "reference's cache",
        "run",
    ]
    assert [phase.method for phase in (iid, cache, run)] == ["IID", "embeddings", "ACED-ACIDistill"]
    assert (run.steps, run.examples, run.done) == (300, 64, 0)
    # The table of benchmarks/results/smoke.txt.
    assert f"{iid.steps * iid.flops:.2e}" == "4.70e+11"
    assert f"{reference.steps * reference.flops:.2e}" == "4.62e+12"
    assert f"{run.steps * run.flops:.2e}" == "1.25e+12"
    # Batches of 320 for 10,000 scenes; the last is padded.
    assert (cache.steps, cache.examples, cache.total_examples) == (32, 320, 10_000)
    assert cache.total_flops == cache.flops // 320 * 10_000
    total = sum(phase.later_flops for phase in (iid, reference, cache, run))
    assert total == pytest.approx(test_configs.flops(smoke.get_config()), rel=0.01)


def test_arguments_change_all_phases(tmp_path):
    config = smoke.get_config("steps=30,batch=16,lr=3e-4,width=32,depth=1,resolution=16")
    iid, reference, _, run = planned(config, tmp_path)
    assert (iid.steps, reference.steps, run.steps) == (30, 40, 30)  # four thirds
    assert {phase.examples for phase in (iid, reference, run)} == {16}
    settings = parse(config)
    for one in (settings, *map(parse, settings.before.values())):
        assert one.optimizer.schedule.peak == 3e-4
        assert one.method.model.image.resolution == one.data.shapes.resolution == 16
    assert settings.method.model.image.dims.width == 32
    assert parse(settings.before["reference"]).method.model.text.dims.depth == 2
    config = small.get_config("data=/d,clean=/c,steps=150,length=8,reference_steps=7")
    reference, run = planned(config, tmp_path)
    assert (reference.steps, run.steps) == (7, 150)
    assert config.method.model.tokenizer.length == config.method.model.text.length == 8
    assert planned(small.get_config("data=/d,clean=/c,steps=150"), tmp_path)[0].steps == 250


def test_finished_phases_do_not_count_as_later(tmp_path):
    (tmp_path / "reference/checkpoints/400").mkdir(parents=True)
    (tmp_path / "iid/checkpoints/75").mkdir(parents=True)
    phases = planned(smoke.get_config(), tmp_path)
    iid, reference, cache, run = phases
    assert (iid.done, reference.done) == (75, 400)
    assert plan.later_flops(phases, tmp_path / "iid") == cache.later_flops + run.later_flops
    assert plan.later_flops(phases, tmp_path) == 0
    lines = [line.split() for line in plan.table(phases).splitlines()]
    assert [line[-1] for line in lines] == ["done", "25%", "100%", "0%", "0%", "68%"]


def test_costs_include_what_is_scored_before_the_first_step(tmp_path):
    config = smoke.get_config("method=h_acid,alone,online")
    plain = planned(config, tmp_path)[-1]
    config.method.score_ahead = 2
    reference, run = planned(config, tmp_path)
    models = parse(config).method.model, parse(config.before.reference).method.model
    macs = sum(sum(costs.macs(model)) for model in models)
    scored = 2 * 320 * 2 * macs  # two super-batches of 320, and two FLOPs for each MAC
    assert run.total_flops == plain.total_flops + scored
    assert plan.later_flops([reference, run], reference.folder) == run.total_flops
    begun = dataclasses.replace(run, done=100)
    assert begun.later_flops == plain.total_flops * 2 // 3
    assert dataclasses.replace(run, steps=None).total_flops == 0


def test_phase_that_ended_early_is_done(tmp_path):
    config = smoke.get_config("method=iid")
    config.early_stop.metric, config.early_stop.patience = "classes/top1", 2
    (tmp_path / "checkpoints/90").mkdir(parents=True)
    lines = [{"step": 30 * i, "classes/top1": 1 / i} for i in (1, 2, 3)]
    (tmp_path / history.FILE).write_bytes(jsonl.dumps(lines))
    run = planned(config, tmp_path)[-1]
    assert (run.steps, run.done, run.later_flops) == (90, 90, 0)


def test_a_missing_list_of_concepts_is_found_before_the_runs_before(tmp_path):
    config = smoke.get_config("method=cabs_fm")
    config.method.selection.concepts = str(tmp_path / "list.txt")
    with pytest.raises(ConfigError, match=r"The list of concepts .*list\.txt does not exist"):
        planned(config, tmp_path)


def test_every_shard_of_a_cache_ends_with_a_step_of_its_own(tmp_path):
    config = smoke.get_config()
    (cache,) = config.before_caches.values()
    cache.shard_size = 1_000  # three steps of 320, and one of 40
    planned_cache = planned(config, tmp_path)[2]
    assert (planned_cache.steps, planned_cache.total_examples) == (40, 10_000)


def test_length_in_epochs(tmp_path):
    cached.write_data(tmp_path / "data", 20)
    config = siglip_b16.get_config("tiny")
    config.total_steps, config.total_epochs, config.batch_size = None, 4.0, 8
    config.data.source = "array_record"
    config.data.array_record.path = str(tmp_path / "data")
    (run,) = planned(config, tmp_path)
    assert run.steps == 10
    config.data.source, config.data.webdataset.path = "webdataset", "/nowhere/{00..10}.tar"
    (run,) = planned(config, tmp_path)  # not opened
    assert run.steps is None
    assert plan.table([run]).split()[-6:] == ["IID", "4", "epochs", "-", "-", "-"]
    assert plan.later_flops([dataclasses.replace(run, folder="x"), run], "x") == 0


def test_model_of_a_run_before_an_earlier_one(tmp_path):
    """Its architecture is not in the config."""
    config = smoke.get_config("method=h_acid,alone,online")
    config.method.reference.checkpoint = "{workdir}/reference/big"
    config.before.reference.before = {"big": smoke.run(depth=1, width=32, steps=9, seed=0)}
    big, reference, run = planned(config, tmp_path)
    assert (big.steps, reference.steps) == (9, 400)
    assert run.flops is None
    assert plan.table([big, reference, run]).splitlines()[3].split()[-2:] == ["-", "0%"]
