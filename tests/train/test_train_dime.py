"""DIME-FM through the loop: pictures without need of captions, sentences without pictures."""

import jax
import numpy as np
import pytest

from aced.cache import CacheError, command
from aced.cache.config import CacheConfig
from aced.checkpoints.checkpointer import load_params
from aced.config import to_config
from aced.data import records
from aced.data.shapes.scenes import Shapes, ShapesConfig
from aced.methods.dime import DimeConfig
from aced.metrics import history
from aced.models import model_folder
from aced.train import loop
from tests import cached, small_run

PICTURES, SENTENCES = 40, 30


@pytest.fixture(scope="module", name="paths")
def _paths(tmp_path_factory):
    """A teacher, pictures, and sentences: records without a picture."""
    folder = tmp_path_factory.mktemp("dime")
    pictures = cached.write_data(folder / "pictures", PICTURES)
    shapes = Shapes(ShapesConfig(seed=5, size=SENTENCES, resolution=16))
    texts = [shapes[i]["texts"] for i in range(SENTENCES)]
    examples = [records.Example(b"", text, f"{i}") for i, text in enumerate(texts)]
    sentences = folder / "sentences"
    sentences.mkdir()
    splits = {"train": records.write_split(sentences, "train", examples, SENTENCES, 1)}
    records.write_description(sentences, splits, statistics={}, settings={})
    teacher = cached.write_model(folder / "teacher")
    paths = {"pictures": pictures, "sentences": str(sentences), "teacher": teacher}
    for name, towers in (("teacher", "image"), ("sentences", "text")):
        out = str(folder / f"{name}_cache")
        wanted = CacheConfig(model=name, out=out, towers=towers, precision="int8")
        command.run(get_config(paths, 1), wanted, "", jax.devices()[:1])
        paths[f"{name}_cache"] = out
    return paths


def get_config(paths, steps):
    config = small_run.get_config()
    image = config.method.model.image
    config.total_steps = steps
    config.batch_size = 8
    config.checkpoint.every_steps = 2
    config.data.source = "array_record"
    config.data.array_record.path = paths["pictures"]
    config.method = to_config(DimeConfig())
    method = config.method
    method.model.image = image
    method.teacher.checkpoint = paths["teacher"]
    method.teacher.cache = paths.get("teacher_cache", "")
    method.sentences.cache = paths.get("sentences_cache", "")
    method.sentences.batch_size = 16
    data = method.sentences.data
    data.source = "array_record"
    data.array_record.path = paths["sentences"]
    return config


def run(paths, steps, workdir):
    return loop.run(get_config(paths, steps), str(workdir), devices=jax.devices()[:1])


@pytest.mark.slow
def test_resumed_dime_run_equals_an_uninterrupted_one(paths, tmp_path):
    run(paths, 4, tmp_path / "whole")
    run(paths, 2, tmp_path / "parts")
    run(paths, 4, tmp_path / "parts")
    whole, parts = (history.read(tmp_path / name) for name in ("whole", "parts"))
    for name in ("loss", "loss/score", "loss/pseudo", "teacher_cosine"):
        assert [line[name] for line in whole] == [line[name] for line in parts]
    assert np.isfinite([line["loss"] for line in whole]).all()
    models = [load_params(str(tmp_path / name), part="model") for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *models)
    teacher = model_folder.read(paths["teacher"]).params
    jax.tree.map(np.testing.assert_array_equal, models[0]["text"], teacher["text"])
    np.testing.assert_array_equal(models[0]["t"], teacher["t"])
    assert whole[-1]["wall/records_skipped"] >= 0
    assert whole[-1]["examples_scored"] == 0


@pytest.mark.slow
def test_caches_of_other_data_are_refused(paths, tmp_path):
    swapped = {**paths, "teacher_cache": paths["sentences_cache"]}
    with pytest.raises(CacheError, match="image embeddings are needed"):
        run(swapped, 1, tmp_path)
    other = {**paths, "pictures": cached.write_data(tmp_path / "other", PICTURES + 1)}
    with pytest.raises(CacheError, match=r"data: here .*, there"):
        run(other, 1, tmp_path / "run")
