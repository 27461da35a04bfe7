"""The comparison of methods, in small: what a row has, and that what is there is not run again."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from aced.data.images.augment import stored
from aced.data.shapes.scenes import CLASS_NAMES, Shapes, ShapesConfig
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from benchmarks.methods import suites, towers
from benchmarks.methods.pool import (
    AUGMENT,
    LENGTH,
    PoolConfig,
    _concepts,
    _numbered,
    reduced,
    shapes,
)
from benchmarks.methods.runs import NUMBERS, Bench, Run, by_name, flops_per_step, order
from benchmarks.table import Runs
from configs import methods


def test_every_suite_is_made_of_runs_that_can_be_set_up():
    for name, suite in suites.SUITES.items():
        listed = suite()
        assert len(set(listed)) == len(listed), name
        for run in listed:
            assert run.method in methods.METHODS
            assert (run.selection is None) == (run.method in ("iid", "kd"))
            assert run.steps * run.batch_size == run.examples


def test_a_run_by_the_name_of_its_method():
    for name in methods.METHODS:
        assert by_name(name).method == name


def test_runs_of_the_gain_are_listed_once():
    runs = suites.gain()
    by_raw_gain = [run for run in runs if "gain" in json.loads(run.settings)]
    assert {run.selection.normalization for run in by_raw_gain} == {"none"}
    assert {run.selection.gain for run in by_raw_gain} == {0.1, 1.0, 10.0, 100.0}


def test_passes_over_the_pool():
    ids = order(Run(batch_size=8, examples=80), 20)
    assert ids.shape == (10, 8)
    np.testing.assert_array_equal(np.sort(ids.reshape(4, 20), axis=1), [np.arange(20)] * 4)
    assert order(by_name("h_acid", batch_size=8, examples=80), 20).shape == (10, 40)


def test_a_copy_of_each_pair_is_drawn():
    rows = order(Run(batch_size=8, examples=80), 20, copies=3)
    np.testing.assert_array_equal(np.sort(rows.reshape(4, 20) // 3, axis=1), [np.arange(20)] * 4)
    assert {*(rows % 3).reshape(-1).tolist()} == {0, 1, 2}


def test_scenes_with_captions_of_all_kinds(tmp_path):
    config = PoolConfig(wrong=0.5, captions="given+class+short")
    pool = shapes(tmp_path, config, size=30, seed=0)
    given = shapes(tmp_path, PoolConfig(wrong=0.5), size=30, seed=0)
    assert len(pool) == len(given) == 30
    np.testing.assert_array_equal(pool.tokens[::3], given.tokens)
    np.testing.assert_array_equal(pool.is_noisy[::3], given.is_noisy)
    encode = get_tokenizer(TokenizerConfig(kind="shapes", length=LENGTH))
    source = Shapes(ShapesConfig(size=30, wrong=0.5))
    named = [f"a picture of a {CLASS_NAMES[source[i]['label']]}" for i in range(30)]
    np.testing.assert_array_equal(pool.tokens[1::3], encode(named))
    # Beside a wrong caption it is that of the scene.
    right = [Shapes(ShapesConfig(size=30))[i]["texts"][0] for i in range(30)]
    short = [text[: text.index(" background")].rpartition(" on a ")[0] for text in right]
    np.testing.assert_array_equal(pool.tokens[2::3], encode(short))
    assert given.is_noisy.any()
    assert not pool.is_noisy[1::3].any()
    assert not pool.is_noisy[2::3].any()
    for copy in range(3):
        np.testing.assert_array_equal(pool.pixels[copy::3], given.pixels)


def test_stored_augmentations_of_scenes(tmp_path):
    pool = shapes(tmp_path, PoolConfig(pairs=10, augmentations=3), size=30, seed=0)
    assert len(pool) == 10
    assert pool.pixels.shape == (30, 192)
    rows = pool.tokens.reshape(10, 3, LENGTH)
    np.testing.assert_array_equal(rows, rows[:, :1].repeat(3, axis=1))
    image = Shapes(ShapesConfig(size=10, resolution=32))[4]["image"]
    part = stored(image, AUGMENT, 4, 2)
    assert part.size < image.size
    expected = reduced(np.asarray(Image.fromarray(part).resize((32, 32), Image.BICUBIC)), 8)
    np.testing.assert_array_equal(pool.pixels[3 * 4 + 2], expected)


def test_cost_of_a_step():
    params = towers.init(jax.random.key(0), 5, pixels=7, places=1, words=3, bias=0.0)
    forward = 2 * (7 * 5 + 2 * (5 * 5 + 5 * towers.WIDTH))
    assert flops_per_step(Run(batch_size=8), params) == 24 * forward
    assert flops_per_step(by_name("aced", batch_size=8), params) == (24 + 40) * forward
    assert flops_per_step(by_name("aced_iid", batch_size=8), params) == (48 + 40) * forward
    # These scores do not read the learner.
    for name in ("i_acid", "cabs_dm", "cabs_fm"):
        assert flops_per_step(by_name(name, batch_size=8), params) == 24 * forward
    iid, h_acid = (
        Run(examples=suites.EQUAL_FLOPS),
        by_name("h_acid", examples=suites.EXAMPLES),
    )
    costs = [run.steps * flops_per_step(run, params) for run in (iid, h_acid)]
    assert costs[0] == costs[1]


def test_means_over_cells():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    expected = [
        [image[y : y + 2, x : x + 2].reshape(4, 3).mean(axis=0) for x in (0, 2)] for y in (0, 2)
    ]
    found = reduced(image, 2).reshape(2, 2, 3)
    np.testing.assert_allclose(found, np.array(expected) / 127.5 - 1, rtol=1e-6)


def test_words_by_number():
    found = _numbered(["alarm off", "alarm unseen"], ["alarm", "off"])
    assert found[:, :3].tolist() == [[2, 3, 0], [2, 1, 0]]


def test_distinct_concepts_of_captions():
    found = _concepts(np.array([[4, 2, 4, 1, 0], [1, 1, 0, 0, 0]]), [2, 3, 4])
    assert [{*row.tolist()} for row in found] == [{4, 2, -1}, {-1}]
    assert (found == 4).sum() == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        by_name("h_acid", batch_size=16, examples=160),
        by_name("aced_iid", batch_size=16, examples=160),
        by_name("kd", batch_size=16, examples=160, distillation_loss="feature"),
        by_name("cabs_dm", batch_size=16, examples=160),
        by_name("iid", batch_size=16, examples=160, captions="short"),
        by_name("kd", batch_size=16, examples=160, pairs=50, augmentations=3),
        by_name(
            "aced",
            batch_size=16,
            examples=160,
            loss="shifted",
            teachers="reference+diverse",
            average="logits",
            teacher_scale=20.0,
        ),
    ],
    ids=lambda run: run.method,
)
def test_a_run_and_its_table(tmp_path, monkeypatch, run):
    monkeypatch.setattr("benchmarks.methods.runs.REFERENCE_EXAMPLES", 640)
    table = Runs(tmp_path / "a.csv", Run, NUMBERS)
    _, rows = Bench(str(tmp_path), pairs=400, on_reference=table.add).train(run)
    assert [row["examples_trained"] for row in rows] == [32, 64, 96, 128, 160]
    assert 0 <= rows[-1]["r1"] <= 1
    # Half of the captions are wrong, of the picks fewer or more, and a mean over two steps.
    assert all(round(row["noise"] * 32) == pytest.approx(row["noise"] * 32) for row in rows)
    _, again = Bench(str(tmp_path), pairs=400).train(run)
    assert [row["r1"] for row in again] == [row["r1"] for row in rows]
    assert not table.has(run)
    table.add(run, rows)
    written = Runs(tmp_path / "a.csv", Run, NUMBERS)
    assert written.has(run)
    assert not written.has(by_name("h_acid", batch_size=16, examples=176))
    bench = Bench(str(tmp_path), pairs=400)
    pool = bench.pool(run.pool)
    assert len(pool) == (run.pairs or 400)
    for frozen in bench.frozen(run).values():
        assert len(frozen.zimg) == len(pool) * pool.copies
        np.testing.assert_allclose(np.linalg.norm(frozen.zimg, axis=1), 1, rtol=1e-5)
