"""OPTIMA through the loop: a teacher, its student, stopped in the middle of a pull."""

import jax
import numpy as np
import pytest

from aced.checkpoints.checkpointer import load_params
from aced.config import ConfigError, to_config
from aced.data.shapes.tasks import CLASS_NAMES
from aced.evaluators import EvalConfig
from aced.metrics import history
from aced.train import loop
from configs import coca_base, optima_coca_tiny12
from tests import cached

DEVICE = jax.devices()[:1]


def get_config(teacher, steps, task="questions"):
    config = optima_coca_tiny12.get_config("tiny,task=vqa")
    config.before = {}
    config.method.teacher.checkpoint = teacher
    config.method.pull_steps = 3
    config.total_steps = steps
    config.optimizer.schedule.kind = "constant"  # extending the run moves no learning rate
    config.checkpoint.every_steps = 100
    config.data.num_threads = 2
    config.data.shapes.task = task
    config.evals = {}
    return config


@pytest.fixture(scope="module", name="teacher")
def _teacher(tmp_path_factory):
    """Pretrained and fine-tuned, two steps each."""
    folder = str(tmp_path_factory.mktemp("teacher"))
    loop.run(coca_base.get_config("tiny,task=vqa"), folder, devices=DEVICE)
    return folder


@pytest.mark.slow
def test_run_resumed_within_a_pull_equals_one_run(teacher, tmp_path):
    loop.run(get_config(teacher, 10), str(tmp_path / "whole"), devices=DEVICE)
    for steps in (4, 10):
        loop.run(get_config(teacher, steps), str(tmp_path / "parts"), devices=DEVICE)
    whole, parts = (history.read(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) == len(parts) == 10
    for old, new in zip(whole, parts, strict=True):
        names = [name for name in old if not name.startswith("wall/")]
        assert {name: old[name] for name in names} == {name: new[name] for name in names}
    arms = [line["bandit/arm"] for line in whole]
    assert arms[:9] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert whole[3]["bandit/reward"] != 0
    params = [load_params(str(tmp_path / name)) for name in ("whole", "parts")]
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.slow
def test_new_task_gets_a_new_head_and_keeps_other_parameters(teacher, tmp_path):
    first = load_params(teacher + "/start", part="model")
    config = coca_base.get_config("tiny,task=vqa")
    config.before = {}
    config.total_steps = 1
    config.init.checkpoint = teacher + "/start"
    config.optimizer.schedule.peak = 1e-12
    config.optimizer.weight_decay = 0.0
    config.evals = {}
    loop.run(config, str(tmp_path), devices=DEVICE)
    found = load_params(str(tmp_path), part="model")
    assert found["head"]["classifier"]["kernel"].shape[1] == len(CLASS_NAMES["questions"])
    del found["head"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, first)


@pytest.mark.slow
def test_teacher_and_student_are_evaluated_on_their_task(teacher, tmp_path):
    config = get_config(teacher, 1)
    config.evals.val = to_config(EvalConfig(kind="answers", max_examples=32))
    data = config.evals.val.data
    data.shapes.task = "questions"
    data.shapes.split = "val"
    data.shapes.resolution = 32
    last = loop.run(config, str(tmp_path), devices=DEVICE)
    assert 0 <= last["val/accuracy"] <= 1
    assert last["val/examples"] == 32


@pytest.mark.slow
def test_data_without_answers_are_refused_before_the_first_step(teacher, tmp_path):
    config = get_config(teacher, 1)
    config.data.source = "array_record"
    config.data.array_record.path = cached.write_data(tmp_path / "data", 40)
    with pytest.raises(ConfigError, match=r"reads the 'label' of every example.*--label_column"):
        loop.run(config, str(tmp_path / "run"), devices=DEVICE)


@pytest.mark.slow
def test_a_teacher_of_another_kind_is_refused(teacher, tmp_path):
    captions = optima_coca_tiny12.get_config("tiny,task=coco_caption")
    captions.before = {}
    captions.method.teacher.checkpoint = teacher
    captions.evals = {}
    with pytest.raises(ConfigError, match="reads no method"):
        loop.run(captions, str(tmp_path), devices=DEVICE)
