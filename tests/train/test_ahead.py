"""Runs that score ahead: what a synchronous run picks, on any devices, after a kill, in numbers."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from aced.cache import Cache
from aced.checkpoints import record
from aced.checkpoints.checkpointer import Checkpointer
from aced.config import ConfigError
from aced.data import sources
from aced.data.picks import CANDIDATES, PicksAhead
from aced.data.pipeline import InputCounters
from aced.metrics import history
from aced.parallel import mesh as meshes
from aced.train import chosen, program
from aced.train.config import parse
from aced.train.setup import Run, set_up, stream_batches
from configs import smoke
from tests.train import test_train
from tests.train.test_train import assert_same_run, config, lines, run, with_reference

STEPS = 6


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return test_train.train_reference(tmp_path_factory.mktemp("reference"), 10)


def ahead(reference, number, **changes):
    changes = {"method.score_ahead": number, "checkpoint.every_steps": 2} | changes
    return with_reference(config("aced", steps=STEPS, **changes), reference)


@pytest.mark.slow
def test_picks_are_the_synchronous_ones_if_nothing_is_learned(reference, tmp_path):
    still = {"optimizer.schedule.peak": 1e-30}  # parameters keep every bit
    for number in (0, 1, 2):
        run(ahead(reference, number, **still), tmp_path / str(number))
    picks, numbers = history.read_picks(tmp_path / "0"), lines(tmp_path / "0")
    assert len(picks) == STEPS
    for number in (1, 2):
        assert history.read_picks(tmp_path / str(number)) == picks
        for line, expected in zip(lines(tmp_path / str(number)), numbers, strict=True):
            for name in ("loss", "grad_norm", "param_norm", "selection/noisy_share"):
                assert line[name] == pytest.approx(expected[name], rel=1e-5), name
            # Of what has been scored so far.
            assert line["examples_scored"] == (line["step"] + number) * 160
            assert line["examples_trained"] == line["step"] * 32
        # Scores, and shares of candidates, are of the super-batch that a step scores.
        for name in ("score_selected", "noisy_share_super_batch"):
            late = [line[f"selection/{name}"] for line in lines(tmp_path / str(number))]
            due = [line[f"selection/{name}"] for line in numbers]
            assert late[:-number] == pytest.approx(due[number:], rel=2e-3)


@pytest.mark.slow
def test_same_picks_and_losses_on_1_2_and_8_devices(reference, tmp_path):
    small = {"method.scoring.resolution": 16, "method.selection.strata": 1}
    for devices in (1, 2, 8):
        run(ahead(reference, 1, **small), tmp_path / str(devices), devices=devices)
    one = history.read_picks(tmp_path / "1")
    assert len(one) == STEPS
    for devices in ("2", "8"):
        assert history.read_picks(tmp_path / devices) == one
        for a, b in zip(lines(tmp_path / "1"), lines(tmp_path / devices), strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
            assert a["selection/noisy_share"] == b["selection/noisy_share"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_killed_run_resumes_bit_for_bit(number, reference, tmp_path):
    settings = test_train.resumable(reference)
    settings.method.score_ahead = number
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(settings, whole)
    done = test_train.in_a_process("killed_run", str(killed), reference, number)
    assert done.returncode == -9, done.stderr
    assert history.read(killed)[-1]["step"] == 13
    run(settings, killed)
    assert_same_run(whole, killed)


@pytest.mark.slow
def test_pictures_of_a_step_are_of_the_super_batch_that_it_trains_on(reference, tmp_path):
    settings = ahead(reference, 1)
    run(settings, tmp_path)
    parsed = parse(settings)
    source = test_train.loop.opened(parsed.data)
    for step, ids in history.read_picks(tmp_path).items():
        found = chosen.of_step(source, parsed, step, ids, 500)
        assert sorted(item.id for item in found.chosen) == sorted(ids)
        assert len(found.left) == 160 - 32


class Lacking(Cache):
    """Embeddings of some examples, which are all zero; without files."""

    def __init__(self, missing):
        self.missing, self.towers = dict.fromkeys(missing, "it was lost"), ("image",)

    def read(self, ids, captions, augmentations=None):
        assert not set(ids.tolist()) & self.missing.keys()
        return {"zimg": np.zeros((len(ids), 4), np.float32)}


@pytest.fixture
def lacking(tmp_path):
    """Input of a run whose learner scores, and whose teacher's cache lacks a third."""
    config = smoke.get_config("tiny,method=aced")
    config.method.score_ahead, config.method.selection.score = 1, "hard_learner"
    settings = parse(config)
    item = dataclasses.replace(settings.method.reference, cache="e", model=settings.method.model)
    method = settings.method.with_frozen({"reference": item})
    settings = dataclasses.replace(settings, method=method)
    mesh, source = meshes.make_mesh(jax.devices()[:1]), sources.open_source(settings.data)
    with jax.set_mesh(mesh):
        built = program.build(settings, mesh)
    caches = {"": {"reference/": Lacking(range(0, len(source), 3))}, CANDIDATES: {}}
    assert {name: set(stream.caches) for name, stream in built.streams.items()} == {
        name: set(found) for name, found in caches.items()
    }
    checkpoints = Checkpointer(epath.Path(tmp_path), settings.checkpoint)
    yield Run(
        settings=settings,
        program=built,
        folder=epath.Path(tmp_path),
        sources=dict.fromkeys(built.streams, source),
        caches=caches,
        start=None,
        state=built.state,  # shapes alone, since only the input is read
        frozen={},
        checkpoints=checkpoints,
        evals={},
    )
    checkpoints.close()


def test_only_scored_examples_are_trained_on_where_the_teachers_cache_lacks_some(lacking):
    mesh, counters = lacking.program.mesh, InputCounters()
    with jax.set_mesh(mesh), stream_batches(lacking, CANDIDATES, 2, counters) as candidates:
        scored = next(candidates)["id"]
    assert not set(scored.tolist()) & set(range(0, scored.max(), 3))
    rows = np.arange(0, len(scored), len(scored) // lacking.program.batch_size)
    picks = PicksAhead(3, 1)
    picks.put(np.stack([rows, scored[rows]]).astype(np.int32))
    with stream_batches(lacking, "", 3, counters, picks) as picked, picks:
        np.testing.assert_array_equal(next(picked)["id"], scored[rows])


def test_candidates_before_the_first_step_are_counted_once(lacking):
    """The steps read and count the super-batches after them."""
    first, whole = InputCounters(), InputCounters()
    with jax.set_mesh(lacking.program.mesh):
        with stream_batches(lacking, CANDIDATES, -1, first, steps=1) as batches:
            (batch,) = batches
        with stream_batches(lacking, CANDIDATES, -1, whole, steps=2) as batches:
            both = list(batches)
    np.testing.assert_array_equal(batch["id"], both[0]["id"])
    rows = len(batch["id"])
    assert 0 < first.skipped < rows  # a third
    assert first.skipped < whole.skipped < 2 * rows


def test_a_warning_where_scoring_ahead_saves_no_decoding(tmp_path, caplog):
    config = smoke.get_config("tiny,method=hard")
    config.method.score_ahead, config.data.augmentations = 1, 2
    config.data.augment.flip = 0.5
    folder, mesh = epath.Path(tmp_path), meshes.make_mesh(jax.devices()[:1])
    source = sources.open_source(parse(config).data)
    record.write(folder, parse(config), "other data")  # ends the setup before it compiles
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match="'other data' then"):
        set_up(parse(config), mesh, folder, source)
    assert "the whole picture of every candidate is decoded" in caplog.text
    assert "method.score_ahead = 1 saves nothing" in caplog.text
